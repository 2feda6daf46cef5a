"""Orientation: how the stored pixels of a photograph have to be turned to be looked at.

Cameras store what their sensor reads and note how they were held in the EXIF tag 0x0112, a number
from 1 (upright) to 8. The network sees pixels as they are stored: turning them would move the
traces of the sensor and of JPEG's blocks that it looks for, and a photograph's probability must not
depend on how a viewer shows it. Maps are turned at the end; masks, which people draw on the upright
picture, are turned back.
"""

from __future__ import annotations

import struct

import numpy as np

UPRIGHT = 1
ORIENTATIONS = range(1, 9)
_TAG = 0x0112
# Of the eight only the quarter turns are not their own inverse.
_INVERSE = {6: 8, 8: 6}
_MOST_ENTRIES = 1024


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns stored pixels (H, W, ...) as an EXIF orientation says; (W, H, ...) from 5 to 8.

    Example:
        >>> turn(np.array([[1, 2]]), 6)
        array([[1],
               [2]])
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def turn_back(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes `turn`: brings what is drawn on the upright picture to the stored pixels."""
    return turn(pixels, _INVERSE.get(orientation, orientation))


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(H, W) after `turn`, and also after `turn_back`."""
    return size[::-1] if orientation >= 5 else size


def exif_orientation(block: bytes) -> int:
    """Orientation in an EXIF block (a TIFF header and its first directory), 1 if there is none.

    Broken metadata does not make the pixels unreadable, so that a broken block counts as none.
    """
    block = block.removeprefix(b"Exif\x00\x00")
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(block[:4])
    if order is None:
        return UPRIGHT
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for entry in range(min(count, _MOST_ENTRIES)):
            tag, kind, number = struct.unpack_from(order + "HHI", block, start + 2 + 12 * entry)
            if tag == _TAG and (kind, number) == (3, 1):
                (value,) = struct.unpack_from(order + "H", block, start + 10 + 12 * entry)
                return value if value in ORIENTATIONS else UPRIGHT
    except struct.error:
        pass  # The block ends before its directory does.
    return UPRIGHT
