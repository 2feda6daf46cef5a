"""The pooled bins: monotone, fine enough, bounded in memory, exact when merged."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from loupe.evaluation.curves import count_levels
from loupe.evaluation.metrics import METRICS
from loupe.evaluation.pooled_histogram import (
    BINS,
    PENDING,
    PooledHistogram,
    best_threshold,
    bin_of,
    lower_edge,
    merge_shards,
    pooled_estimates,
)


def images(kind: str, count: int = 12, pixels: int = 4000) -> list[tuple[np.ndarray, np.ndarray]]:
    """Maps of one kind with their masks, as flat arrays."""
    generator = np.random.default_rng(3)
    result = []
    for _ in range(count):
        forged = generator.random(pixels) < generator.uniform(0.05, 0.5)
        logits = generator.normal(-1.0 + 1.5 * forged + generator.normal() * 0.5, 1.0)
        scale = {"saturated-low": (3, -10), "saturated-high": (3, 10), "narrow": (0.002, -0.1)}
        factor, shift = scale.get(kind, (1, 0))
        scores = 1 / (1 + np.exp(-(factor * logits + shift)))
        scores = scores.astype(np.float32)
        if kind == "8-bit":
            scores = (scores * 255).astype(np.uint8)
        result.append((scores, forged))
    return result


def histogram_of(maps: list[tuple[np.ndarray, np.ndarray]], names: list[str] | None = None):
    histogram = PooledHistogram()
    for index, (scores, forged) in enumerate(maps):
        histogram.add(names[index] if names else str(index), count_levels(scores, forged))
    return histogram


FUNCTIONS = {
    name.removeprefix("pixel/"): metric.function
    for name, metric in METRICS.items()
    if metric.of_pixels
}


def merged(*shards) -> PooledHistogram:
    histogram, repeated = merge_shards(list(shards))
    assert repeated == 0
    return histogram


def estimates(maps: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    return pooled_estimates(merged(histogram_of(maps).shard()), FUNCTIONS)


KINDS = ["wide", "saturated-low", "saturated-high", "8-bit"]


@pytest.mark.parametrize("kind", KINDS)
def test_pooled_area_precision_and_best_f1_equal_scikit_learn_to_1e_4(kind):
    maps = images(kind)
    scores = np.concatenate([one for one, _ in maps])
    forged = np.concatenate([one for _, one in maps])
    precision, recall, _ = precision_recall_curve(forged, scores)
    best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    result = estimates(maps)
    exact = 1e-9 if kind == "8-bit" else 1e-4
    assert result["AUC-pooled"].value == pytest.approx(roc_auc_score(forged, scores), abs=exact)
    expected = average_precision_score(forged, scores)
    assert result["AP-pooled"].value == pytest.approx(expected, abs=exact)
    assert result["F1-best-pooled"].value == pytest.approx(best, abs=exact)


def test_where_scores_lie_too_close_for_the_bins_the_error_is_reported():
    maps = images("narrow")
    exact = average_precision_score(
        np.concatenate([forged for _, forged in maps]), np.concatenate([one for one, _ in maps])
    )
    result = estimates(maps)["AP-pooled"]
    assert 1e-4 < abs(result.value - exact) < 2 * result.error
    assert all(estimates(images(kind))["AP-pooled"].error < 1e-4 for kind in KINDS)


def test_bins_ascend_with_the_score():
    scores = np.unique(np.random.default_rng(0).random(100_000, dtype=np.float32) ** 4)
    scores = np.unique(np.concatenate([scores, 1 - scores, [0, 0.5, 1]]).astype(np.float32))
    bins = bin_of(scores)
    assert (np.diff(bins) >= 0).all()
    assert bins[0] == 0
    assert bins[-1] == BINS - 1


def test_no_bin_reaches_across_one_half():
    half = np.float32(0.5)
    low, middle, high = bin_of(np.array([np.nextafter(half, 0), half, np.nextafter(half, 1)]))
    assert low <= middle < high


@pytest.mark.parametrize("levels", [256, 65536])
def test_every_level_of_8_and_16_bit_maps_has_a_bin_of_its_own(levels):
    values = np.arange(levels, dtype=np.float32) / np.float32(levels - 1)
    assert len(np.unique(bin_of(values))) == levels


def test_the_lower_edge_of_a_bin_is_in_it_or_just_below():
    scores = np.sort(np.random.default_rng(0).random(2000, dtype=np.float32))
    edges = np.array([lower_edge(int(index)) for index in bin_of(scores)])
    assert (edges <= scores).all()
    assert np.abs(edges - scores).max() < 4e-5


@pytest.mark.parametrize("padding", [[], [0]])
def test_two_processes_add_up_to_one_exactly_also_if_one_pads_the_other(padding):
    maps, names = images("wide", count=41), [f"image {index}" for index in range(41)]
    second = [*range(1, 41, 2), *padding]
    both = merged(
        histogram_of(maps[::2], names[::2]).shard(),
        histogram_of([maps[i] for i in second], [names[i] for i in second]).shard(),
    )
    whole = merged(histogram_of(maps, names).shard())
    assert pooled_estimates(both, FUNCTIONS) == pooled_estimates(whole, FUNCTIONS)


def test_images_settled_by_two_processes_are_reported():
    maps = images("wide", count=3 * PENDING, pixels=50)
    shard = histogram_of(maps).shard()
    assert merge_shards([shard, shard])[1] == len(shard.image_ids) > 0


def test_memory_does_not_grow_with_images_or_pixels():
    def size(histogram: PooledHistogram) -> int:
        return histogram.forged.nbytes + histogram.authentic.nbytes + histogram.replicates.nbytes

    few, many = histogram_of(images("wide", 2, 10)), histogram_of(images("wide", 60, 9000))
    assert size(few) == size(many) < 40e6
    assert len(many.pending) < 2 * PENDING


def test_the_interval_is_near_that_of_resampling_images_by_hand():
    maps = images("wide", 30, 300)
    generator = np.random.default_rng(1)
    areas = []
    for _ in range(300):
        drawn = [maps[index] for index in generator.integers(30, size=30)]
        areas.append(
            roc_auc_score(
                np.concatenate([f for _, f in drawn]), np.concatenate([s for s, _ in drawn])
            )
        )
    result = estimates(maps)["AUC-pooled"]
    expected = np.percentile(areas, [2.5, 97.5])
    width = expected[1] - expected[0]
    assert result.low == pytest.approx(expected[0], abs=width / 4)
    assert result.high == pytest.approx(expected[1], abs=width / 4)


def test_no_interval_is_given_where_the_coarse_bins_cannot_tell_scores_apart():
    result = estimates(images("narrow"))["AUC-pooled"]
    assert np.isfinite(result.value)
    assert np.isnan(result.low)


def test_the_best_threshold_separates_what_it_should():
    scores = np.array([0.1, 0.2, 0.7, 0.8], np.float32)
    histogram = merged(histogram_of([(scores, scores > 0.5)]).shard())
    assert 0.2 < best_threshold(histogram) <= 0.7
