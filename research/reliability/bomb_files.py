"""Small files that announce, or unpack to, a great deal: one maker for each kind."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

Tags = dict[int, int | tuple[int, ...]]


def _encoded(
    kind: str, height: int = 48, width: int = 64, mode: str = "RGB", **options: object
) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, height), 7 if mode == "L" else None).save(stream, kind, **options)
    return stream.getvalue()


def _noise(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(
    height: int, width: int, row: int, *, depth: int = 8, colour: int = 2, more: bytes = b""
) -> bytes:
    """A PNG of zeros with rows of so many bytes; 0 = without pixels."""
    packer = zlib.compressobj(9)
    stream = b"".join(packer.compress(bytes(row)) for _ in range(height)) if row else b"\x78"
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = _chunk(b"IHDR", head) + more + _chunk(b"IDAT", stream + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + body + _chunk(b"IEND", b"")


def _of_zeros(size: int) -> bytes:
    packer = zlib.compressobj(9)
    pieces = [packer.compress(bytes(1 << 20)) for _ in range(-(-size >> 20))]
    return b"".join(pieces) + packer.flush()


def _jpeg_of_size(content: bytes, height: int, width: int) -> bytes:
    """The JPEG with another size in its frame: what is missing is grey."""
    changed = bytearray(content)
    place = max(changed.find(b"\xff\xc0\x00"), changed.find(b"\xff\xc2\x00"))
    struct.pack_into(">HH", changed, place + 5, height, width)
    return bytes(changed)


def _with_scans(content: bytes, number: int) -> bytes:
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * number + b"\xff\xd9"


def _tiff(values: Tags, pixels: bytes, *, big: bool = False) -> bytes:
    """A TIFF of the tags; strips or tiles all lie at 8, where the pixels are."""
    size, number = (20, "Q") if big else (12, "I")
    start = (16 if big else 8) + len(pixels)
    place = start + struct.calcsize("Q" if big else "H") + size * len(values) + 8
    entries, tail = b"", b""
    for tag, value in sorted(values.items()):
        items = value if isinstance(value, tuple) else (value,)
        data = struct.pack(f"<{len(items)}{number}", *items)
        kind = 16 if big else 4
        if len(items) > 1:
            data, tail = struct.pack(f"<{number}", place + len(tail)), tail + data
        entries += struct.pack(f"<HH{number}", tag, kind, len(items)) + data
    count = struct.pack("<Q" if big else "<H", len(values))
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, start) if big else None
    head = head or struct.pack("<2sHI", b"II", 42, start)
    return head + pixels + count + entries + bytes(8) + tail


def _rgb16(height: int, width: int, **tags: int | tuple[int, ...]) -> Tags:
    values = {256: width, 257: height, 258: (16, 16, 16), 259: 1, 262: 2, 273: 8, 277: 3}
    return values | {278: height, 279: 99, 284: 1} | {int(k[1:]): v for k, v in tags.items()}


def _png_more_pixels_than_announced() -> bytes:
    head = struct.pack(">IIBBBBB", 3, 3, 8, 2, 0, 0, 0)
    body = _chunk(b"IHDR", head) + _chunk(b"IDAT", _of_zeros(1 << 31)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _png_text() -> bytes:
    text = _chunk(b"zTXt", b"a\x00\x00" + _of_zeros(1 << 28))
    more = text * 20 + _chunk(b"iTXt", b"b\x00\x01\x00\x00\x00" + _of_zeros(1 << 28))
    return _png(40, 40, 121, more=more)


def _jpeg_exif_that_repeats() -> bytes:
    entries = b"".join(struct.pack("<HHII", 40_000 + i, 7, 40_000, 8) for i in range(2000))
    block = b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + struct.pack("<H", 2000) + entries
    block += bytes(65_000 - len(block))
    content = _noise("JPEG")
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + content[2:]


def _jpeg_many_segments() -> bytes:
    content = _noise("JPEG")
    return content[:2] + b"\xff\xfe\x00\x03x" * 2_000_000 + content[2:]


def _tiff_deflate() -> bytes:
    pixels = _of_zeros(7000 * 7000 * 6)
    return _tiff(_rgb16(7000, 7000, t259=8, t279=len(pixels)), pixels)


def _tiff_deflate_planar() -> bytes:
    pixels = _of_zeros(7000 * 7000 * 2)
    tags = {"t259": 8, "t284": 2, "t273": (8, 8, 8), "t279": (len(pixels),) * 3}
    return _tiff(_rgb16(7000, 7000, **tags), pixels)


def _tiff_giant_tile() -> bytes:
    pixels = _of_zeros(1 << 26)
    tags = {"t259": 8, "t322": 65_520, "t323": 65_520, "t324": 8, "t325": len(pixels)}
    return _tiff(_rgb16(40, 40, **tags), pixels)


def _tiff_tiny_strips() -> bytes:
    values = {256: 1, 257: 10**6, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1}
    return _tiff(values | {273: (8,) * 10**6, 279: (1,) * 10**6}, bytes(9))


def _tiff_tiny_tiles() -> bytes:
    values = {256: 16 * 700, 257: 16 * 700, 258: 8, 259: 1, 262: 1, 277: 1, 322: 16, 323: 16}
    return _tiff(values | {324: (8,) * 490_000, 325: (256,) * 490_000}, bytes(256))


def _tiff_tags_that_repeat() -> bytes:
    entries = b"".join(struct.pack("<HHII", 40_000 + i, 7, 10**6, 8) for i in range(1000))
    start = struct.pack("<2sHI", b"II", 42, 8 + 10**6)
    return start + bytes(10**6) + struct.pack("<H", 1000) + entries + bytes(4)


def _tiff_many_pictures() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("L", (8, 8)) for _ in range(2000)]
    frames[0].save(stream, "TIFF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def _webp_announced() -> bytes:
    content = bytearray(_noise("WEBP", lossless=True))
    struct.pack_into("<I", content, 21, 0x3FFF | 0x3FFF << 14)
    return bytes(content)


def _webp_canvas() -> bytes:
    flags = b"\x00" * 4 + b"\xff\xff\xff" + b"\xff\x0f\x00"
    content = _noise("WEBP")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + flags + content[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _webp_many_frames() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (200, 200), (i % 256, 0, 0)) for i in range(2000)]
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:], method=0)
    return stream.getvalue()


def _gif_many_frames() -> bytes:
    content = _encoded("GIF", 64, 64, mode="L")
    start = content.index(b",")
    return content[:start] + content[start:-1] * 50_000 + b";"


def _bmp_announced() -> bytes:
    content = bytearray(_encoded("BMP"))
    struct.pack_into("<ii", content, 18, 60_000, 60_000)
    return bytes(content)


def _jpeg2000_announced() -> bytes:
    content = bytearray(_noise("JPEG2000", no_jp2=True))
    struct.pack_into(">II", content, 8, 2**31 - 1, 2**31 - 1)
    return bytes(content)


def _avif_announced() -> bytes:
    content = bytearray(_noise("AVIF"))
    place = content.index(b"ispe") + 8
    struct.pack_into(">II", content, place, 30_000, 30_000)
    return bytes(content)


BOMBS: dict[str, Callable[[], bytes]] = {
    "png_announced": lambda: _png(60_000, 60_000, 0),
    "png_as_large_as_allowed_in_colour": lambda: _png(10_700, 10_700, 10_700 * 3 + 1),
    "png_as_large_as_allowed_in_grey": lambda: _png(13_300, 13_300, 13_301, colour=0),
    "png_bilevel": lambda: _png(13_300, 13_300, 1664, depth=1, colour=0),
    "png_16_bits_and_alpha": lambda: _png(9_000, 9_000, 72_001, depth=16, colour=6),
    "png_more_pixels_than_announced": _png_more_pixels_than_announced,
    "png_text": _png_text,
    "png_colour_profile": lambda: _png(
        40, 40, 121, more=_chunk(b"iCCP", b"p\x00\x00" + _of_zeros(1 << 31))
    ),
    "png_many_chunks": lambda: _png(40, 40, 121, more=_chunk(b"tEXt", b"a\x00") * 1_000_000),
    "jpeg_announced": lambda: _jpeg_of_size(_noise("JPEG"), 65_500, 65_500),
    "jpeg_as_large_as_allowed": lambda: _jpeg_of_size(_noise("JPEG"), 13_300, 13_300),
    "jpeg_progressive_as_large_as_allowed": lambda: _jpeg_of_size(
        _noise("JPEG", progressive=True, subsampling=0), 9_400, 9_400
    ),
    "jpeg_cmyk": lambda: _jpeg_of_size(_encoded("JPEG", mode="CMYK"), 8_500, 8_500),
    "jpeg_thousands_of_scans": lambda: _with_scans(
        _jpeg_of_size(_noise("JPEG", progressive=True), 4000, 4000), 3000
    ),
    "jpeg_as_many_scans_as_allowed": lambda: _with_scans(
        _jpeg_of_size(_noise("JPEG", progressive=True), 3150, 3150), 190
    ),
    "jpeg_exif_that_repeats": _jpeg_exif_that_repeats,
    "jpeg_many_segments": _jpeg_many_segments,
    "jpeg_many_pictures": lambda: _noise("JPEG") * 20_000,
    "tiff_announced": lambda: _tiff(_rgb16(20_000, 20_000), bytes(99)),
    "bigtiff_announced": lambda: _tiff(_rgb16(2**40, 2**40, t273=16), bytes(99), big=True),
    "tiff_deflate": _tiff_deflate,
    "tiff_deflate_planar": _tiff_deflate_planar,
    "tiff_giant_tile": _tiff_giant_tile,
    "tiff_tiny_strips": _tiff_tiny_strips,
    "tiff_tiny_tiles": _tiff_tiny_tiles,
    "tiff_tags_that_repeat": _tiff_tags_that_repeat,
    "tiff_many_pictures": _tiff_many_pictures,
    "webp_announced": _webp_announced,
    "webp_canvas": _webp_canvas,
    "webp_as_large_as_allowed": lambda: _encoded(
        "WEBP", 5_900, 5_900, lossless=True, method=0, quality=0
    ),
    "webp_many_frames": _webp_many_frames,
    "gif_announced": lambda: b"GIF89a\xff\xff\xff\xff" + _encoded("GIF")[10:],
    "gif_as_large_as_allowed": lambda: _encoded("GIF", 8_100, 8_100, mode="L"),
    "gif_many_frames": _gif_many_frames,
    "bmp_announced": _bmp_announced,
    "jpeg2000_announced": _jpeg2000_announced,
    "jpeg2000_many_tiles": lambda: _encoded("JPEG2000", 1270, 1270, mode="L", tile_size=(10, 10)),
    "jpeg2000_as_large_as_allowed": lambda: _encoded("JPEG2000", 4_400, 4_400),
    "pnm_announced": lambda: b"P6\n60000 60000\n255\n" + bytes(99),
    "pnm_as_text": lambda: b"P2\n1500 1300\n255\n" + b"7 " * 1_950_000,
    "avif_announced": _avif_announced,
    "avif_large": lambda: _encoded("AVIF", 2_500, 2_500, speed=10, quality=30),
}
