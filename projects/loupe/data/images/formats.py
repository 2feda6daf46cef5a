"""Tells formats apart by their first bytes, and asks the right reader for size and cost.

PNG, JPEG and TIFF have readers of their own. Of the others Pillow reads the header, which costs it
nothing but for WebP, whose decoder takes its memory at once.
"""

from __future__ import annotations

import io
import re
from importlib.util import find_spec

from PIL import Image

from loupe.data.images import jpeg, png, tiff
from loupe.data.images.container import Container
from loupe.data.images.errors import ImageFaultError, damaged
from loupe.data.images.limits import Limits, check_count, check_size
from loupe.data.images.orientation import UPRIGHT, exif_orientation

KNOWN = "JPEG, PNG, TIFF, WebP, AVIF, HEIC, JPEG 2000, GIF, BMP and PNM"

# Bytes a pixel of decoder, copy and result, as measured by `research.reliability.bombs`.
_PIXEL_BYTES = {"WEBP": 23, "GIF": 12, "BMP": 11, "PPM": 15, "JPEG2000": 40, "AVIF": 20, "HEIF": 20}
_MOST_TILES = 2**14
_MOST_CHANNELS = 4
# Pillow reads numbers written as text one by one.
_MOST_TEXT_BYTES = 2**22
_PLAIN_PNM = (b"P1", b"P2", b"P3")
_PNM = re.compile(rb"P[1-6f]\s")
_JPEG2000_BOX, _JPEG2000_STREAM = b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def format_of(content: bytes) -> str:
    """Pillow's name of a format, by its signature; "" if it is not one that is read."""
    start = content[:12]
    for kind, signatures in (
        ("JPEG", (jpeg.SIGNATURE,)),
        ("PNG", (png.SIGNATURE,)),
        ("TIFF", tiff.SIGNATURES),
        ("GIF", (b"GIF87a", b"GIF89a")),
        ("BMP", (b"BM",)),
        ("JPEG2000", (_JPEG2000_BOX, _JPEG2000_STREAM)),
    ):
        if start.startswith(signatures):
            return kind
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[4:8] == b"ftyp":
        # Many kinds of file begin so; the brands say which, the first alone may be a general one.
        listed = content[8 : min(int.from_bytes(content[:4], "big"), 256)]
        brands = {listed[at : at + 4] for at in range(0, len(listed), 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        return "HEIF" if brands & set(_HEIF_BRANDS) else ""
    return "PPM" if _PNM.match(start) else ""


def inspect(content: bytes, limits: Limits, *, whole: bool = True) -> Container:
    """Inspects a file before anything of it is decoded.

    Args:
        content: The file.
        limits: What reading may cost.
        whole: Look for damage as well, where the format has checksums.

    Raises:
        ImageFaultError: It is of no known format, damaged, or too large.
    """
    kind = format_of(content)
    if kind == "PNG":
        return png.inspect_png(content, limits, whole=whole)
    if kind == "JPEG":
        return jpeg.inspect_jpeg(content, limits)
    if kind == "TIFF":
        return tiff.inspect_tiff(content, limits)
    if not kind:
        raise ImageFaultError(
            f"the content is no image of a known format (it begins with {content[:8]!r})",
            f"replace the file or drop it from the list; known are {KNOWN}",
        )
    return _inspect_other(kind, content, limits)


def _inspect_other(kind: str, content: bytes, limits: Limits) -> Container:
    orientation = UPRIGHT
    if kind == "WEBP":
        _check(kind, *_webp_size(content), content, limits)
        orientation = _webp_orientation(content)
    elif kind == "JPEG2000":
        _check_jpeg2000(content)
    elif content[:2] in _PLAIN_PNM and len(content) > _MOST_TEXT_BYTES:
        raise ImageFaultError(f"{len(content)} bytes of numbers as text", "convert it to PNG")
    with open_image(kind, content) as image:
        if kind == "AVIF":
            orientation = exif_orientation(image.info.get("exif", b""))
        memory = _check(kind, image.height, image.width, content, limits)
        # Pillow holds grey of 16 bits in 32; in these formats no other integers are that wide.
        deep = 65535.0 if image.mode == "I" else 1.0 if image.mode == "F" else 0.0
        return Container(
            kind, image.height, image.width, content, memory, orientation, full_range=deep
        )


def open_image(kind: str, content: bytes) -> Image.Image:
    """Opens a file with Pillow, or with pillow-heif, without decoding it.

    Raises:
        ImageFaultError: A HEIC file, and pillow-heif is not installed.
    """
    if kind != "HEIF":
        return Image.open(io.BytesIO(content), formats=(kind,))
    if find_spec("pillow_heif") is None:
        raise ImageFaultError("a HEIC file", "install what reads it: pip install 'loupe[heif]'")
    from pillow_heif import HeifImageFile

    # libheif turns the pixels itself as the container says; none of its decoders can leave it.
    return HeifImageFile(io.BytesIO(content))


def _check(kind: str, height: int, width: int, content: bytes, limits: Limits) -> int:
    memory = 2 * len(content) + height * width * _PIXEL_BYTES[kind]
    check_size(height, width, memory, limits)
    return memory


def _webp_chunks(content: bytes) -> dict[bytes, bytes]:
    """The first bytes of each kind of chunk; the EXIF block in full."""
    chunks: dict[bytes, bytes] = {}
    start = 12
    for number in range(_MOST_TILES + 1):
        if start + 8 > len(content):
            break
        check_count(number, _MOST_TILES, "chunks")
        name = content[start : start + 4]
        size = int.from_bytes(content[start + 4 : start + 8], "little")
        kept = size if name == b"EXIF" else min(size, 32)
        chunks.setdefault(name, content[start + 8 : start + 8 + kept])
        start += 8 + size + size % 2
    return chunks


def _webp_size(content: bytes) -> tuple[int, int]:
    """(H, W) of the canvas."""
    chunks = _webp_chunks(content)
    if b"VP8X" in chunks:
        data = chunks[b"VP8X"].ljust(10, b"\x00")
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (4, 7))
        return height, width
    if b"VP8L" in chunks:
        number = int.from_bytes(chunks[b"VP8L"][1:5], "little")
        return (number >> 14 & 0x3FFF) + 1, (number & 0x3FFF) + 1
    if b"VP8 " in chunks:
        data = chunks[b"VP8 "].ljust(10, b"\x00")
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        return height, width
    raise damaged("it has no picture")


def _webp_orientation(content: bytes) -> int:
    return exif_orientation(_webp_chunks(content).get(b"EXIF", b""))


def _check_jpeg2000(content: bytes) -> None:
    """Bounds tiles and channels (SIZ in ISO/IEC 15444-1), each of which has tables of its own."""
    start = content.find(_JPEG2000_STREAM)
    size = content[start + 6 : start + 42]
    if start < 0 or len(size) < 36:
        raise damaged("it has no picture")
    right, bottom, _, _, across, down, left, top = (
        int.from_bytes(size[at : at + 4], "big") for at in range(2, 34, 4)
    )
    if not across or not down:
        raise damaged("its tiles have no size")
    check_count(-(-(right - left) // across) * -(-(bottom - top) // down), _MOST_TILES, "tiles")
    check_count(int.from_bytes(size[34:36], "big"), _MOST_CHANNELS, "channels")
