"""What is damaged is refused, or read and said; nothing is read as if it were whole."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from loupe.data.images import jpeg
from loupe.data.images.decoding import read_picture, read_size
from loupe.data.images.errors import UnreadableImageError
from loupe.data.images.jpeg import CUT_SHORT, DAMAGED_INSIDE
from loupe.data.images.masks import read_mask
from tests.data.images.files import chunk, encoded, noise, png

PIXELS = noise(30, 40)
ROWS = b"".join(b"\x00" + row.tobytes() for row in PIXELS)
WHOLE = encoded(PIXELS, "PNG")


def refuse(content: bytes, words: str = "the file is damaged") -> None:
    """Expects the same refusal of an image and of a mask."""
    for read in (read_picture, read_mask):
        with pytest.raises(UnreadableImageError, match=words):
            read(content)


def test_a_size_is_never_taken_from_a_damaged_header(tmp_path):
    changed = bytearray(WHOLE)
    changed[19] ^= 1  # Of the width, which reading the size alone would believe.
    (tmp_path / "a.png").write_bytes(changed)
    with pytest.raises(UnreadableImageError, match="wrong checksum in IHDR"):
        read_size(tmp_path / "a.png")


def test_every_changed_byte_of_a_png_is_noticed():
    small = encoded(noise(4, 5), "PNG", pnginfo=None, exif=Image.Exif())
    for place in range(len(small)):
        for change in (1, 0x80):
            changed = bytearray(small)
            changed[place] ^= change
            with pytest.raises(UnreadableImageError):
                read_picture(bytes(changed))


@pytest.mark.parametrize("length", [8, 20, 33, 60, len(WHOLE) - 12, len(WHOLE) - 1])
def test_a_png_that_is_cut_short_is_refused(length):
    refuse(WHOLE[:length])


def test_a_png_with_right_checksums_and_broken_pixels_is_refused():
    stream = bytearray(zlib.compress(ROWS))
    stream[len(stream) // 2] ^= 0x10
    refuse(png(30, 40, bytes(stream)), "its pixels: Error|pixels than its size")
    refuse(png(30, 40, zlib.compress(ROWS)[:-4] + bytes(4)), "incorrect data check")
    refuse(png(30, 40, zlib.compress(ROWS)[:-4]), "fewer pixels")
    refuse(png(30, 40, zlib.compress(ROWS[:-9])), "fewer pixels")
    refuse(png(30, 40, zlib.compress(ROWS + bytes(9))), "more pixels")
    refuse(png(30, 40, zlib.compress(b"\x07" + ROWS[1:])), "the file is damaged")


def test_an_interlaced_png_is_read_whole_and_refused_cut_short():
    one = png(1, 1, zlib.compress(b"\x00\x4d"), colour=0, interlaced=1)
    np.testing.assert_array_equal(read_picture(one).pixels, [[[0x4D] * 3]])
    sizes = ((4, 5), (4, 5), (4, 10), (8, 10), (7, 20), (15, 20), (15, 40))
    passes = b"".join((b"\x00" + bytes([90]) * width * 3) * height for height, width in sizes)
    content = png(30, 40, zlib.compress(passes), interlaced=1)
    assert (read_picture(content).pixels == 90).all()
    refuse(png(30, 40, zlib.compress(passes[:-700]), interlaced=1), "fewer pixels")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (chunk(b"IDAT", zlib.compress(ROWS)[:9]) + chunk(b"tIME", bytes(7)), "in one piece"),
        (chunk(b"PLTE", bytes(3)) * 2, "twice"),
        (WHOLE[8:33], "twice"),  # The header once more.
        (chunk(b"JUNK", b""), "unknown chunk b'JUNK'"),
    ],
)
def test_a_png_with_chunks_out_of_order_is_refused(more, words):
    refuse(png(30, 40, zlib.compress(ROWS), more=more), words)


def test_a_png_without_its_palette_or_after_its_pixels_is_refused():
    refuse(png(1, 1, zlib.compress(b"\x00\x00"), colour=3), "no palette")
    body = chunk(b"IDAT", zlib.compress(b"\x00\x00")) + chunk(b"PLTE", bytes(3))
    whole = png(1, 1, zlib.compress(b"\x00\x00"), colour=3)
    start, end = whole.index(b"IDAT") - 4, whole.index(b"IEND") - 4
    refuse(whole[:start] + body + whole[end:], "out of order")


def test_text_of_any_size_does_not_keep_a_png_from_being_read():
    text = b"workflow\x00\x00" + zlib.compress(b"node " * 1_000_000)
    exif = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    more = chunk(b"zTXt", text) * 3 + chunk(b"iCCP", b"p\x00\x00junk") + chunk(b"eXIf", exif)
    picture = read_picture(png(30, 40, zlib.compress(ROWS), more=more) + b"more behind the end")
    np.testing.assert_array_equal(picture.pixels, PIXELS)
    assert picture.orientation == 6
    assert picture.warnings == ()


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "BMP", "GIF", "AVIF", "JPEG2000"])
def test_other_formats_that_are_cut_short_are_refused(kind):
    content = encoded(noise(64, 64), kind)
    refuse(content[: len(content) // 2])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_a_header_alone_is_refused(kind):
    refuse(encoded(noise(64, 64), kind)[:40])


@pytest.fixture
def photograph() -> bytes:
    return encoded(noise(160, 240), "JPEG", quality=90)


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.95])
def test_a_jpeg_that_is_cut_short_is_read_and_said(photograph, fraction):
    whole = read_picture(photograph).pixels
    cut = read_picture(photograph[: int(len(photograph) * fraction)])
    assert CUT_SHORT in cut.warnings
    rows = int(len(whole) * (fraction - 0.15))
    np.testing.assert_array_equal(cut.pixels[:rows], whole[:rows])


def test_a_mask_that_is_cut_short_is_said(photograph, tmp_path):
    from loupe.data.images.masks import read_stored_pair

    (tmp_path / "i.jpg").write_bytes(photograph)
    (tmp_path / "m.jpg").write_bytes(photograph[:-500])
    pair = read_stored_pair(tmp_path / "i.jpg", tmp_path / "m.jpg")
    assert pair.warnings == (f"mask: {CUT_SHORT}",)


def test_a_jpeg_of_two_frames_is_refused(photograph):
    start = photograph.index(b"\xff\xc0")
    end = start + 2 + int.from_bytes(photograph[start + 2 : start + 4], "big")
    refuse(photograph[:end] + photograph[start:], "two frames")


def test_a_jpeg_that_ends_before_its_picture_is_refused(photograph):
    refuse(photograph[: photograph.index(b"\xff\xda")], "ends before its picture")


def test_markers_where_none_can_be_are_said_without_any_library(photograph, monkeypatch):
    monkeypatch.setattr(jpeg, "_HAS_SIMPLEJPEG", False)
    restarts = encoded(noise(160, 240), "JPEG", quality=90, restart_marker_blocks=20)
    place = restarts.index(b"\xff\xd3")
    swapped = restarts[:place] + b"\xff\xd6" + restarts[place + 2 :]
    inside = bytearray(photograph)
    inside[len(inside) // 2 : len(inside) // 2 + 2] = b"\xff\xd1"
    for broken in (swapped, bytes(inside)):
        assert read_picture(broken).warnings == (DAMAGED_INSIDE,)
    assert read_picture(restarts).warnings == ()


def test_libjpegs_own_warnings_are_said_and_the_pixels_are_pillows(photograph):
    pytest.importorskip("simplejpeg")
    start, random = photograph.index(b"\xff\xda") + 14, np.random.default_rng(0)
    noticed = 0
    for _ in range(60):
        changed = bytearray(photograph)
        changed[random.integers(start, len(changed) - 2)] ^= random.integers(1, 256)
        try:
            picture = read_picture(bytes(changed))
        except UnreadableImageError:
            noticed += 1
            continue
        with Image.open(io.BytesIO(changed)) as image:
            np.testing.assert_array_equal(picture.pixels, np.asarray(image))
        noticed += picture.warnings != ()
    assert noticed >= 15
