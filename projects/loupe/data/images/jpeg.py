"""JPEG: its segments read before decoding, its pixels decoded as libjpeg does, its damage reported.

libjpeg goes on where the compressed pixels are broken (ITU-T T.81 has no checksum) and shows
something. So such a file is read, with a warning. Two signs reveal damage:
    * the segments: the end marker is missing, or markers stand where none can be;
    * libjpeg's own warnings, which `simplejpeg` turns into errors.
Changed bits that still decode to the same number of blocks cannot be detected.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from PIL import Image

from loupe.data.images.container import Container
from loupe.data.images.errors import ImageFaultError, damaged
from loupe.data.images.limits import Limits, check_count, check_size
from loupe.data.images.orientation import UPRIGHT, exif_orientation

SIGNATURE = b"\xff\xd8\xff"
DAMAGED_INSIDE = "damaged inside: parts of the picture may be wrong"
CUT_SHORT = "cut short: the last part of the picture is missing"

_HAS_SIMPLEJPEG = find_spec("simplejpeg") is not None

# Progressive files of cameras and programs have up to a few dozen scans. Each scan visits all
# blocks, so that many scans of a large picture take minutes.
_MOST_SCANS = 200
_MOST_SCANNED_PIXELS = 2_000_000_000
_MOST_SEGMENTS = 2**14

_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
# APP0 (JFIF) and APP14 (Adobe) say what the channels mean; the other APPs and comments say nothing
# about pixels.
_WITHOUT_PIXELS = frozenset(range(0xE1, 0xF0)) - {0xEE} | {0xFE}
_KNOWN = _FRAMES | frozenset(range(0xE0, 0xF0)) | {0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xFE}
# In compressed pixels FF is followed by 00; FF D0 to FF D7 are restart markers; FF may repeat.
_END_OF_DATA = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")


class _Segment(NamedTuple):
    """A marker and where it begins; its data, without the length; and where the next may begin."""

    marker: int
    start: int
    data: memoryview
    end: int


class _Frame(NamedTuple):
    """SOFn. `samples` is their number per pixel, 1.5 for colour at half resolution."""

    height: int
    width: int
    channels: int
    samples: float
    progressive: bool


def inspect_jpeg(content: bytes, limits: Limits) -> Container:
    """Size, cost, orientation and visible damage of the first picture in a file.

    Raises:
        ImageFaultError: It has no picture, is too large or of a kind that no decoder here knows.
    """
    frame, scans, orientation, restarts = None, 0, UPRIGHT, False
    dropped, broken, end = [], False, 0
    for number, segment in enumerate(_segments(content)):
        check_count(number + 1, _MOST_SEGMENTS, "segments")
        marker, end = segment.marker, segment.end
        broken |= marker not in _KNOWN and marker != _END_OF_IMAGE
        if marker in _FRAMES:
            if frame is not None:
                raise damaged("it has two frames")
            frame = _read_frame(segment)
        elif marker == _START_OF_SCAN:
            scans += 1
            broken |= not _restarts_in_order(content, segment, restarts)
        elif marker == 0xDD:
            restarts = any(segment.data[:2])
        elif marker == 0xE1 and bytes(segment.data[:6]) == b"Exif\x00\x00":
            orientation = exif_orientation(bytes(segment.data))
        if marker in _WITHOUT_PIXELS and frame is None:
            dropped.append(segment)
    if frame is None or not scans:
        raise damaged("it ends before its picture begins")
    _check_work(frame, scans)
    whole = content[end - 2 : end] == b"\xff\xd9"
    # One copy of the file for the decoder; Pillow, where it has to decode, has 4 bytes a pixel, and
    # CMYK is decoded twice; several scans need all coefficients at once.
    pixel: float = 11 if frame.channels == 4 else 3 if _HAS_SIMPLEJPEG else 7
    pixel += 2 * frame.samples if frame.progressive or scans > 1 else 0
    memory = 2 * len(content) + int(frame.height * frame.width * pixel)
    check_size(frame.height, frame.width, memory, limits)
    warnings = (() if whole else (CUT_SHORT,)) + ((DAMAGED_INSIDE,) if broken else ())
    content = _without(content[:end], dropped) + (b"" if whole else b"\xff\xd9")
    return Container("JPEG", frame.height, frame.width, content, memory, orientation, warnings)


def _segments(content: bytes) -> Iterator[_Segment]:
    """Segments up to the end of the first picture, or of the file."""
    view = memoryview(content)
    start = 2
    while start < len(content):
        found = _END_OF_DATA.search(content, start)
        if found is None:
            return
        if found.start() > start:
            yield _Segment(0, start, view[:0], found.start())
        start, data = found.start(), found.end()
        marker = content[data - 1]
        if marker == _END_OF_IMAGE:
            yield _Segment(marker, start, view[:0], data)
            return
        if marker not in _KNOWN:
            yield _Segment(marker, start, view[:0], data)
            start = data
            continue
        length = int.from_bytes(content[data : data + 2], "big")
        end = data + length
        if length < 2 or end > len(content):
            yield _Segment(0, start, view[:0], start)
            return
        if marker == _START_OF_SCAN:
            following = _END_OF_DATA.search(content, end)
            stop = len(content) if following is None else following.start()
            yield _Segment(marker, start, view[end:stop], stop)
            start = stop
            continue
        yield _Segment(marker, start, view[data + 2 : end], end)
        start = end


def _read_frame(segment: _Segment) -> _Frame:
    data = segment.data
    if len(data) < 6 or len(data) < 6 + 3 * data[5]:
        raise damaged("its frame is cut short")
    depth, height, width, channels = struct.unpack_from(">BHHB", data)
    if depth != 8:
        raise ImageFaultError(f"a JPEG of {depth} bits a sample", "convert it to 8-bit PNG")
    if channels not in (1, 3, 4):
        raise ImageFaultError(f"a JPEG of {channels} channels", "convert it to 8-bit PNG")
    factors = [(data[7 + 3 * i] >> 4, data[7 + 3 * i] & 15) for i in range(channels)]
    largest = max(h for h, _ in factors) * max(v for _, v in factors)
    samples = sum(h * v for h, v in factors) / max(largest, 1)
    return _Frame(height, width, channels, samples, segment.marker in _PROGRESSIVE)


def _check_work(frame: _Frame, scans: int) -> None:
    check_count(scans, _MOST_SCANS, "scans")
    if scans > 20 and scans * frame.height * frame.width > _MOST_SCANNED_PIXELS:
        raise ImageFaultError(
            f"{scans} scans of {frame.width} x {frame.height} pixels",
            "store it again with an ordinary program",
        )


def _restarts_in_order(content: bytes, scan: _Segment, expected: bool) -> bool:
    """Whether restart markers count 0 to 7 over and over, if there are any and may be."""
    if not expected:
        return _RESTART.search(scan.data) is None
    found = [match[0] - 0xD0 for match in _RESTART.findall(scan.data)]
    return found == [number % 8 for number in range(len(found))]


def _without(content: bytes, dropped: list[_Segment]) -> bytes:
    """The file less its metadata, which decoders would read with buffers of their own."""
    if not dropped:
        return content
    edges = [0, *(edge for one in dropped for edge in (one.start, one.end)), len(content)]
    return b"".join(content[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))


def decode_jpeg(container: Container, at_least: int) -> tuple[np.ndarray | Image.Image, bool]:
    """Decodes an inspected JPEG.

    Args:
        container: From `inspect_jpeg`.
        at_least: Decode at a half, a quarter or an eighth of the size, the smallest of which both
            sides are at least so many pixels; 0 = the whole.

    Returns:
        (H, W) or (H, W, 3) uint8, or an image to be converted; whether libjpeg found damage.
    """
    image = Image.open(io.BytesIO(container.content), formats=("JPEG",))
    if at_least and min(image.size) >= 2 * at_least:
        # Only the markers have been checked for damage: a whole decoding would cost what is saved.
        image.draft(None, (at_least, at_least))
    elif _HAS_SIMPLEJPEG:
        pixels, found = _decode_strictly(container.content, image.mode)
        # Pillow turns over the inverted colours of Adobe's CMYK.
        return (image if pixels is None or image.mode == "CMYK" else pixels), found
    return image, False


def _decode_strictly(content: bytes, mode: str) -> tuple[np.ndarray | None, bool]:
    """Decodes with libjpeg's warnings as errors; if there are any, once more without."""
    import simplejpeg

    colours = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}[mode]
    options = {"colorspace": colours, "fastdct": False, "fastupsample": False}
    with suppress(ValueError):
        return simplejpeg.decode_jpeg(content, strict=True, **options), False
    with suppress(ValueError):
        return simplejpeg.decode_jpeg(content, strict=False, **options), True
    # Of a kind that simplejpeg does not know, such as CMYK at 4:2:0; or broken altogether, which
    # Pillow says then.
    return None, False
