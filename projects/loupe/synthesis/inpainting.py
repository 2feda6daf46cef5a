"""Fills a region from its surroundings. All take (S, S, 3) uint8 and (S, S) bool."""

from __future__ import annotations

import cv2
import numpy as np

from loupe.synthesis.seams import join_poisson

# How many shifts, and how many patches, are drawn to choose from.
_OFFSETS, _PATCHES = 60, 48


def inpaint(
    rng: np.random.Generator, host: np.ndarray, region: np.ndarray, easy: bool
) -> np.ndarray:
    """By Telea's (2004) or the Navier-Stokes method, which smooth, or (not easy) with patches."""
    kind = rng.random()
    if easy or kind < 0.45:
        method = (cv2.INPAINT_TELEA, cv2.INPAINT_NS)[rng.integers(2)]
        return cv2.inpaint(host, region.astype(np.uint8), float(rng.integers(2, 5)), method)
    if kind < 0.65:
        return fill_with_shift(rng, host, region)
    return fill_with_patches(rng, host, region)


def fill_with_shift(rng: np.random.Generator, host: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Fills with a shifted copy of the host, joined by Poisson blending.

    Of the shifts drawn it takes the one that differs least from the host along the edge. If none
    covers the region, patches fill it.
    """
    size, inside = host.shape[0], region.astype(np.uint8)
    ring = np.argwhere(cv2.dilate(inside, np.ones((7, 7), np.uint8)) - inside)
    ring = ring[rng.integers(len(ring), size=200)] if len(ring) else ring
    inner = np.argwhere(region)
    inner = inner[rng.integers(len(inner), size=100)]
    reach = np.sqrt(np.count_nonzero(region) / np.pi)
    angles = rng.uniform(0, 2 * np.pi, _OFFSETS)
    lengths = rng.uniform(reach, 2 * reach + 0.4 * size, _OFFSETS)
    shifts = np.round(np.stack([np.sin(angles), np.cos(angles)], 1) * lengths[:, None]).astype(int)
    shifts = shifts[[_shows_host(inner + shift, region) for shift in shifts]]
    if not len(shifts) or not len(ring):
        return fill_with_patches(rng, host, region)
    wanted = host[ring[:, 0], ring[:, 1]].astype(np.int16)
    costs = []
    for shift in shifts:
        y, x = np.clip(ring + shift, 0, size - 1).T
        costs.append(np.abs(host[y, x] - wanted).mean())
    dy, dx = shifts[int(np.argmin(costs))]
    matrix = np.array([[1, 0, -dx], [0, 1, -dy]], np.float32)
    copied = cv2.warpAffine(
        host, matrix, (size, size), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT
    )
    return join_poisson(rng, host, copied, region)


def _shows_host(places: np.ndarray, region: np.ndarray) -> bool:
    """Whether places (N, 2) lie inside of the image and 97% of them outside of the region."""
    if places.min() < 0 or places.max() >= region.shape[0]:
        return False
    return int(np.count_nonzero(region[places[:, 0], places[:, 1]])) <= 0.03 * len(places)


def fill_with_patches(rng: np.random.Generator, host: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Fills with small patches of the host, from the edge inwards (as Criminisi et al. 2004).

    Each patch is the one of a few drawn that differs least from the pixels already known there.
    """
    size = host.shape[0]
    patch = int(min(rng.integers(9, 17), size // 3))
    image = host.copy()
    known = ~region
    x, y, width, height = cv2.boundingRect(region.astype(np.uint8))
    step = max(4, int(patch * 0.6))
    corners = [
        (min(max(top, 0), size - patch), min(max(left, 0), size - patch))
        for top in range(y - step // 2, y + height, step)
        for left in range(x - step // 2, x + width, step)
    ]
    depth = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, 3)
    half = patch // 2
    corners.sort(key=lambda corner: depth[corner[0] + half, corner[1] + half])
    sources = _whole_patches(rng, region, patch)
    if sources is None:
        return cv2.inpaint(host, region.astype(np.uint8), 3.0, cv2.INPAINT_TELEA)
    candidates = np.stack([host[t : t + patch, s : s + patch] for t, s in sources])
    floats = candidates.astype(np.float32)
    for top, left in corners:
        seen = known[top : top + patch, left : left + patch]
        if seen.all():
            continue
        window = image[top : top + patch, left : left + patch]
        weight = seen[..., None].astype(np.float32)
        cost = np.einsum(
            "nhwc,hwc->n", (floats - window) ** 2, np.broadcast_to(weight, window.shape)
        )
        np.copyto(window, candidates[cost.argmin()], where=~seen[..., None])
        seen |= True
    return image


def _whole_patches(rng: np.random.Generator, region: np.ndarray, patch: int) -> np.ndarray | None:
    """Corners (N, 2) of random windows of a side that the region does not touch."""
    counts = cv2.integral(region.astype(np.uint8))
    sums = counts[patch:, patch:] - counts[:-patch, patch:] - counts[patch:, :-patch]
    free = np.argwhere(sums + counts[:-patch, :-patch] == 0)
    return free[rng.integers(len(free), size=_PATCHES)] if len(free) else None
