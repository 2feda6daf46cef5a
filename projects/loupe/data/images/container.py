"""What a reader of containers finds out about a file before its pixels are decoded."""

from __future__ import annotations

from typing import NamedTuple

from loupe.data.images.orientation import UPRIGHT


class Container(NamedTuple):
    """One image file, inspected.

    Attributes:
        kind: Pillow's name of the format: "PNG", "JPEG", "TIFF", ...
        height: Of the stored pixels.
        width: Likewise.
        content: What the decoder gets: the file, without what it must not see.
        memory: Estimate of the bytes that reading takes in all, the file included.
        orientation: EXIF orientation, 1 to 8.
        warnings: What a user of the pixels must know.
        full_range: Largest value that a sample is meant to have; 0 = that of the array's type.
        light_is_low: Whether 0 is white where the decoder leaves that as it is.
        parts: Files of one channel each, for what no decoder reads as a whole.
        deep_colour: Whether there are several channels of more than 8 bits.
    """

    kind: str
    height: int
    width: int
    content: bytes
    memory: int
    orientation: int = UPRIGHT
    warnings: tuple[str, ...] = ()
    full_range: float = 0.0
    light_is_low: bool = False
    parts: tuple[bytes, ...] = ()
    deep_colour: bool = False
