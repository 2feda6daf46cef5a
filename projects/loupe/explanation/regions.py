"""The regions that a prediction marks, and what surrounds each.

H W pixels of the image.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from loupe.structures import THRESHOLD
from loupe.vocabulary import SHAPES

# At most so many regions are described, largest first; smaller ones than this fraction are not.
MOST_REGIONS = 5
LEAST = 0.0005
LEAST_PIXELS = 16
# Side in pixels of the part of a large image in which a region is compared with its surroundings.
WINDOW = 1024
# Width of the ring around a region, as a fraction of the root of its area.
_RING = 0.35
# A region whose area is this fraction of its convex hull is not irregular; one whose longer axis is
# so many times the shorter one is elongated.
_SOLID, _LONG = 0.75, 2.5


class Region(NamedTuple):
    """A region inside a window of its image.

    Attributes:
        number: From 1, largest first.
        mask: (H, W) bool, the region in the whole image.
        bounds: Left, top, right, bottom in pixels of the image; the last two are excluded.
        image: (h, w, 3) uint8, the window.
        inside: (h, w) bool, the region in the window.
        outside: (h, w) bool, pixels of the window that no region holds.
        ring: (h, w) bool, pixels of `outside` next to the region.
        origin: Top and left of the window.
    """

    number: int
    mask: np.ndarray
    bounds: tuple[int, int, int, int]
    image: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    ring: np.ndarray
    origin: tuple[int, int]


def find_regions(image: np.ndarray, forgery_map: np.ndarray) -> list[Region]:
    """The largest connected parts of a forgery map above THRESHOLD.

    Args:
        image: (H, W, 3) uint8 RGB.
        forgery_map: (H, W) in [0, 1].
    """
    forged = forgery_map > THRESHOLD
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        forged.astype(np.uint8), connectivity=8
    )
    least = max(LEAST_PIXELS, LEAST * forged.size)
    order = [n for n in 1 + np.argsort(-stats[1:count, cv2.CC_STAT_AREA], kind="stable")]
    large = [int(n) for n in order if stats[n, cv2.CC_STAT_AREA] >= least]
    return [
        region_of(image, labels == label, forged, number)
        for number, label in enumerate(large[:MOST_REGIONS], 1)
    ]


def region_of(
    image: np.ndarray, mask: np.ndarray, forged: np.ndarray | None = None, number: int = 1
) -> Region:
    """A region with its window.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, not empty.
        forged: (H, W) bool, all marked pixels; by default those of the mask.
        number: Of the region.
    """
    forged = mask if forged is None else forged
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    rows = _window(top, height, image.shape[0])
    columns = _window(left, width, image.shape[1])
    inside, marked = mask[rows, columns], forged[rows, columns]
    reach = max(3, round(_RING * float(np.sqrt(mask.sum()))))
    return Region(
        number,
        mask,
        (left, top, left + width, top + height),
        image[rows, columns],
        inside,
        ~marked,
        dilated(inside, reach) & ~marked,
        (rows.start, columns.start),
    )


def dilated(mask: np.ndarray, reach: int) -> np.ndarray:
    """(H, W) bool: `cv2.dilate` with an ellipse of 2 `reach` + 1 pixels, in time H W `reach`.

    OpenCV compares each pixel with the whole ellipse, 5 s for a reach of 250 in a window of 1024.
    A pixel is in the result if, `down` rows from it, the nearest pixel of the mask in that row is
    no farther than half the ellipse's row is wide.
    """
    half = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2).sum(axis=1) // 2
    columns = np.arange(mask.shape[1], dtype=np.int32)
    far = np.int32(mask.shape[1] + reach + 1)  # Beyond the ellipse from every column.
    before = np.maximum.accumulate(np.where(mask, columns, -far), axis=1)
    after = np.minimum.accumulate(np.where(mask, columns, 2 * far)[:, ::-1], axis=1)[:, ::-1]
    across = np.minimum(columns - before, after - columns)
    grown = mask.copy()
    for down in range(min(reach, len(mask) - 1) + 1):
        near = across <= half[reach + down]
        grown[: len(mask) - down] |= near[down:]
        grown[down:] |= near[: len(mask) - down]
    return grown


def _window(start: int, length: int, side: int) -> slice:
    """At most WINDOW pixels around a part of a side, from a multiple of 8 on."""
    if side <= WINDOW:
        return slice(0, side)
    first = min(max(0, start + length // 2 - WINDOW // 2), side - WINDOW)
    return slice(first // 8 * 8, first // 8 * 8 + WINDOW)


def shape_of(mask: np.ndarray) -> tuple[str, float]:
    """One of SHAPES, and the fraction of the convex hull that the mask fills."""
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    outline = np.concatenate(contours)
    hull = np.zeros(mask.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(outline), 1)
    solidity = float(mask.sum() / hull.sum())
    _, axes, _ = cv2.minAreaRect(outline)
    longer, shorter = max(axes) + 1, min(axes) + 1
    if solidity < _SOLID:
        return SHAPES[2], solidity
    return SHAPES[int(longer / shorter >= _LONG)], solidity
