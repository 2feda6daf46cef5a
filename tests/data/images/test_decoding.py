from __future__ import annotations

import io
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from loupe.data.images.decoding import (
    MaskSizeError,
    UnreadableImageError,
    read_image,
    read_image_and_mask,
    read_mask,
    read_size,
    turn,
    turn_back,
)
from loupe.data.sources.entries import make_dataset_dict
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper


def exif_with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_as_pillow_does(tmp_path, photograph, orientation):
    path = tmp_path / "turned.png"
    Image.fromarray(photograph).save(path, exif=exif_with_orientation(orientation))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(path), expected)


def test_broken_exif_leaves_the_pixels_readable(tmp_path, photograph):
    path = tmp_path / "broken.jpg"
    Image.fromarray(photograph).save(path, exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x05junk")
    assert read_image(path).shape == photograph.shape


def test_palette_png_has_its_palettes_colours(tmp_path):
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "palette.png"),
        [[[10, 20, 30], [200, 100, 50]], [[7, 8, 9], [200, 100, 50]]],
    )


def test_transparency_is_laid_on_white(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "alpha.png"), [[[10, 20, 30], [255, 255, 255]]]
    )


def test_transparent_palette_entry_is_laid_on_white(tmp_path):
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "palette.png", transparency=0)
    np.testing.assert_array_equal(
        read_image(tmp_path / "palette.png"), [[[255, 255, 255], [200, 100, 50]]]
    )


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_images_become_three_equal_channels(tmp_path, mode):
    Image.new(mode, (3, 2), {"L": 77, "LA": (77, 255), "1": 1}[mode]).save(tmp_path / "grey.png")
    expected = 255 if mode == "1" else 77
    np.testing.assert_array_equal(
        read_image(tmp_path / "grey.png"), np.full((2, 3, 3), expected, np.uint8)
    )


def test_16_bit_grey_keeps_its_brightness(tmp_path):
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png")[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_colour_keeps_its_brightness(tmp_path, suffix):
    path = tmp_path / f"deep.{suffix}"
    blue_green_red = np.array([[[0, 32768, 65535]]], np.uint16)
    cv2.imwrite(str(path), blue_green_red)
    np.testing.assert_allclose(read_image(path)[0, 0], [255, 128, 0], atol=1)


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=98)
    red, green, blue = read_image(tmp_path / "print.jpg")[4, 4]
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("suffix", ["bmp", "webp", "tiff", "gif", "jpeg"])
def test_common_formats_are_read(tmp_path, photograph, suffix):
    path = tmp_path / f"image.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(photograph).save(path, **options)
    difference = read_image(path).astype(int) - photograph
    assert np.abs(difference).mean() < 8


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"gone\.png: the file does not exist; restore"):
        read_image(tmp_path / "gone.png")


def test_zero_byte_file_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(UnreadableImageError, match=r"empty\.png: the file is empty; copy it again"):
        read_image(tmp_path / "empty.png")


def test_text_named_png_is_named(tmp_path):
    (tmp_path / "text.png").write_text("not an image at all")
    with pytest.raises(
        UnreadableImageError, match=r"text\.png: the content is no image .*b'not an"
    ):
        read_image(tmp_path / "text.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp"])
def test_truncated_file_is_named(tmp_path, suffix):
    generator = np.random.default_rng(0)
    data = io.BytesIO()
    noise = Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noise.save(data, format={"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    with pytest.raises(UnreadableImageError, match=r"cut\.\w+: the "):
        read_image(path)


def test_too_many_pixels_are_refused(tmp_path, save):
    save(tmp_path / "bomb.png", np.zeros((20, 20), np.uint8))
    with pytest.raises(UnreadableImageError, match=r"too many pixels \(20 x 20 .*below 399"):
        read_image(tmp_path / "bomb.png", max_pixels=399)


def test_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(UnreadableImageError, match="cannot be opened"):
        read_image(tmp_path)


def test_error_survives_the_way_from_a_worker():
    error = UnreadableImageError("a.png", "the file is empty", "copy it again")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_mask_of_zero_and_one_counts_as_such(tmp_path, dtype):
    Image.fromarray(np.array([[0, 1]], dtype)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), [[0.0, 1.0]])


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_mask_is_scaled_by_the_range_of_its_type(tmp_path, dtype, top):
    Image.fromarray(np.array([[0, top // 5, top]], dtype)).save(tmp_path / "mask.png")
    np.testing.assert_allclose(read_mask(tmp_path / "mask.png"), [[0, 0.2, 1]], atol=1e-6)


def test_soft_mask_is_not_stretched(tmp_path):
    Image.fromarray(np.array([[0, 51]], np.uint8)).save(tmp_path / "mask.png")
    np.testing.assert_allclose(read_mask(tmp_path / "mask.png"), [[0.0, 0.2]], atol=1e-6)


def test_float_mask_is_taken_as_it_is(tmp_path):
    Image.fromarray(np.array([[0, 0.25, 1]], np.float32)).save(tmp_path / "mask.tif")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), [[0, 0.25, 1]])


def test_red_region_of_a_colour_mask_counts_fully(tmp_path):
    Image.fromarray(np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), [[1.0, 0.0]])


def test_palette_mask_is_read_by_colour_not_by_index(tmp_path):
    mask = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    mask.putpalette([255, 255, 255, 0, 0, 0])
    mask.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), [[1.0, 0.0]])


def test_bilevel_mask_is_read(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), [[1.0, 0.0]])


def test_transparent_part_of_a_mask_is_authentic(tmp_path):
    pixels = np.array([[[255, 255, 255, 255], [255, 255, 255, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), [[1.0, 0.0]])


@pytest.mark.parametrize("mode", ["strict", "skip"])
def test_mask_of_another_size_is_refused_with_both_sizes(tmp_path, save, mode):
    image = save(tmp_path / "image.png", np.zeros((4, 6, 3), np.uint8))
    mask = save(tmp_path / "mask.png", np.zeros((2, 3), np.uint8))
    with pytest.raises(MaskSizeError, match="3 x 2 pixels, its image .* is 6 x 4"):
        read_image_and_mask(image, mask, mode)


def test_mask_of_another_size_is_resized_to_the_nearest(tmp_path, save):
    image = save(tmp_path / "image.png", np.zeros((2, 4, 3), np.uint8))
    mask = save(tmp_path / "mask.png", np.array([[0, 255]], np.uint8))
    _, resized = read_image_and_mask(image, mask, "resize")
    np.testing.assert_array_equal(resized, [[0, 0, 1, 1], [0, 0, 1, 1]])


def test_mask_drawn_on_stored_pixels_is_turned_with_its_photograph(tmp_path, photograph):
    mask = np.zeros(photograph.shape[:2], np.uint8)
    photograph[2:5, 3:9] = mask[2:5, 3:9] = 255
    Image.fromarray(photograph).save(tmp_path / "i.png", exif=exif_with_orientation(6))
    Image.fromarray(mask).save(tmp_path / "m.png")
    image, turned = read_image_and_mask(tmp_path / "i.png", tmp_path / "m.png", "strict")
    np.testing.assert_array_equal(turned == 1, image.min(axis=2) == 255)


def test_inverted_mask_is_turned_over(tmp_path, save):
    image = save(tmp_path / "image.png", np.zeros((1, 2, 3), np.uint8))
    mask = save(tmp_path / "mask.png", np.array([[0, 255]], np.uint8))
    _, read = read_image_and_mask(image, mask, mask_rule="inverted")
    np.testing.assert_array_equal(read, [[1.0, 0.0]])


def jpeg(path, pixels: np.ndarray, **options):
    Image.fromarray(pixels).save(path, "JPEG", **options)
    return path


@pytest.fixture
def noisy() -> np.ndarray:
    """(90, 130, 3) photograph-like: coarse structure and noise."""
    random = np.random.default_rng(0)
    coarse = cv2.resize(random.integers(0, 256, (9, 13, 3), np.uint8), (130, 90))
    return np.clip(coarse + random.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 50, "subsampling": 2},
        {"quality": 92, "subsampling": 1, "progressive": True},
        {"quality": 100, "subsampling": 0},
    ],
)
def test_jpeg_pixels_are_those_of_pillow(tmp_path, noisy, mode, options):
    path = tmp_path / "a.jpg"
    Image.fromarray(noisy).convert(mode).save(path, **options)
    expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)


def test_fast_decoder_is_used_for_jpeg_and_left_when_it_fails(tmp_path, noisy, monkeypatch):
    path = jpeg(tmp_path / "a.jpg", noisy)
    expected = read_image(path)
    calls = []

    def fail(content):
        calls.append(1)
        raise RuntimeError("not today")

    monkeypatch.setattr("loupe.data.images.decoding.decode_jpeg", fail)
    np.testing.assert_array_equal(read_image(path), expected)
    assert calls == [1]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_jpeg_is_an_error(tmp_path, noisy, share):
    content = jpeg(tmp_path / "a.jpg", noisy).read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnreadableImageError, match="the file is damaged"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("at_least", "size"),
    [
        (0, (90, 130)),
        (46, (90, 130)),
        (45, (45, 65)),
        (23, (45, 65)),
        (22, (23, 33)),
        (5, (12, 17)),
    ],
)
def test_a_jpeg_is_reduced_as_far_as_both_sides_allow(tmp_path, noisy, at_least, size):
    path = jpeg(tmp_path / "a.jpg", noisy)
    assert read_image(path, at_least=at_least).shape == (*size, 3)


def test_a_reduced_jpeg_shows_the_same_picture_upright(tmp_path, noisy):
    exif = exif_with_orientation(6)
    path = jpeg(tmp_path / "a.jpg", noisy, exif=exif, quality=95)
    whole, reduced = read_image(path), read_image(path, at_least=40)
    assert (whole.shape, reduced.shape) == ((130, 90, 3), (65, 45, 3))
    small = cv2.resize(whole, (45, 65), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - reduced).mean() < 2


def test_other_formats_are_never_reduced(tmp_path, noisy):
    Image.fromarray(noisy).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", at_least=5), noisy)


def test_the_mask_of_a_reduced_image_keeps_its_size(tmp_path, noisy):
    path = jpeg(tmp_path / "a.jpg", noisy, exif=exif_with_orientation(6))
    mask = np.zeros((90, 130), np.uint8)
    mask[:20] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    image, found = read_image_and_mask(path, tmp_path / "m.png", "strict", at_least=20)
    assert image.shape == (33, 23, 3)
    expected = read_image_and_mask(path, tmp_path / "m.png", "strict")[1]
    np.testing.assert_array_equal(found, expected)


def test_size_comes_from_the_header_or_else_from_the_pixels(tmp_path, noisy):
    path = jpeg(tmp_path / "a.jpg", noisy, exif=exif_with_orientation(8))
    assert read_size(path) == (130, 90)
    cv2.imwrite(str(tmp_path / "deep.tif"), noisy.astype(np.uint16) * 257)
    assert read_size(tmp_path / "deep.tif") == (90, 130)
    with pytest.raises(UnreadableImageError, match="does not exist"):
        read_size(tmp_path / "gone.jpg")


@pytest.fixture
def large_entry(tmp_path, noisy):
    """A forged JPEG of 260 x 180 pixels."""
    path = jpeg(tmp_path / "i.jpg", cv2.resize(noisy, (260, 180)), quality=95)
    mask = np.zeros((180, 260), np.uint8)
    mask[40:100, 30:150] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    return make_dataset_dict(path, "i", label=1, mask_file_name=tmp_path / "m.png")


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_reduced_decoding_changes_pixels_a_little_and_nothing_else(large_entry, cfg, resize):
    cfg.INPUT.RESIZE = resize
    cfg.INPUT.SIZE = 40
    for is_train in (True, False):
        cfg.INPUT.REDUCED_DECODING = False
        whole = ForgeryDatasetMapper(cfg, is_train=is_train)(large_entry)
        cfg.INPUT.REDUCED_DECODING = True
        reduced = ForgeryDatasetMapper(cfg, is_train=is_train)(large_entry)
        assert whole.keys() == reduced.keys()
        difference = (whole.pop("image").float() - reduced.pop("image").float()).abs()
        assert 0 < difference.mean() < 1
        if is_train:
            # In training it is a window of the augmented image, at whatever scale.
            assert whole.pop("window")[:2] == reduced.pop("window")[:2] == (0, 0)
            assert (whole.pop("mask") - reduced.pop("mask")).abs().max() < 0.3
            assert (whole.pop("regions") != reduced.pop("regions")).float().mean() < 0.02
        else:
            truths = [item.pop("ground_truth") for item in (whole, reduced)]
            np.testing.assert_array_equal(truths[0].mask, truths[1].mask)
        assert whole == reduced


@pytest.mark.parametrize(("resize", "size"), [("crop", 20), ("squash", 50)])
def test_reduced_decoding_leaves_windows_and_smaller_images_alone(large_entry, cfg, resize, size):
    cfg.INPUT.RESIZE, cfg.INPUT.SIZE = resize, size
    cfg.INPUT.REDUCED_DECODING = False
    whole = ForgeryDatasetMapper(cfg, is_train=False)(large_entry)
    cfg.INPUT.REDUCED_DECODING = True
    reduced = ForgeryDatasetMapper(cfg, is_train=False)(large_entry)
    assert (whole["image"] == reduced["image"]).all()


@pytest.mark.parametrize("label", [0, 1, None])
def test_reduced_images_without_masks_have_their_own_size(large_entry, cfg, label):
    cfg.INPUT.SIZE, cfg.INPUT.REDUCED_DECODING = 40, True
    entry = large_entry | {"label": label, "mask_file_name": None, "wholly_forged": label == 1}
    item = ForgeryDatasetMapper(cfg, is_train=False)(entry)
    assert (item["height"], item["width"]) == (180, 260)
    assert item["window"] == (0, 0, 260, 180)
    if label:
        assert item["ground_truth"].mask.shape == (180, 260)
    if label is not None:
        training = ForgeryDatasetMapper(cfg, is_train=True)(entry)
        assert training["mask"].mean() == label


def test_a_forgery_thinner_than_a_reduced_pixel_is_kept(tmp_path, cfg):
    image = np.full((400, 400, 3), 90, np.uint8)
    mask = np.zeros((400, 400), np.uint8)
    mask[201, 100:300] = 255
    Image.fromarray(image).save(tmp_path / "i.jpg")
    Image.fromarray(mask).save(tmp_path / "m.png")
    entry = make_dataset_dict(tmp_path / "i.jpg", "i", label=1, mask_file_name=tmp_path / "m.png")
    cfg.INPUT.SIZE, cfg.INPUT.REDUCED_DECODING = 40, True
    item = ForgeryDatasetMapper(cfg, is_train=True)(entry)
    assert item["mask"].max() >= 0.5
    assert item["regions"].max() == 1


@pytest.mark.parametrize("rule", ["", "green", "inverted"])
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_grey_mask_has_two_sides_whatever_its_file(tmp_path, rule, ending):
    path = tmp_path / f"grey.{ending}"
    Image.fromarray(np.full((8, 12), 255, np.uint8)).save(path)
    mask = read_mask(path, rule)
    assert mask.shape == (8, 12)
    assert (mask == (rule != "inverted")).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_back_undoes_turning(photograph, orientation):
    there = turn(photograph, orientation)
    np.testing.assert_array_equal(turn_back(there, orientation), photograph)
