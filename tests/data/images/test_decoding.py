"""Pixels of every kind of file are right, as independent readers show."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from loupe.data.images import jpeg
from loupe.data.images.decoding import read_format, read_image, read_picture, read_size
from loupe.data.images.errors import UnreadableImageError
from loupe.data.images.formats import inspect
from loupe.data.images.limits import LIMITS
from loupe.data.images.orientation import turn, turn_back
from tests.data.images.files import encoded, exif, noise


@pytest.fixture
def noisy() -> np.ndarray:
    return noise()


def tiff(pixels: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
def test_pixels_are_stored_and_the_orientation_turns_them_as_pillow_does(tmp_path, noisy, kind):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100}
    options = options if kind in ("WEBP", "AVIF", "JPEG") else {}
    plain = read_picture(encoded(noisy, kind, **options)).pixels
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}"
        path.write_bytes(encoded(noisy, kind, exif=exif(orientation), **options))
        stored = read_picture(path)
        assert (stored.orientation, stored.size) == (orientation, (90, 130))
        np.testing.assert_array_equal(stored.pixels, plain)
        with Image.open(path) as image:
            upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        np.testing.assert_array_equal(read_image(path), upright)
        assert read_size(path) == upright.shape[:2]


@pytest.mark.parametrize(
    "block",
    [b"MM\x00*\x00\x00\x00\x08\x00\x05junk", b"II*\x00\xff\xff\xff\xff", b"XX", b""],
)
def test_broken_exif_leaves_the_pixels_readable(noisy, block):
    content = encoded(noisy, "JPEG", exif=b"Exif\x00\x00" + block)
    assert read_picture(content).orientation == 1
    assert read_picture(content).pixels.shape == noisy.shape


GREY = noise(20, 31, 1)[:, :, 0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16"])
def test_png_of_every_mode_is_what_pillow_shows_on_white(mode):
    image = Image.fromarray(GREY).convert("RGB" if mode in ("P", "PA") else "L")
    image = image.quantize(17) if mode == "P" else image
    if mode == "I;16":
        image = Image.fromarray(GREY.astype(np.uint16) * 257)
    elif mode == "PA":
        image = image.quantize(17)
        image.info["transparency"] = bytes(range(0, 255, 15))
    elif mode != "P":
        image = image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(GREY[::-1]))
    content = encoded(image, "PNG")
    with Image.open(io.BytesIO(content)) as stored:
        if mode == "I;16":
            expected = np.repeat(GREY[:, :, None], 3, axis=2)
        else:
            layers = stored.convert("RGBA")
            white = Image.new("RGBA", layers.size, "white")
            expected = np.asarray(Image.alpha_composite(white, layers).convert("RGB"))
    difference = read_picture(content).pixels.astype(int) - expected
    assert np.abs(difference).max() <= (1 if mode in ("LA", "RGBA", "PA") else 0)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "PPM", "JPEG2000", "WEBP", "TIFF"])
def test_lossless_formats_keep_every_pixel(noisy, kind):
    pixels = np.asarray(Image.fromarray(noisy).quantize(200).convert("RGB"))
    content = encoded(pixels, kind, **({"lossless": True} if kind == "WEBP" else {}))
    picture = read_picture(content)
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.warnings == ()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", ["strips", "tiles", "BigTIFF", "big-endian"])
def test_tiff_of_every_layout_is_what_was_written(bits, compression, planar, layout):
    pixels = noise(40, 61).astype(np.uint16 if bits == 16 else np.uint8)
    pixels = pixels * 257 if bits == 16 else pixels
    options = {
        "strips": {"rowsperstrip": 7},
        "tiles": {"tile": (16, 32)},
        "BigTIFF": {"bigtiff": True},
        "big-endian": {"byteorder": ">"},
    }[layout]
    predictor = bool(compression)
    written = pixels if planar == "contig" else np.moveaxis(pixels, 2, 0)
    content = tiff(
        written,
        photometric="rgb",
        planarconfig=planar,
        compression=compression,
        predictor=predictor,
        **options,
    )
    assert np.array_equal(tifffile.imread(io.BytesIO(content)), written)
    expected = pixels if bits == 8 else pixels // 257
    np.testing.assert_array_equal(read_picture(content).pixels, expected)


def test_a_palette_tiff_has_its_palettes_colours():
    image = Image.fromarray(noise()).quantize(50)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_picture(encoded(image, "TIFF")).pixels, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.float32, np.float64])
def test_samples_are_scaled_by_the_range_of_their_type_and_not_by_their_maximum(dtype, channels):
    top = 1.0 if np.dtype(dtype).kind == "f" else float(np.iinfo(dtype).max)
    ramp = np.linspace(0, 0.5, 64).reshape(8, 8, 1).repeat(channels, axis=2)
    pixels = (ramp * top).astype(dtype)[:, :, 0] if channels == 1 else (ramp * top).astype(dtype)
    content = tiff(pixels, photometric="rgb" if channels == 3 else "minisblack")
    expected = (ramp * 255).repeat(3 // channels, axis=2)
    np.testing.assert_allclose(read_picture(content).pixels, expected, atol=0.51)


@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_float_a_little_above_one_does_not_change_the_scale(bigtiff):
    pixels = np.random.default_rng(0).random((64, 80, 3), np.float32)
    pixels[0, 0] = 1.0001
    picture = read_picture(tiff(pixels, photometric="rgb", bigtiff=bigtiff))
    np.testing.assert_allclose(picture.pixels, pixels * 255, atol=0.6)
    assert picture.warnings == ()


def test_floats_of_another_scale_are_clipped_and_said():
    picture = read_picture(tiff(np.array([[-3, 0.5], [200, np.nan]], np.float32)))
    np.testing.assert_array_equal(picture.pixels[:, :, 0], [[0, 128], [255, 0]])
    assert picture.warnings == ("values outside 0 to 1 are clipped",)


def test_grey_of_16_bits_whose_zero_is_white_is_turned_over():
    content = tiff(np.array([[0, 65535]], np.uint16), photometric="miniswhite")
    np.testing.assert_array_equal(read_picture(content).pixels[0, :, 0], [255, 0])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind):
    content = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), kind)
    red, green, blue = read_picture(content).pixels[4, 4]
    assert red > 200
    assert max(green, blue) < 60


def test_large_pictures_are_converted_in_bands_without_a_trace(noisy, monkeypatch):
    monkeypatch.setattr("loupe.data.images.decoding._BAND_PIXELS", 1000)
    palette = Image.fromarray(noisy).quantize(50)
    deep = noisy[:, :, 0].astype(np.uint16) * 257
    for image, expected in ((noisy, noisy), (palette, palette.convert("RGB")), (deep, None)):
        pixels = read_picture(encoded(image, "PNG")).pixels
        expected = noisy[:, :, :1].repeat(3, axis=2) if expected is None else expected
        np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("simplejpeg", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_pixels_are_those_of_pillow(noisy, mode, simplejpeg, monkeypatch):
    if simplejpeg:
        pytest.importorskip("simplejpeg")
    monkeypatch.setattr(jpeg, "_HAS_SIMPLEJPEG", simplejpeg)
    for options in (
        {"quality": 50, "subsampling": 2},
        {"quality": 92, "subsampling": 1, "progressive": True},
        {"quality": 100, "subsampling": 0, "restart_marker_blocks": 3},
    ):
        content = encoded(Image.fromarray(noisy).convert(mode), "JPEG", **options)
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        picture = read_picture(content)
        np.testing.assert_array_equal(picture.pixels, expected)
        assert picture.warnings == ()


@pytest.mark.parametrize(("at_least", "size"), [(46, (90, 130)), (45, (45, 65)), (5, (12, 17))])
def test_a_jpeg_is_reduced_as_far_as_both_sides_allow(noisy, at_least, size):
    picture = read_picture(encoded(noisy, "JPEG"), at_least=at_least)
    assert picture.pixels.shape == (*size, 3)
    assert picture.size == (90, 130)


def test_other_formats_are_never_reduced(noisy):
    np.testing.assert_array_equal(read_picture(encoded(noisy, "PNG"), at_least=5).pixels, noisy)


def test_the_first_of_several_pictures_is_read(noisy):
    others = [Image.fromarray(noise(seed=seed)) for seed in (1, 2)]
    for kind in ("GIF", "TIFF", "PNG", "WEBP", "MPO"):
        options = {"lossless": True} if kind == "WEBP" else {}
        alone = read_picture(encoded(noisy, "JPEG" if kind == "MPO" else kind, **options)).pixels
        content = encoded(noisy, kind, save_all=True, append_images=others, **options)
        assert np.abs(read_picture(content).pixels.astype(int) - alone).mean() < 4, kind


def test_heic_is_read_with_its_extra(noisy):
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(noisy)).save(stream, quality=95)
    picture = read_picture(stream.getvalue())
    assert np.abs(picture.pixels.astype(int) - noisy).mean() < 8


def test_heic_without_its_extra_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr("loupe.data.images.formats.find_spec", lambda name: None)
    (tmp_path / "a.jpg").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic")
    with pytest.raises(UnreadableImageError, match=r"a\.jpg: a HEIC file; .*loupe\[heif\]"):
        read_image(tmp_path / "a.jpg")


def test_the_content_says_the_format_and_not_the_name(tmp_path, noisy):
    (tmp_path / "a.png").write_bytes(encoded(noisy, "JPEG"))
    assert read_format(tmp_path / "a.png") == "JPEG"
    (tmp_path / "b.png").write_text("not an image at all")
    assert read_format(tmp_path / "b.png") == ""
    with pytest.raises(UnreadableImageError, match=r"b\.png: the content is no image .*b'not an"):
        read_image(tmp_path / "b.png")


def test_bytes_are_read_and_called_by_their_name(noisy):
    with pytest.raises(UnreadableImageError, match=r"row 7: the file is damaged"):
        read_picture(encoded(noisy, "PNG")[:-30], name="row 7")


def test_error_survives_the_way_from_a_worker():
    error = UnreadableImageError("a.png", "the file is empty", "copy it again")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TypeError("x"), r"the file is damaged \(x\)"),
        (RuntimeError(), r"the file is damaged \(RuntimeError\)"),
        (KeyError(1), r"the file is damaged \(1\)"),
        (MemoryError(), "there is not enough memory to read it"),
    ],
)
def test_whatever_a_decoder_throws_is_one_type(tmp_path, noisy, monkeypatch, error, words):
    path = Path(tmp_path / "a.png")
    path.write_bytes(encoded(noisy, "PNG"))

    def fail(self):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(UnreadableImageError, match=rf"a\.png: {words}"):
        read_image(path)


def test_a_picture_of_another_size_than_its_header_is_damaged(noisy, monkeypatch):
    container = inspect(encoded(noisy, "PNG"), LIMITS)
    monkeypatch.setattr(
        "loupe.data.images.decoding.inspect",
        lambda content, limits: container._replace(height=container.height - 1),
    )
    with pytest.raises(UnreadableImageError, match="its size is not what its header says"):
        read_picture(encoded(noisy, "PNG"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_back_undoes_turning(noisy, orientation):
    np.testing.assert_array_equal(turn_back(turn(noisy, orientation), orientation), noisy)
