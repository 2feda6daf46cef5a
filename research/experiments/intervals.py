"""Intervals of differences: paired by seed (Student's t), or paired by image (bootstrap).

Letters: n images, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from loupe.evaluation.bootstrap import resampled_weights
from loupe.evaluation.measures import Columns
from loupe.evaluation.metrics import compute, metrics_of

LEVEL = 0.95
RESAMPLES = 2000
# Numbers in one block of bootstrap weights.
BLOCK = 500_000


class Interval(NamedTuple):
    """A mean and its 95% interval.

    Attributes:
        mean: NaN where nothing is known.
        low: NaN where there is no interval (fewer than two numbers).
        high: likewise.
        count: how many numbers, or images, it rests on.
    """

    mean: float
    low: float
    high: float
    count: int


class Pair(NamedTuple):
    """The same images measured twice, in the same order."""

    before: Columns
    after: Columns


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values and its Student's t interval; values that are NaN are left out."""
    known = np.asarray([value for value in values if not math.isnan(value)], float)
    if len(known) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(known.mean())
    if len(known) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    spread = float(known.std(ddof=1) / math.sqrt(len(known)))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(known) - 1)) * spread
    return Interval(mean, mean - reach, mean + reach, len(known))


def paired_t_interval(values: dict[int, float], reference: dict[int, float]) -> Interval:
    """Interval of the mean difference, over the seeds that both have."""
    shared = sorted(values.keys() & reference.keys())
    return t_interval([values[seed] - reference[seed] for seed in shared])


def metric_values(columns: Columns) -> dict[str, float]:
    """All metrics of one evaluation that need no histogram of pixels."""
    names = [metric.name for metric in metrics_of(()) if not metric.of_pixels]
    return {name: float(value[0]) for name, value in compute(columns, names=names).items()}


def change(pair: Pair, metric: str, weights: np.ndarray) -> np.ndarray:
    """(R,) change of a metric when images are drawn with weights (R, n)."""
    before, after = (compute(columns, weights, [metric])[metric] for columns in pair)
    return after - before


def mean_change(pairs: Sequence[Pair], metric: str) -> float:
    """Mean change over models, on the images as they are."""
    return float(np.mean([change(p, metric, np.ones((1, len(p.before.label))))[0] for p in pairs]))


def changes(pairs: Sequence[Pair], metric: str, *, seed: int = 0) -> np.ndarray:
    """(RESAMPLES,) mean change over models, each time for images drawn anew.

    All models are measured on the same drawn images, before and after; so what is left to chance is
    which images were tested, for these very models.

    Raises:
        ValueError: the models were measured on different numbers of images.
    """
    images = len(pairs[0].before.label)
    if any(len(columns.label) != images for pair in pairs for columns in pair):
        raise ValueError("models were measured on different images: evaluate them again")
    generator = np.random.default_rng(seed)
    parts = []
    block = max(1, BLOCK // images)
    for start in range(0, RESAMPLES, block):
        weights = resampled_weights(images, min(block, RESAMPLES - start), generator)
        parts.append(np.mean([change(pair, metric, weights) for pair in pairs], axis=0))
    return np.concatenate(parts)


def percentile_interval(mean: float, draws: np.ndarray, count: int) -> Interval:
    """The central 95% of what a bootstrap drew; none where half of the draws are not defined."""
    known = draws[np.isfinite(draws)]
    if 2 * len(known) < len(draws):
        return Interval(mean, math.nan, math.nan, count)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(known, [tail, 100 - tail])
    return Interval(mean, float(low), float(high), count)


def bootstrap_interval(pairs: Sequence[Pair], metric: str, *, seed: int = 0) -> Interval:
    """Mean change over models of a metric, its interval over images (percentiles)."""
    draws = changes(pairs, metric, seed=seed)
    return percentile_interval(mean_change(pairs, metric), draws, len(pairs[0].before.label))


def pooled_interval(groups: Sequence[Sequence[Pair]], metric: str) -> Interval:
    """Mean over groups of their mean change.

    Groups of equally many images are drawn alike, place by place: test sets of several techniques
    share their authentic images, and forge the same photographs, so they are lucky together. Others
    are drawn for themselves.
    """
    lengths = [len(pairs[0].before.label) for pairs in groups]
    seeds = {length: seed for seed, length in enumerate(dict.fromkeys(lengths))}
    draws = [
        changes(pairs, metric, seed=seeds[length])
        for pairs, length in zip(groups, lengths, strict=True)
    ]
    mean = float(np.mean([mean_change(pairs, metric) for pairs in groups]))
    return percentile_interval(mean, np.mean(draws, axis=0), sum(lengths))
