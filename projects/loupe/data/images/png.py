"""PNG: every byte checked before anything is decoded.

Each chunk carries a CRC-32 and the pixels an Adler-32 (ISO/IEC 15948), so that no changed byte goes
unseen. Decoders do not look at all of it: one that has its rows ignores the rest.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from loupe.data.images.container import Container
from loupe.data.images.errors import damaged
from loupe.data.images.limits import Limits, check_count, check_size
from loupe.data.images.orientation import UPRIGHT, exif_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 2**18
_PIECE = 2**20
# Samples a pixel and allowed bits a sample by colour type.
_COLOURS = {
    0: (1, (1, 2, 4, 8, 16)),
    2: (3, (8, 16)),
    3: (1, (1, 2, 4, 8)),
    4: (2, (8, 16)),
    6: (4, (8, 16)),
}
# Adam7: first row and column of a pass, and the steps between its rows and columns.
_PASSES = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


class _Chunk(NamedTuple):
    """One chunk: its type, and where it and its data lie in the file."""

    name: bytes
    start: int
    end: int

    def data(self, content: bytes) -> memoryview:
        return memoryview(content)[self.start + 8 : self.end - 4]


class _Head(NamedTuple):
    """IHDR."""

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool


def inspect_png(content: bytes, limits: Limits, *, whole: bool = True) -> Container:
    """Size, cost and orientation of a PNG; its text and colour profile are never unpacked.

    Args:
        content: The file.
        limits: What reading may cost.
        whole: Check all bytes; else the header alone, where only the size is wanted.

    Raises:
        ImageFaultError: It is damaged or too large.
    """
    head = _read_head(content)
    channels = _COLOURS[head.colour][0]
    # Pillow keeps colours and LA in four bytes, 16-bit grey in two, all else in one; and the
    # result has three. The file is there twice, once without its text.
    stored = 4 if channels > 1 else 2 if head.depth == 16 else 1
    memory = 2 * len(content) + head.width * head.height * (stored + 3)
    check_size(head.height, head.width, memory, limits)
    chunks = list(_chunks(content, whole))
    if whole:
        _check_order(chunks, head)
        _check_stream(content, chunks, head)
    orientation = UPRIGHT
    for chunk in chunks:
        if chunk.name == b"eXIf":
            orientation = exif_orientation(bytes(chunk.data(content)))
    kept = [chunk for chunk in chunks if chunk.name[:1].isupper() or chunk.name == b"tRNS"]
    if len(kept) < len(chunks) or chunks[-1].end < len(content):
        content = SIGNATURE + b"".join(content[chunk.start : chunk.end] for chunk in kept)
    return Container("PNG", head.height, head.width, content, memory, orientation)


def _read_head(content: bytes) -> _Head:
    if len(content) < 33 or content[8:16] != b"\x00\x00\x00\rIHDR":
        raise damaged("it does not begin with IHDR")
    if zlib.crc32(content[12:29]) != int.from_bytes(content[29:33], "big"):
        raise damaged("wrong checksum in IHDR")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    depth, colour, compression, filtering, interlaced = content[24:29]
    if colour not in _COLOURS or depth not in _COLOURS[colour][1]:
        raise damaged(f"no colour type {colour} of {depth} bits exists")
    if compression or filtering or interlaced > 1:
        raise damaged("unknown compression, filter or interlacing")
    return _Head(width, height, depth, colour, bool(interlaced))


def _chunks(content: bytes, prove: bool) -> Iterator[_Chunk]:
    """All chunks up to IEND, their checksums proven if asked to."""
    view = memoryview(content)
    start = len(SIGNATURE)
    for number in range(_MOST_CHUNKS + 1):
        check_count(number + 1, _MOST_CHUNKS, "chunks")
        name = content[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if end > len(content):
            if prove:
                raise damaged("it is cut short")
            return
        checksum = int.from_bytes(content[end - 4 : end], "big")
        if prove and zlib.crc32(view[start + 4 : end - 4]) != checksum:
            raise damaged(f"wrong checksum in {name!r}")
        yield _Chunk(name, start, end)
        if name == b"IEND":
            return
        start = end


def _check_order(chunks: list[_Chunk], head: _Head) -> None:
    """IHDR, then PLTE, then IDAT without a gap, then IEND; no other critical (upper-case) chunk."""
    names = [chunk.name for chunk in chunks]
    for name in names:
        if name[:1].isupper() and name not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            raise damaged(f"unknown chunk {name!r}")
    if names.count(b"IHDR") > 1 or names.count(b"PLTE") > 1 or b"IDAT" not in names:
        raise damaged("a chunk is missing or is there twice")
    first, count = names.index(b"IDAT"), names.count(b"IDAT")
    if names[first : first + count] != [b"IDAT"] * count:
        raise damaged("its pixels are not in one piece")
    if any(name in names[first:] for name in (b"PLTE", b"tRNS")):
        raise damaged("its chunks are out of order")
    if head.colour == 3 and b"PLTE" not in names:
        raise damaged("it has no palette")


def _check_stream(content: bytes, chunks: list[_Chunk], head: _Head) -> None:
    """Unpacks the pixels once, in pieces that are thrown away, to prove length and checksum."""
    expected = _unpacked_bytes(head)
    inflater = zlib.decompressobj()
    total = 0
    try:
        for piece in _stream_pieces(content, chunks):
            rest: memoryview | bytes = piece
            while len(rest) and not inflater.eof and total <= expected:
                total += len(inflater.decompress(rest, _PIECE))
                rest = inflater.unconsumed_tail
    except zlib.error as error:
        raise damaged(f"its pixels: {error}") from None
    if total > expected:
        raise damaged("it holds more pixels than its size")
    total += len(inflater.flush())
    if not inflater.eof or total != expected:
        raise damaged("it holds fewer pixels than its size")


def _stream_pieces(content: bytes, chunks: list[_Chunk]) -> Iterator[memoryview]:
    """The compressed pixels, little by little: what is not yet unpacked is copied each time."""
    for chunk in chunks:
        if chunk.name == b"IDAT":
            data = chunk.data(content)
            for start in range(0, len(data), _PIECE // 16):
                yield data[start : start + _PIECE // 16]


def _unpacked_bytes(head: _Head) -> int:
    """Bytes of all rows, each with the byte of its filter."""
    bits = head.depth * _COLOURS[head.colour][0]
    passes = _PASSES if head.interlaced else ((0, 0, 1, 1),)
    total = 0
    for top, left, down, right in passes:
        rows, columns = -(-(head.height - top) // down), -(-(head.width - left) // right)
        if rows > 0 and columns > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total
