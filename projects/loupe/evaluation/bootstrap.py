"""Percentile intervals of the bootstrap (Efron 1979; Efron & Tibshirani 1993, chapter 13).

A set of n images is drawn anew R times, each time n images with replacement; the 2.5th and 97.5th
percentiles of a metric over the R sets are its 95% interval. Images are drawn, never pixels: the
pixels of one image are not independent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000
# Numbers in one block of weights: bounds memory to some tens of MB for sets of up to a million.
BLOCK = 250_000


def resampled_weights(images: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """(resamples, images) how often each image is drawn: multinomial counts of sum `images`."""
    drawn = generator.integers(images, size=(resamples, images))
    drawn += np.arange(resamples)[:, None] * images
    counts = np.bincount(drawn.reshape(-1), minlength=resamples * images)
    return counts.reshape(resamples, images).astype(np.float64)


def bootstrap(
    metrics: Callable[[np.ndarray], dict[str, np.ndarray]],
    images: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95% intervals of all metrics at once.

    Args:
        metrics: weights (R, images) -> values (R,) by name.
        images: number of images.
        resamples: number of resampled sets.
        seed: the same seed gives the same intervals.

    Returns:
        (low, high) by name; NaN where fewer than half of the resamples define the metric.
    """
    if images == 0 or resamples == 0:
        return {name: (np.nan, np.nan) for name in metrics(np.ones((1, images)))}
    generator = np.random.default_rng(seed)
    block = max(1, min(resamples, BLOCK // images))
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, resamples, block):
        weights = resampled_weights(images, min(block, resamples - start), generator)
        for name, values in metrics(weights).items():
            parts.setdefault(name, []).append(values)
    intervals = {}
    for name, blocks in parts.items():
        values = np.concatenate(blocks)
        values = values[np.isfinite(values)]
        enough = 2 * len(values) >= resamples
        low, high = np.percentile(values, [2.5, 97.5]) if enough else (np.nan, np.nan)
        intervals[name] = (float(low), float(high))
    return intervals
