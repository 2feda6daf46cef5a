"""How much an image may cost, decided from its header before anything is decoded.

A file of a few kilobytes can unpack to gigabytes or keep a decoder busy for minutes, so each
container's reader (png, jpeg, tiff, ...) estimates the memory of its decoder and counts the parts.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from loupe.data.images.errors import ImageFaultError, TooLargeError


class Limits(NamedTuple):
    """What reading one image may take.

    Attributes:
        pixels: Largest height times width; by default Pillow's own limit.
        bytes: Largest sum of the file, its decoder's buffers and the result.
    """

    pixels: int = 178_956_970
    bytes: int = 768 * 2**20


def _limits_of_environment() -> Limits:
    """The default limits, or those that LOUPE_MAX_IMAGE_PIXELS and ..._BYTES set."""
    changes = {}
    for name in Limits._fields:
        text = os.environ.get(f"LOUPE_MAX_IMAGE_{name.upper()}")
        if text is not None:
            if not text.isdecimal() or int(text) < 1:
                raise ValueError(f"LOUPE_MAX_IMAGE_{name.upper()} is {text!r}; give a number >= 1")
            changes[name] = int(text)
    return Limits(**changes)


LIMITS = _limits_of_environment()


def check_size(height: int, width: int, memory: int, limits: Limits) -> None:
    """Refuses an image that is too large.

    Args:
        height: In pixels.
        width: In pixels.
        memory: Estimate of the bytes that reading takes in all, the file included.
        limits: What is allowed.

    Raises:
        TooLargeError: It is larger than the limits.
        ImageFaultError: It has no pixels.
    """
    if height < 1 or width < 1:
        raise ImageFaultError(f"an image of {width} x {height} pixels")
    if height * width > limits.pixels:
        raise TooLargeError(
            f"too many pixels ({width} x {height})",
            f"shrink it below {limits.pixels} pixels, or set LOUPE_MAX_IMAGE_PIXELS",
        )
    if memory > limits.bytes:
        raise TooLargeError(
            f"{width} x {height} pixels of this kind take {memory >> 20} MB to read",
            f"shrink it below {limits.bytes >> 20} MB, or set LOUPE_MAX_IMAGE_BYTES",
        )


def check_count(count: int, most: int, what: str) -> None:
    """Refuses a file of more parts than any program writes.

    Raises:
        ImageFaultError: There are more than `most`.
    """
    if count > most:
        raise ImageFaultError(
            f"{count} {what}, more than {most}", "store it again with an ordinary program"
        )
