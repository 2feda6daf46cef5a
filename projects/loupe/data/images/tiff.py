"""TIFF and BigTIFF: the first directory read before decoding, and what no decoder reads mended.

Pillow reads one channel of any depth and several of 8 bits, OpenCV several deeper ones unless each
lies in a plane of its own: such a file is taken apart into one file for each plane. Tags are those
of TIFF 6.0; BigTIFF has the same with 64-bit offsets.
"""

from __future__ import annotations

import struct
from itertools import accumulate
from typing import NamedTuple

from loupe.data.images.container import Container
from loupe.data.images.errors import ImageFaultError, damaged
from loupe.data.images.limits import Limits, check_count, check_size
from loupe.data.images.orientation import ORIENTATIONS, UPRIGHT

SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_MOST_ENTRIES = 1024
_MOST_PIECES = 2**18
# Bytes of a value by its type.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _ORIENTATION, _CHANNELS, _STRIP_ROWS, _STRIP_BYTES = 273, 274, 277, 278, 279
_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = (284, 317) + tuple(
    range(322, 326)
)
_SAMPLE_FORMAT = 339
_READ = {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIP_OFFSETS, _ORIENTATION}
_READ |= {_CHANNELS, _STRIP_ROWS, _STRIP_BYTES, _PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT}
_READ |= {_TILE_OFFSETS, _TILE_BYTES, _SAMPLE_FORMAT}
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_NO_COMPRESSION = 1
_CMYK, _YCBCR = 5, 6


class _Directory(NamedTuple):
    """The first directory.

    Attributes:
        order: "<" or ">".
        values: Of each tag that was read, one or more integers.
        orientation_at: Where the value of the orientation lies; 0 = there is none.
    """

    order: str
    values: dict[int, tuple[int, ...]]
    orientation_at: int

    def one(self, tag: int, default: int) -> int:
        return self.values.get(tag, (default,))[0]


def inspect_tiff(content: bytes, limits: Limits) -> Container:
    """Size, cost, kind of samples and orientation of a TIFF's first image.

    Raises:
        ImageFaultError: It is damaged, too large, or of a kind that no decoder here knows.
    """
    directory = _read_directory(content)
    height, width = directory.one(_HEIGHT, 0), directory.one(_WIDTH, 0)
    bits, channels = directory.one(_BITS, 1), directory.one(_CHANNELS, 1)
    sample = directory.one(_SAMPLE_FORMAT, _UNSIGNED)
    if not 1 <= channels <= 64 or not 1 <= bits <= 64 or sample not in (1, 2, 3, 4):
        raise ImageFaultError(
            f"a TIFF of {channels} channels of {bits} bits, kind {sample}",
            "convert it to 8-bit PNG",
        )
    # Decoded samples, the same once more (other order of channels, or Pillow's four bytes a
    # pixel), the result, and pieces that may reach beyond the image.
    pixel = max(4, channels * -(-bits // 8)) * 2 + 3
    piece = directory.one(_TILE_WIDTH, 0) * directory.one(_TILE_HEIGHT, 0)
    memory = 2 * len(content) + height * width * pixel + piece * channels * -(-bits // 8)
    check_size(height, width, memory, limits)
    _check_pieces(directory, content, height, width)
    orientation = directory.one(_ORIENTATION, UPRIGHT)
    if directory.orientation_at and orientation != UPRIGHT:
        content = _as_stored(content, directory)
    # Pillow reads CMYK of any depth, and one channel of up to 32 bits.
    deep = (channels > 1 and bits > 8 or bits == 64) and directory.one(_PHOTOMETRIC, 1) != _CMYK
    planes = deep and directory.one(_PLANAR, 1) == 2
    return Container(
        "TIFF",
        height,
        width,
        content,
        memory,
        orientation if orientation in ORIENTATIONS else UPRIGHT,
        full_range=_full_range(bits, sample),
        # Pillow turns over bilevel and 8-bit grey itself.
        light_is_low=directory.one(_PHOTOMETRIC, 1) == 0 and bits > 8,
        parts=_planes(content, directory, channels) if planes else (),
        deep_colour=deep and not planes,
    )


def _read_directory(content: bytes) -> _Directory:
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\x00", b"\x00+")
    count_format, entry_size, number_format = ("Q", 20, "Q") if big else ("H", 12, "I")
    values, orientation_at, total = {}, 0, 0
    try:
        (start,) = struct.unpack_from(order + number_format, content, 8 if big else 4)
        (count,) = struct.unpack_from(order + count_format, content, start)
        check_count(count, _MOST_ENTRIES, "tags")
        start += struct.calcsize(count_format)
        for at in range(start, start + count * entry_size, entry_size):
            tag, kind = struct.unpack_from(order + "HH", content, at)
            (number,) = struct.unpack_from(order + number_format, content, at + 4)
            place = at + 4 + struct.calcsize(number_format)
            size = number * _SIZES.get(kind, 1)
            if size > entry_size - (place - at):
                (place,) = struct.unpack_from(order + number_format, content, place)
            # Decoders copy the values of every tag; many may point at the same large place.
            total += size
            if tag in _READ and kind in _INTEGERS and number:
                check_count(number, _MOST_PIECES, "strips or tiles")
                form = f"{order}{number}{_INTEGERS[kind]}"
                values[tag] = struct.unpack_from(form, content, place)
                orientation_at = place if tag == _ORIENTATION else orientation_at
    except struct.error:
        raise damaged("its directory is cut short") from None
    if total > 2 * len(content) + 2**16:
        raise damaged("its tags are larger than the file")
    return _Directory(order, values, orientation_at)


def _check_pieces(directory: _Directory, content: bytes, height: int, width: int) -> None:
    """Every strip or tile must lie in the file, and there must be as many as the size needs."""
    tiled = _TILE_OFFSETS in directory.values
    offsets = directory.values.get(_TILE_OFFSETS if tiled else _STRIP_OFFSETS, ())
    sizes = directory.values.get(_TILE_BYTES if tiled else _STRIP_BYTES, ())
    planes = directory.one(_CHANNELS, 1) if directory.one(_PLANAR, 1) == 2 else 1
    across, down = width, directory.one(_STRIP_ROWS, height) or height
    if tiled:
        across, down = directory.one(_TILE_WIDTH, 0), directory.one(_TILE_HEIGHT, 0)
        if not across or not down:
            raise damaged("its tiles have no size")
    expected = planes * -(-width // across) * -(-height // down)
    check_count(expected, _MOST_PIECES, "strips or tiles")
    if len(offsets) < expected:
        raise damaged(f"{len(offsets)} of {expected} strips or tiles are there")
    if not sizes and expected == 1 and directory.one(_COMPRESSION, 1) == _NO_COMPRESSION:
        sizes = (len(content) - offsets[0],)  # Old programs leave the size of a single strip out.
    if len(sizes) < expected:
        raise damaged("sizes of its strips or tiles are missing")
    pairs = zip(offsets[:expected], sizes[:expected], strict=True)
    if any(offset + size > len(content) or not size for offset, size in pairs):
        raise damaged("it is cut short")
    whole_rows = not tiled and directory.one(_PHOTOMETRIC, 1) != _YCBCR
    if directory.one(_COMPRESSION, 1) == _NO_COMPRESSION and whole_rows:
        row = -(-width * directory.one(_BITS, 1) * directory.one(_CHANNELS, 1) // (8 * planes))
        if sum(sizes[:expected]) < row * height * planes:
            raise damaged("it holds fewer pixels than its size")


def _full_range(bits: int, sample: int) -> float:
    """Largest value of the type: floats reach from 0 to 1, integers as far as their bits."""
    if sample == _FLOAT:
        return 1.0
    if bits <= 8:
        return 0.0  # Pillow widens these to 8 bits, or to bool.
    return float(2 ** (bits - 1) - 1 if sample == _SIGNED else 2**bits - 1)


def _as_stored(content: bytes, directory: _Directory) -> bytes:
    """The file with orientation 1: decoders would turn the pixels."""
    changed = bytearray(content)
    struct.pack_into(directory.order + "H", changed, directory.orientation_at, UPRIGHT)
    return bytes(changed)


def _planes(content: bytes, directory: _Directory, channels: int) -> tuple[bytes, ...]:
    """One grey TIFF for each plane of a planar one."""
    tiled = _TILE_OFFSETS in directory.values
    places, lengths = (_TILE_OFFSETS, _TILE_BYTES) if tiled else (_STRIP_OFFSETS, _STRIP_BYTES)
    count = len(directory.values[places]) // channels
    return tuple(
        _grey_tiff(
            content,
            directory,
            directory.values[places][first : first + count],
            directory.values[lengths][first : first + count],
        )
        for first in range(0, count * channels, count)
    )


def _grey_tiff(
    content: bytes, directory: _Directory, offsets: tuple[int, ...], sizes: tuple[int, ...]
) -> bytes:
    tiled = _TILE_OFFSETS in directory.values
    copied = (_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _STRIP_ROWS, _PREDICTOR, _TILE_WIDTH)
    values = {
        tag: directory.values[tag][:1]
        for tag in (*copied, _TILE_HEIGHT, _SAMPLE_FORMAT)
        if tag in directory.values
    }
    values |= {_PHOTOMETRIC: (1,), _CHANNELS: (1,), _PLANAR: (1,)}
    values[_TILE_BYTES if tiled else _STRIP_BYTES] = sizes
    order, count = directory.order, len(sizes)
    lists = 10 + 12 * (len(values) + 1) + 4
    new_offsets = accumulate(sizes[:-1], initial=lists + 8 * count)
    values[_TILE_OFFSETS if tiled else _STRIP_OFFSETS] = tuple(new_offsets)
    entries, tail = [], b""
    for tag, numbers in sorted(values.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            place = lists + len(tail)
            tail += packed
            packed = struct.pack(order + "I", place)
        entries.append(struct.pack(order + "HHI", tag, 4, len(numbers)) + packed)
    head = struct.pack(order + "HIH", 42, 8, len(values))
    pixels = b"".join(content[at : at + size] for at, size in zip(offsets, sizes, strict=True))
    start = (b"II" if order == "<" else b"MM") + head + b"".join(entries) + bytes(4)
    return start + tail.ljust(8 * count, b"\x00") + pixels
