"""Regions to forge: random shapes, and objects that follow the edges of the picture.

A region is (S, S) bool, S being the side of the image.
"""

from __future__ import annotations

import cv2
import numpy as np

# The fraction of the image that an object may cover.
SMALLEST, LARGEST = 0.015, 0.35
_TRIALS = 8


def draw_region(rng: np.random.Generator, content: np.ndarray) -> np.ndarray:
    """A region to forge: in three of four cases an object of the content, else a random shape."""
    if rng.random() < 0.75:
        found = find_object(rng, content)
        if found is not None:
            return found
    return draw_shape(rng, content.shape[0])


def draw_shape(
    rng: np.random.Generator, size: int, smallest: float = 0.02, largest: float = 0.3
) -> np.ndarray:
    """A random blob, polygon or ellipse, (size, size) bool.

    Its area is a fraction of the image, log-uniform from `smallest` to `largest`.
    """
    area = np.exp(rng.uniform(np.log(smallest), np.log(largest))) * size * size
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    kind = rng.integers(3)
    if kind == 0:
        radii = np.ones_like(angles)
        for frequency in range(2, 6):
            wave = np.cos(frequency * angles + rng.uniform(0, 2 * np.pi))
            radii += rng.uniform(0, 0.6) / frequency * wave
    elif kind == 1:
        corners = int(rng.integers(3, 9))
        angles = (np.arange(corners) + rng.uniform(0.1, 0.9)) * 2 * np.pi / corners
        radii = rng.uniform(0.6, 1.3, len(angles))
    else:
        radii = np.ones_like(angles)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    points[:, 1] *= rng.uniform(0.5, 1.0)
    turn = rng.uniform(0, 2 * np.pi)
    points = points @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    x, y = points.T
    drawn_area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    points *= np.sqrt(area / max(drawn_area, 1e-3))
    reach = np.minimum(np.abs(points).max(axis=0), 0.45 * size)
    points += rng.uniform(0.6 * reach, size - 0.6 * reach)
    region = np.zeros((size, size), np.uint8)
    cv2.fillPoly(region, [np.round(points).astype(np.int32)], 1)
    return region.astype(bool)


def find_object(rng: np.random.Generator, content: np.ndarray) -> np.ndarray | None:
    """A connected part of the picture, bounded by its edges; None where none is found.

    Args:
        rng: source of all randomness.
        content: (S, S, 3) uint8.
    """
    ways = (flood_object, cluster_object, flood_object, leave_background)
    first = int(rng.integers(4))
    for trial in range(_TRIALS):
        region = _clean(ways[(first + trial) % 4](rng, content))
        if region is not None and not _is_cut(region):
            return region
    return None


def _is_cut(region: np.ndarray) -> bool:
    """Whether the region runs along the image's frame, as no object that a forger cuts out does.

    The limit is half the side of a square of the region's area.
    """
    frame = sum(
        np.count_nonzero(line) for line in (region[0], region[-1], region[:, 0], region[:, -1])
    )
    return frame > 0.5 * np.sqrt(np.count_nonzero(region))


def flood_object(rng: np.random.Generator, content: np.ndarray) -> np.ndarray:
    """The connected pixels of about the colour of a random point: (S, S) uint8, 1 inside."""
    size = content.shape[0]
    smooth = cv2.GaussianBlur(content, (0, 0), size / 100)
    filled = np.zeros((size + 2, size + 2), np.uint8)
    tolerance = (float(rng.uniform(12, 45)),) * 3
    x, y = (int(value) for value in rng.uniform(0.2 * size, 0.8 * size, 2))
    flags = 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | (1 << 8)
    cv2.floodFill(smooth, filled, (x, y), 0, tolerance, tolerance, flags)
    return filled[1:-1, 1:-1]


def leave_background(rng: np.random.Generator, content: np.ndarray) -> np.ndarray:
    """All pixels but those that a flood from the frame reaches: (S, S) uint8, 1 inside."""
    size = content.shape[0]
    smooth = cv2.GaussianBlur(content, (0, 0), size / 100)
    filled = np.zeros((size + 2, size + 2), np.uint8)
    # The tolerance is between neighbours: the flood follows a sky's gradient and stops at edges.
    tolerance = (float(rng.uniform(1.5, 6.0)),) * 3
    flags = 4 | cv2.FLOODFILL_MASK_ONLY | (1 << 8)
    for x in (0, size // 2, size - 1):
        for y in (0, size // 2, size - 1):
            if (x, y) != (size // 2, size // 2) and not filled[y + 1, x + 1]:
                cv2.floodFill(smooth, filled, (x, y), 0, tolerance, tolerance, flags)
    return 1 - filled[1:-1, 1:-1]


def cluster_object(rng: np.random.Generator, content: np.ndarray) -> np.ndarray:
    """The cluster of colour and position at a random point: (S, S) uint8, 1 inside.

    K-means on 32 x 32 cells finds it; a watershed moves its outline to the picture's edges.
    """
    cells, clusters = 32, int(rng.integers(4, 8))
    small = cv2.resize(content, (cells, cells), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.float32)
    places = np.moveaxis(np.mgrid[:cells, :cells], 0, -1).reshape(-1, 2)
    weight = np.float32(rng.uniform(1.0, 3.0))
    features = np.concatenate([lab, places.astype(np.float32) * weight], axis=1)
    centres = features[rng.integers(len(features), size=clusters)]
    for _ in range(4):
        labels = _nearest(features, centres)
        members = np.eye(clusters, dtype=np.float32)[labels]
        sums = members.T @ features
        counts = members.sum(axis=0)[:, None]
        centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
    labels = _nearest(features, centres).reshape(cells, cells)
    y, x = rng.integers(cells // 5, cells - cells // 5, 2)
    inside = (labels == labels[y, x]).astype(np.uint8)
    _, parts = cv2.connectedComponents(inside, connectivity=4)
    return _snap_to_edges(content, (parts == parts[y, x]).astype(np.uint8))


def _nearest(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    # |f - c|^2 without |f|^2, which is the same for every centre.
    return ((centres**2).sum(axis=1) - 2 * features @ centres.T).argmin(axis=1)


def _snap_to_edges(content: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Moves the outline of a coarse mask to the nearest edges of the picture by a watershed."""
    size = content.shape[0]
    soft = cv2.resize(coarse.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    reach = max(3, size // 20) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    rough = (soft > 0.5).astype(np.uint8)
    core = cv2.erode(rough, kernel, borderValue=1)
    if not core.any():
        return rough
    around = cv2.dilate(rough, kernel)
    markers = core.astype(np.int32) + 2 * (around == 0).astype(np.int32)
    cv2.watershed(content, markers)
    return (markers == 1).astype(np.uint8)


def _clean(region: np.ndarray) -> np.ndarray | None:
    """The largest connected part, smoothed, its holes filled; None if it is too small or large."""
    size = region.shape[0]
    width = max(3, size // 40) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    region = cv2.morphologyEx(region, cv2.MORPH_OPEN, kernel)
    region = cv2.morphologyEx(region, cv2.MORPH_CLOSE, kernel)
    contours, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return None
    filled = np.zeros_like(region)
    cv2.drawContours(filled, [max(contours, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    fraction = cv2.countNonZero(filled) / filled.size
    return filled.astype(bool) if SMALLEST <= fraction <= LARGEST else None


def move(
    rng: np.random.Generator, content: np.ndarray, region: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shifts content and region together by whole pixels to a random place.

    At least half of the region stays inside the image. The shift reflects the content at the
    border; these pixels lie outside the region, so the forgery does not show them.
    """
    size = region.shape[0]
    x, y, width, height = cv2.boundingRect(region.astype(np.uint8))
    # The new centre of the region's box: anywhere but in the outer tenth of the image.
    target = rng.uniform(0, size, 2) * 0.8 + 0.1 * size
    dx, dy = int(target[0] - x - width / 2), int(target[1] - y - height / 2)
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    moved = cv2.warpAffine(region.astype(np.uint8), matrix, (size, size), flags=cv2.INTER_NEAREST)
    if 2 * cv2.countNonZero(moved) < np.count_nonzero(region):
        return content, region
    shifted = cv2.warpAffine(
        content, matrix, (size, size), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT
    )
    return shifted, moved.astype(bool)
