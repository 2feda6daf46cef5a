"""Measurements of a region against its surroundings: one function for each.

Each returns numbers that grow with the difference, so that a percentile among regions of authentic
photographs says how unusual one is. None = it cannot be measured there.

h w pixels of a region's window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch

from loupe.explanation.regions import Region
from loupe.modeling.forensic.quantisation import QuantisationBranch

# Fewer pixels than this say nothing of statistics.
LEAST_PIXELS = 64
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Immerkaer's operator (CVIU 64(2), 1996): two Laplacians subtracted; its deviation is 6 sigma.
_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
_CLIPPED = (3, 252)
# The flattest fraction of the pixels, where noise is not hidden by texture.
_FLAT = 0.4
# Longest side at which an image is searched for a copy.
_COPY_SIDE = 512
_COPY_FINE, _COPY_COARSE = 0.8, 4.0
# A copy lies at least this fraction of the region's side away.
_COPY_APART = 0.6
# Blocks with fewer usable coefficients do not decide on quantisation steps.
_LEAST_BLOCKS = 4


class Measured(NamedTuple):
    """One measurement.

    Attributes:
        value: What is shown.
        difference: What is ranked among authentic photographs; grows with the difference.
        words: Further numbers for the sentence.
    """

    value: float
    difference: float
    words: dict[str, object]


def luma(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 -> (h, w) float32."""
    return image.astype(np.float32) @ _LUMA


def measure_tone(region: Region) -> Measured | None:
    """How much brighter the region is than the ring around it, in grey levels."""
    if region.ring.sum() < LEAST_PIXELS:
        return None
    grey = luma(region.image)
    change = float(grey[region.inside].mean() - grey[region.ring].mean())
    return Measured(change, abs(change), {})


def measure_sharpness(region: Region) -> Measured | None:
    """Binary logarithm of the ratio of sharpness, inside to outside.

    Sharpness is mean |Laplacian| over mean |gradient|: it does not depend on contrast.
    """
    grey = luma(region.image)
    laplacian = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    gradient = cv2.magnitude(
        *(cv2.Sobel(grey, cv2.CV_32F, *order) / 8 for order in ((1, 0), (0, 1)))
    )
    inner, outer = _eroded(region.inside), _eroded(region.outside)
    if min(inner.sum(), outer.sum()) < LEAST_PIXELS:
        return None
    sharp = [
        float(laplacian[part].mean() / (gradient[part].mean() + 0.5)) for part in (inner, outer)
    ]
    ratio = float(np.log2((sharp[0] + 0.02) / (sharp[1] + 0.02)))
    return Measured(ratio, abs(ratio), {"inside": sharp[0], "outside": sharp[1]})


def measure_noise(region: Region) -> Measured | None:
    """Deviation of the noise in the flattest pixels, inside less outside, in grey levels."""
    grey = luma(region.image)
    residual = np.abs(cv2.filter2D(grey, cv2.CV_32F, _NOISE_KERNEL))
    mean = cv2.blur(grey, (7, 7))
    spread = cv2.blur(grey * grey, (7, 7)) - mean * mean
    usable = (grey > _CLIPPED[0]) & (grey < _CLIPPED[1])
    levels = []
    for part in (_eroded(region.inside) & usable, _eroded(region.outside) & usable):
        if part.sum() < LEAST_PIXELS:
            return None
        flat = part & (spread <= np.quantile(spread[part], _FLAT))
        # The mean of |n| is sigma sqrt(2 / pi).
        levels.append(float(residual[flat].mean() * np.sqrt(np.pi / 2)))
    ratio = float(np.log2((levels[0] + 0.1) / (levels[1] + 0.1)))
    return Measured(levels[0] - levels[1], abs(ratio), {"inside": levels[0], "outside": levels[1]})


class Grid(NamedTuple):
    """Where the 8 x 8 blocks of a JPEG begin: row and column, and how surely, in deviations."""

    row: int
    column: int
    strength: float


def find_grid(grey: np.ndarray, part: np.ndarray) -> tuple[Grid, np.ndarray]:
    """The grid of JPEG blocks in a part of an image.

    Between blocks neighbours differ by more than their neighbours do. b is that surplus, averaged
    over all columns (rows) with the same remainder by 8; the largest of the 8 means is the grid.

    Args:
        grey: (h, w) float32.
        part: (h, w) bool.

    Returns:
        The grid; and the strength of each of the 8 rows and columns, (2, 8).
    """
    strengths = np.zeros((2, 8))
    for axis in (0, 1):
        step = np.abs(np.diff(grey, axis=axis))
        step = np.minimum(step, 20)  # Edges of the picture count no more than strong blocks.
        near = [np.roll(step, shift, axis) for shift in (1, -1)]
        surplus = step - (near[0] + near[1]) / 2
        held = np.minimum(
            part.take(range(1, part.shape[axis]), axis),
            part.take(range(part.shape[axis] - 1), axis),
        )
        held = _without_ends(held, axis)
        index = np.arange(1, grey.shape[axis]) % 8
        means = np.zeros(8)
        for phase in range(8):
            values = surplus.compress(index == phase, axis)[held.compress(index == phase, axis)]
            means[phase] = values.mean() * np.sqrt(values.size) if values.size else 0.0
        spread = surplus[held].std() + 0.05 if held.any() else 1.0
        strengths[axis] = (means - np.median(means)) / spread
    row, column = (int(values.argmax()) for values in strengths)
    return Grid(row, column, float(strengths.max(axis=1).min())), strengths


def _without_ends(held: np.ndarray, axis: int) -> np.ndarray:
    """The part without its first and last line, whose neighbours wrap around."""
    held = held.copy()
    held[(slice(None),) * axis + ([0, -1],)] = False
    return held


def measure_grid(region: Region) -> Measured | None:
    """How much more the blocks of JPEG inside follow a grid of their own than that of the rest."""
    if min(region.inside.sum(), region.outside.sum()) < 4 * LEAST_PIXELS:
        return None
    grey = luma(region.image)
    inner, of_inner = find_grid(grey, region.inside)
    outer, _ = find_grid(grey, region.outside)
    shared = float(min(of_inner[0, outer.row], of_inner[1, outer.column]))
    own = max(0.0, inner.strength - max(0.0, shared))
    top, left = region.origin
    words = {
        "inside": f"({(inner.column + left) % 8}, {(inner.row + top) % 8})",
        "outside": f"({(outer.column + left) % 8}, {(outer.row + top) % 8})",
        "outside_strength": outer.strength,
    }
    return Measured(own, own, words)


def measure_steps(region: Region) -> Measured | None:
    """Deviations by which the region fits the JPEG quantisation steps of its image worse.

    See `loupe.modeling.forensic.quantisation`: the excess of the region's blocks over what chance
    gives, with the sign turned.
    """
    grey = luma(region.image)
    grid, _ = find_grid(grey, region.outside)
    height, width = (
        (side - start) // 8 * 8 for side, start in zip(grey.shape, grid[:2], strict=True)
    )
    rows, columns = slice(grid.row, grid.row + height), slice(grid.column, grid.column + width)
    if min(height, width) < 32:
        return None
    window = torch.from_numpy(region.image[rows, columns].copy()).permute(2, 0, 1)[None]
    branch = QuantisationBranch(embed_dim=8, patch_size=8)
    valid = torch.ones(1, height, width, dtype=torch.bool)
    (excess, variance), period = branch.excess(window / 127.5 - 1, valid)
    blocks = region.inside[rows, columns].reshape(height // 8, 8, width // 8, 8).all(axis=(1, 3))
    if blocks.sum() < _LEAST_BLOCKS:
        return None
    held = torch.from_numpy(blocks)
    total, spread = float(excess[0, 0][held].sum()), float(variance[0, 0][held].sum())
    worse = -total / float(np.sqrt(spread + 1))
    return Measured(worse, max(0.0, worse), {"strength": float(period.amax())})


def measure_copy(region: Region) -> Measured | None:
    """The best correlation of the region with another place of its window, mirrored or not."""
    scale = min(1.0, _COPY_SIDE / max(region.inside.shape))
    size = tuple(max(16, round(side * scale)) for side in region.inside.shape[::-1])
    grey = cv2.resize(luma(region.image), size, interpolation=cv2.INTER_AREA)
    inside = cv2.resize(region.inside.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    band = cv2.GaussianBlur(grey, (0, 0), _COPY_FINE) - cv2.GaussianBlur(grey, (0, 0), _COPY_COARSE)
    left, top, width, height = cv2.boundingRect(inside)
    if min(width, height) < 6 or max(width / size[0], height / size[1]) > 0.7:
        return None
    part = np.s_[top : top + height, left : left + width]
    weight = inside[part].astype(np.float32)
    if float(band[part][weight > 0].std()) < 0.5:  # A flat region matches every flat place.
        return None
    best = (-1.0, 0, 0, False)
    for mirrored in (False, True):
        pattern = band[part][:, ::-1] if mirrored else band[part]
        mask = weight[:, ::-1] if mirrored else weight
        found = _correlate(band, np.ascontiguousarray(pattern), np.ascontiguousarray(mask))
        reach_y, reach_x = (max(4, int(_COPY_APART * side)) for side in (height, width))
        found[
            max(0, top - reach_y) : top + reach_y + 1, max(0, left - reach_x) : left + reach_x + 1
        ] = -1
        place = np.unravel_index(int(found.argmax()), found.shape)
        if found[place] > best[0]:
            best = (float(found[place]), int(place[0]), int(place[1]), mirrored)
    value, y, x, mirrored = best
    if value <= -1:
        return None
    shift = (round((x - left) / scale), round((y - top) / scale))
    return Measured(value, value, {"x": shift[0], "y": shift[1], "mirrored": mirrored})


def _correlate(band: np.ndarray, pattern: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Correlation coefficient of a masked pattern with every place of an image."""
    total = float(weight.sum())
    centred = (pattern - (pattern * weight).sum() / total) * weight
    product = cv2.matchTemplate(band, centred, cv2.TM_CCORR)
    first = cv2.matchTemplate(band, weight, cv2.TM_CCORR) / total
    second = cv2.matchTemplate(band * band, weight, cv2.TM_CCORR) / total
    deviation = np.sqrt(np.maximum(second - first * first, 1e-3) * total)
    return product / (deviation * max(1e-6, float(np.sqrt((centred * centred).sum()))))


def _eroded(part: np.ndarray) -> np.ndarray:
    """Without pixels whose 3 x 3 neighbours lie elsewhere."""
    kernel = np.ones((3, 3), np.uint8)
    return cv2.erode(part.astype(np.uint8), kernel, borderValue=0).astype(bool)


MEASUREMENTS: dict[str, Callable[[Region], Measured | None]] = {
    "tone": measure_tone,
    "sharpness": measure_sharpness,
    "noise": measure_noise,
    "grid": measure_grid,
    "steps": measure_steps,
    "copy": measure_copy,
}
