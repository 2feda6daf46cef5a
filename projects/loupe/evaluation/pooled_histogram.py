"""Probabilities of all pixels of all forged images, in memory that does not grow with the pixels.

The pooled curve needs every probability of the set at once, so they are sorted into 1,032,196 bins
that are fine where networks put their outputs: 16,384 bins for each halving of the distance to 0,
down to 2^-41 (a logit of -28), and to 1, down to 2^-24 (the last step of float32). Each level of 8-
and 16-bit maps has a bin of its own, and the error of AUC, AP and best F1 for float maps is below
1e-4. Maps whose values hardly differ (an untrained network's) may need finer bins: then halving the
number of bins changes the metric, and the report states an error.

Intervals: a Poisson bootstrap (Chamandy et al. 2012, "Estimating uncertainty for massive data
streams"). Every image enters each replicate with a weight ~ Poisson(1), the limit of the
multinomial weights of Efron's bootstrap, drawn from its own name. So the replicates are the same
however images are spread over processes. Replicates are kept on coarser bins (64 for each halving).
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from loupe.evaluation.curves import (
    Curve,
    LevelCounts,
    best_f1,
    curve_of,
)

MANTISSA_BITS = 14
LOW_OCTAVES, HIGH_OCTAVES = 40, 23
LOW_BINS = (LOW_OCTAVES << MANTISSA_BITS) + 2
BINS = LOW_BINS + (HIGH_OCTAVES << MANTISSA_BITS) + 2
COARSE_SHIFT = 8
COARSE_BINS = (BINS >> COARSE_SHIFT) + 1
REPLICATES = 200
PENDING = 8
# A replicate on coarse bins is only believed if the whole set's value hardly moves on them.
COARSE_TOLERANCE = 0.005


def _first(octaves: int) -> int:
    """Leading bits of the float32 number `octaves` halvings below one half."""
    return (126 - octaves) << MANTISSA_BITS


def _below(distances: np.ndarray, octaves: int) -> np.ndarray:
    """(T,) bins between each distance and 0; all below the last octave are in one."""
    bits = np.ascontiguousarray(distances, dtype=np.float32).view(np.int32) >> (23 - MANTISSA_BITS)
    bits -= _first(octaves) - 1
    return np.maximum(bits, 0, out=bits)


def bin_of(scores: np.ndarray) -> np.ndarray:
    """Index of the bin of each score in [0, 1]; ascending, and never across 0.5.

    Args:
        scores: (T,) float32, ascending.
    """
    middle = np.searchsorted(scores, 0.5, side="right")
    low, high = scores[:middle], scores[middle:]
    above = (BINS - 1) - _below(np.float32(1) - high, HIGH_OCTAVES)
    return np.concatenate([_below(low, LOW_OCTAVES), above])


def lower_edge(index: int) -> float:
    """Smallest score of a bin (of its image under `bin_of`), for reporting a threshold."""

    def score(bits: int) -> float:
        return float(np.int32(bits << (23 - MANTISSA_BITS)).view(np.float32))

    if index < LOW_BINS:
        return score(index - 1 + _first(LOW_OCTAVES)) if index else 0.0
    # Above one half the bin begins just above 1 - (the upper end of the distance to 1).
    return 1.0 - score(BINS - 1 - index + _first(HIGH_OCTAVES))


class PooledCounts(NamedTuple):
    """One image's (or several images') non-empty bins.

    Attributes:
        bins: (N,) ascending bin indices.
        forged: (N,) forged pixels in each.
        authentic: (N,) authentic pixels in each.
        merged: pixels in bins that hold several different scores.
    """

    bins: np.ndarray
    forged: np.ndarray
    authentic: np.ndarray
    merged: int = 0


class PooledShard(NamedTuple):
    """What one process sends to the one that reports.

    Attributes:
        counts: the bins of the images already added up.
        replicates: (REPLICATES, 2, COARSE_BINS) the bootstrap's sums; forged first.
        image_ids: images in `counts`.
        pending: the last images, not yet in `counts`, by identifier.
    """

    counts: PooledCounts
    replicates: np.ndarray
    image_ids: frozenset[str]
    pending: dict[str, PooledCounts]


class PooledEstimate(NamedTuple):
    """A pooled metric.

    Attributes:
        value: the metric.
        low: lower end of its 95% interval, NaN where that cannot be given.
        high: upper end.
        error: about how far binning may have moved it: how much it changes when every two bins are
            made one, times the fraction of pixels in bins that hold several values.
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    error: float = np.nan


def poisson_weights(image_id: str) -> np.ndarray:
    """(REPLICATES,) how often the image is drawn in each replicate; the same in every process."""
    generator = np.random.Generator(np.random.SFC64([zlib.crc32(image_id.encode()), 0]))
    return generator.poisson(1.0, REPLICATES).astype(np.float64)


def coarse_sums(counts: PooledCounts) -> np.ndarray:
    """(2, COARSE_BINS) forged and authentic pixels on the replicates' bins."""
    coarse = counts.bins >> COARSE_SHIFT
    return np.stack(
        [
            np.bincount(coarse, weights=part, minlength=COARSE_BINS)
            for part in (counts.forged, counts.authentic)
        ]
    )


class PooledHistogram:
    """Sums of the bins over images, and of the bootstrap's replicates.

    The last images are held back: a sampler that pads its last batch repeats images, and one that
    another process has counted as well can still be left out.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self.forged = np.zeros(BINS, np.int64)
        self.authentic = np.zeros(BINS, np.int64)
        self.merged = 0
        self.replicates = np.zeros((REPLICATES, 2, COARSE_BINS))
        self.image_ids: set[str] = set()
        self.pending: deque[tuple[str, PooledCounts]] = deque()

    def add(self, image_id: str, levels: LevelCounts) -> None:
        """Adds one forged image's pixels."""
        bins = bin_of(levels.values)
        starts = np.flatnonzero(np.diff(bins, prepend=-1))
        forged = np.add.reduceat(levels.forged, starts).astype(np.int32)
        authentic = np.add.reduceat(levels.authentic, starts).astype(np.int32)
        several = np.diff(starts, append=len(bins)) > 1
        merged = int(forged[several].sum() + authentic[several].sum())
        counts = PooledCounts(bins[starts].astype(np.int32), forged, authentic, merged)
        self.pending.append((image_id, counts))
        if len(self.pending) == 2 * PENDING:
            self.settle([self.pending.popleft() for _ in range(PENDING)])

    def settle(self, images: list[tuple[str, PooledCounts]]) -> None:
        """Adds held-back images to the sums."""
        if not images:
            return
        sums = np.zeros((len(images), 2, COARSE_BINS))
        for index, (_, counts) in enumerate(images):
            self.forged[counts.bins] += counts.forged
            self.authentic[counts.bins] += counts.authentic
            self.merged += counts.merged
            sums[index] = coarse_sums(counts)
        self.image_ids.update(image_id for image_id, _ in images)
        weights = np.stack([poisson_weights(image_id) for image_id, _ in images])
        used = np.flatnonzero(sums.any(axis=(0, 1)))
        # A slice, because picking single bins would copy all replicates twice.
        span = slice(used[0], used[-1] + 1)
        self.replicates[:, :, span] += np.tensordot(weights, sums[:, :, span], axes=(0, 0))

    def shard(self) -> PooledShard:
        """The state to be gathered."""
        bins = np.flatnonzero(self.forged + self.authentic)
        counts = PooledCounts(bins, self.forged[bins], self.authentic[bins], self.merged)
        return PooledShard(counts, self.replicates, frozenset(self.image_ids), dict(self.pending))


def merge_shards(shards: list[PooledShard]) -> tuple[PooledHistogram, int]:
    """Adds up the processes' shards, each image once.

    Returns:
        The sum, and the number of images that are in it more than once because two processes had
        both settled them (0 with any sampler that pads by repeating fewer than PENDING images).
    """
    total = PooledHistogram()
    repeated = 0
    for shard in shards:
        repeated += len(total.image_ids & shard.image_ids)
        total.image_ids |= shard.image_ids
        total.forged[shard.counts.bins] += shard.counts.forged
        total.authentic[shard.counts.bins] += shard.counts.authentic
        total.merged += shard.counts.merged
        total.replicates += shard.replicates
    held_back = {name: counts for shard in shards for name, counts in shard.pending.items()}
    # In the order of the names, so that it does not matter which process had which image.
    total.settle([(name, held_back[name]) for name in sorted(held_back.keys() - total.image_ids)])
    return total, repeated


def _interval(value: float, whole: float, replicates: np.ndarray) -> tuple[float, float]:
    """Centres the coarse replicates on the fine value, if the coarse bins are fine enough."""
    finite = replicates[np.isfinite(replicates)]
    if not np.isfinite(value) or len(finite) < 2 or abs(value - whole) > COARSE_TOLERANCE:
        return np.nan, np.nan
    low, high = np.percentile(finite, [2.5, 97.5]) + (value - whole)
    return float(low), float(high)


def _halved(counts: PooledCounts) -> LevelCounts:
    """The counts with every two neighbouring bins made one."""
    bins = counts.bins >> 1
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    sums = [np.add.reduceat(part, starts) for part in (counts.forged, counts.authentic)]
    return LevelCounts(bins[starts], *sums)


def pooled_estimates(
    histogram: PooledHistogram, functions: Mapping[str, Callable[[Curve], np.ndarray]]
) -> dict[str, PooledEstimate]:
    """Metrics of the curve over all pixels added.

    Args:
        histogram: of all forged images.
        functions: of a curve, by name.
    """
    used = np.flatnonzero(histogram.forged + histogram.authentic)
    if not used.size:
        return dict.fromkeys(functions, PooledEstimate(np.nan))
    counts = PooledCounts(used, histogram.forged[used], histogram.authentic[used])
    fine, halved = curve_of(LevelCounts(*counts[:3])), curve_of(_halved(counts))
    merged_fraction = histogram.merged / float((counts.forged + counts.authentic).sum())
    resampled = np.concatenate([coarse_sums(counts)[None], histogram.replicates])
    above = np.cumsum(resampled[:, :, ::-1], axis=-1)
    coarse = Curve(above[:, 0], above[:, 1])
    estimates = {}
    for name, function in functions.items():
        value, on_coarse = float(function(fine)), function(coarse)
        interval = _interval(value, float(on_coarse[0]), on_coarse[1:])
        error = abs(value - float(function(halved))) * merged_fraction
        estimates[name] = PooledEstimate(value, *interval, error)
    return estimates


def best_threshold(histogram: PooledHistogram) -> float:
    """The probability from which on a pixel is called forged at the best pooled F1; NaN if none."""
    if not histogram.forged.any():
        return math.nan
    used = np.flatnonzero(histogram.forged + histogram.authentic)
    counts = LevelCounts(used, histogram.forged[used], histogram.authentic[used])
    return lower_edge(int(used[::-1][int(best_f1(curve_of(counts))[1])]))
