"""Cost is decided from headers, and what is no file is never opened."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from loupe.data.images.decoding import read_image, read_picture, read_size
from loupe.data.images.errors import UnreadableImageError
from loupe.data.images.limits import Limits
from loupe.data.images.masks import read_mask
from tests.data.images.files import encoded, noise, png


def refuse(content: bytes, words: str) -> None:
    for read in (read_picture, read_mask):
        with pytest.raises(UnreadableImageError, match=words):
            read(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000"])
def test_pixels_and_memory_are_bounded_in_every_format(kind):
    content = encoded(noise(40, 50), kind)
    fits = Limits(pixels=2000, bytes=10**6)
    assert read_picture(content, limits=fits).pixels.shape == (40, 50, 3)
    with pytest.raises(UnreadableImageError, match=r"too many pixels \(50 x 40\); .*1999 pixels"):
        read_picture(content, limits=fits._replace(pixels=1999))
    with pytest.raises(UnreadableImageError, match="take 0 MB to read; .*MAX_IMAGE_BYTES"):
        read_picture(content, limits=fits._replace(bytes=2000 * 3 + len(content)))


def deep_tiff() -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, noise(40, 50).astype(np.uint16), photometric="rgb")
    return stream.getvalue()


def test_opencvs_path_is_bounded_too():
    with pytest.raises(UnreadableImageError, match="too many pixels"):
        read_picture(deep_tiff(), limits=Limits(pixels=1999))


@pytest.mark.parametrize("tag", [256, 257])
def test_a_tiff_that_announces_a_giant_is_refused(tag):
    content = bytearray(deep_tiff())
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        place = file.pages[0].tags[tag].valueoffset
        size = {3: "<H", 4: "<I"}[file.pages[0].tags[tag].dtype]
    struct.pack_into(size, content, place, 60_000 if size == "<H" else 2**31)
    refuse(bytes(content), "pixels|damaged")


def test_tags_that_repeat_a_large_place_are_refused():
    entries = b"".join(struct.pack("<HHII", 40_000 + i, 7, 90_000, 8) for i in range(900))
    content = b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", 900) + entries + bytes(90_000)
    refuse(content, "tags are larger than the file")
    refuse(b"II*\x00\x08\x00\x00\x00\xff\xff" + bytes(10**6), "65535 tags, more than")


def test_tiny_strips_by_the_million_are_refused():
    values = {256: 1, 257: 2**22, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    refuse(
        b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", 9) + entries + bytes(99),
        "4194304 strips or tiles, more than",
    )


def test_a_deep_tiff_whose_pixels_lie_behind_its_end_is_refused():
    content = bytearray(deep_tiff())
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        place = file.pages[0].tags[273].valueoffset
    struct.pack_into("<I", content, place, len(content) - 100)
    refuse(bytes(content), "it is cut short")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({279: 100}, "fewer pixels than its size"), ({322: 60_000, 323: 60_000}, "MB to read")],
)
def test_a_tiff_of_too_few_bytes_or_of_a_giant_tile_is_refused(changes, words):
    stream = io.BytesIO()
    options = {"tile": (32, 64)} if 322 in changes else {}
    tifffile.imwrite(stream, noise(40, 50).astype(np.uint16), photometric="rgb", **options)
    content = bytearray(stream.getvalue())
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        for tag, value in changes.items():
            found = file.pages[0].tags[tag]
            struct.pack_into({3: "<H", 4: "<I"}[found.dtype], content, found.valueoffset, value)
    refuse(bytes(content), words)


def test_a_mask_is_bounded_by_its_floats():
    content = encoded(np.zeros((40, 50), np.uint8), "PNG")
    read_picture(content, limits=Limits(bytes=12_000))
    with pytest.raises(UnreadableImageError, match="take 0 MB to read"):
        read_mask(content, limits=Limits(bytes=12_000))


def test_scans_of_a_jpeg_are_counted():
    content = encoded(noise(64, 64), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    refuse(content[:last] + content[last:-2] * 300 + b"\xff\xd9", "scans, more than 200")


def test_scans_of_a_large_jpeg_are_bounded_by_what_they_visit():
    content = bytearray(encoded(noise(64, 64), "JPEG", progressive=True))
    struct.pack_into(">HH", content, content.index(b"\xff\xc2") + 5, 9000, 9000)
    last = content.rindex(b"\xff\xda")
    many = content[:last] + content[last:-2] * 30 + b"\xff\xd9"
    refuse(bytes(many), "scans of 9000 x 9000 pixels")


def test_numbers_written_as_text_are_bounded():
    refuse(b"P2\n1500 1300\n255\n" + b"7 " * 2_200_000, "4400017 bytes of numbers as text")


def test_a_giant_webp_never_reaches_its_decoder(monkeypatch):
    content = bytearray(encoded(noise(40, 50), "WEBP", lossless=True))
    struct.pack_into("<I", content, 21, 0x3FFF | 0x3FFF << 14)
    monkeypatch.setattr("loupe.data.images.formats.open_image", None)
    refuse(bytes(content), r"too many pixels \(16384 x 16384\)")


def test_tiles_of_a_jpeg_2000_are_counted():
    content = bytearray(encoded(noise(64, 64), "JPEG2000", no_jp2=True))
    struct.pack_into(">II", content, 8, 2**13, 2**13)
    struct.pack_into(">II", content, 24, 16, 16)
    refuse(bytes(content), "262144 tiles, more than")


def test_a_deflate_bomb_in_a_small_png_is_refused():
    refuse(png(3, 3, zlib.compress(bytes(10**8))), "more pixels than its size")


def test_the_limits_can_be_set_from_outside():
    program = "from loupe.data.images.limits import LIMITS; print(*LIMITS)"
    environment = os.environ | {"LOUPE_MAX_IMAGE_PIXELS": "7", "LOUPE_MAX_IMAGE_BYTES": "x"}
    command = [sys.executable, "-c", program]
    wrong = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "LOUPE_MAX_IMAGE_BYTES is 'x'; give a number" in wrong.stderr
    environment["LOUPE_MAX_IMAGE_BYTES"] = "99"
    right = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert right.stdout == "7 99\n"


def test_pictures_are_read_without_loading_torch():
    program = "import sys, loupe.data.images.masks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def special(folder, what):
    path = folder / "a.png"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "loop":
        path.symlink_to(path)
    elif what == "folder":
        path.mkdir()
    elif what == "empty":
        path.touch()
    elif what != "missing":
        path.symlink_to({"device": "/dev/zero", "nothing": "gone.png"}[what])
    return path


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("pipe", "a named pipe, not a file"),
        ("device", "a device, not a file"),
        ("folder", "a folder, not a file"),
        ("loop", "a loop of links"),
        ("nothing", "a link to nothing"),
        ("missing", "the file does not exist; restore it"),
        ("empty", "the file is empty; copy it again"),
    ],
)
def test_what_is_no_file_is_named_and_not_opened(tmp_path, what, words, monkeypatch):
    path = special(tmp_path, what)
    for read in (read_image, read_mask, read_size):
        with monkeypatch.context() as patch:
            if what != "empty":
                patch.setattr(os, "open", None)
            with pytest.raises(UnreadableImageError, match=rf"a\.png: {words}"):
                read(path)


def test_a_pipe_that_takes_the_name_of_a_file_is_no_file(tmp_path, monkeypatch):
    path, original = special(tmp_path, "pipe"), os.stat
    monkeypatch.setattr(
        os, "stat", lambda name, **more: original(__file__ if name == path else name, **more)
    )
    with pytest.raises(UnreadableImageError, match=r"a\.png: a named pipe, not a file"):
        read_image(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(), "PNG"))
    with pytest.raises(UnreadableImageError, match=r"the file has \d+ bytes, more than 100"):
        read_image(path, limits=Limits(bytes=100))


def test_a_link_to_an_image_is_an_image(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), noise())


def test_a_name_that_no_system_takes_is_an_error_of_the_file():
    with pytest.raises(UnreadableImageError, match="cannot be opened"):
        read_image("a\x00b.png")
