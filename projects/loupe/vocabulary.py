"""The words of explanations, and the numbers behind them.

Sentences about a forgery are written, measured, generated and parsed in different places. What
*upper left*, *medium* or *reddish* means is said here alone.

H W pixels of an image; masks are (H, W) bool, True = forged.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# The 3 x 3 cells of an image, row by row.
CELLS = (
    *("upper left", "upper centre", "upper right"),
    *("middle left", "centre", "middle right"),
    *("lower left", "lower centre", "lower right"),
)
SIZES = ("small", "medium", "large")
TONES = ("dark", "grey", "bright", "reddish", "greenish", "bluish")
SIDES = ("left half", "both halves", "right half")
SHAPES = ("compact", "elongated", "irregular")

# Fractions of the image below which a region is small and medium: thirds of synthetic forgeries.
_SMALL, _MEDIUM = 0.03, 0.1
# Channels that differ by fewer grey levels make a grey; below and above these it is dark or bright.
_COLOURLESS, _DARK, _BRIGHT = 30, 70, 170
# Fraction of a region's pixels in one half of the image that puts it on this side.
_ONE_SIDED = 0.75


class Claims(NamedTuple):
    """What an explanation says of an image, in words of this module; "" = it says nothing.

    Attributes:
        verdict: "forged" or "authentic".
        technique: How the image was forged.
        cell: One of CELLS, where the forged pixels' centre lies.
        size: One of SIZES.
        tone: One of TONES.
        side: One of SIDES.
    """

    verdict: str
    technique: str = ""
    cell: str = ""
    size: str = ""
    tone: str = ""
    side: str = ""


def centre_of(mask: np.ndarray) -> tuple[float, float]:
    """The centre of gravity as fractions of height and width."""
    y, x = np.nonzero(mask)
    return (y.mean() + 0.5) / mask.shape[0], (x.mean() + 0.5) / mask.shape[1]


def cell_of(mask: np.ndarray) -> str:
    """The cell in which the mask's centre lies.

    Example:
        >>> cell_of(np.eye(9, dtype=bool)[:3])
        'middle left'
    """
    y, x = centre_of(mask)
    return CELLS[3 * min(2, int(3 * y)) + min(2, int(3 * x))]


def size_of(mask: np.ndarray) -> str:
    """The size of the mask as a part of the image."""
    fraction = mask.mean()
    return SIZES[int(fraction >= _SMALL) + int(fraction >= _MEDIUM)]


def side_of(mask: np.ndarray) -> str:
    """The half of the image that holds the mask."""
    left = mask[:, : mask.shape[1] // 2].sum() / max(1, mask.sum())
    return SIDES[int(left < _ONE_SIDED) + int(left <= 1 - _ONE_SIDED)]


def tone_of(image: np.ndarray, mask: np.ndarray) -> str:
    """The mean colour under the mask.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: With at least one pixel.
    """
    colour = image[mask].mean(axis=0)
    if colour.max() - colour.min() >= _COLOURLESS:
        return TONES[3 + int(colour.argmax())]
    level = colour.mean()
    return TONES[int(level >= _DARK) + int(level > _BRIGHT)]
