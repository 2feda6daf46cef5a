"""Threshold curves against scikit-learn and pair counting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    roc_auc_score,
    roc_curve,
)
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from loupe.evaluation.curves import (
    LevelCounts,
    area_under_roc,
    average_precision,
    best_f1,
    count_levels,
    curve_of,
    equal_error_rate,
    true_positive_rate_at,
)


def sample(kind: str, seed: int = 0, size: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels: distinct, heavily tied, saturated, or 8-bit."""
    generator = np.random.default_rng(seed)
    forged = generator.random(size) < 0.3
    scores = np.clip(generator.normal(0.4 + 0.2 * forged, 0.25), 0, 1).astype(np.float32)
    if kind == "tied":
        scores = np.round(scores * 4) / np.float32(4)
    if kind == "saturated":
        scores = (1 / (1 + np.exp(-40 * (scores - 0.5)))).astype(np.float32)
    if kind == "8-bit":
        scores = (scores * 255).astype(np.uint8)
    return scores, forged


KINDS = ["distinct", "tied", "saturated", "8-bit"]


def curve(scores: np.ndarray, forged: np.ndarray):
    return curve_of(count_levels(scores, forged))


@pytest.mark.parametrize("kind", KINDS)
def test_area_and_average_precision_equal_scikit_learn_and_torchmetrics(kind):
    scores, forged = sample(kind)
    area, precision = (
        area_under_roc(curve(scores, forged)),
        average_precision(curve(scores, forged)),
    )
    assert area == pytest.approx(roc_auc_score(forged, scores), abs=1e-9)
    assert precision == pytest.approx(average_precision_score(forged, scores), abs=1e-9)
    fractions = torch.as_tensor(scores / 255.0 if kind == "8-bit" else scores)
    truth = torch.tensor(forged).long()
    assert area == pytest.approx(float(binary_auroc(fractions, truth)), abs=1e-6)
    assert precision == pytest.approx(float(binary_average_precision(fractions, truth)), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_best_f1_equals_trying_every_threshold(kind):
    scores, forged = sample(kind, size=120)
    expected = max(f1_score(forged, scores >= threshold) for threshold in np.unique(scores))
    assert best_f1(curve(scores, forged))[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_error_rate_is_where_the_interpolated_roc_crosses_the_diagonal(kind):
    scores, forged = sample(kind)
    false_alarms, found, _ = roc_curve(forged, scores, drop_intermediate=False)
    # Dense interpolation along the ROC polygon itself (which may rise vertically).
    steps = np.linspace(0, len(found) - 1, 400 * len(found))
    x = np.interp(steps, np.arange(len(found)), false_alarms)
    y = np.interp(steps, np.arange(len(found)), 1 - found)
    expected = x[np.argmin(np.abs(x - y))]
    assert equal_error_rate(curve(scores, forged)) == pytest.approx(expected, abs=1e-3)


def test_equal_error_rate_of_a_hand_made_set_is_exact():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], np.float32)
    forged = np.array([1, 1, 0, 1, 0, 0], bool)
    assert equal_error_rate(curve(scores, forged)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_true_positive_rate_at_a_false_positive_rate_equals_the_best_allowed_threshold(kind):
    scores, forged = sample(kind)
    thresholds = [*np.unique(scores).astype(float), np.inf]
    rates = [((scores >= t)[~forged].mean(), (scores >= t)[forged].mean()) for t in thresholds]
    expected = max(found for wrong, found in rates if wrong <= 0.1)
    assert true_positive_rate_at(curve(scores, forged), 0.1) == pytest.approx(expected)


def test_a_constant_score_has_area_one_half_and_error_rate_one_half():
    constant = curve(np.full(10, 0.3, np.float32), np.arange(10) < 4)
    assert area_under_roc(constant) == 0.5
    assert equal_error_rate(constant) == 0.5


@pytest.mark.parametrize("value", [True, False])
def test_one_class_alone_leaves_area_and_error_rate_undefined(value):
    alone = curve(np.linspace(0, 1, 7, dtype=np.float32), np.full(7, value))
    assert np.isnan(area_under_roc(alone))
    assert np.isnan(equal_error_rate(alone))
    assert np.isnan(true_positive_rate_at(alone, 0.01))
    assert np.isnan(average_precision(alone)) == np.isnan(best_f1(alone)[0]) == (not value)


def test_levels_are_distinct_ascending_and_complete():
    scores, forged = sample("tied")
    levels = count_levels(scores, forged)
    assert levels.values.tolist() == sorted(set(scores.tolist()))
    assert levels.forged.tolist() == [int((forged & (scores == v)).sum()) for v in levels.values]
    assert levels.authentic.sum() == (~forged).sum()


def test_eight_bit_levels_are_fractions_of_255_and_a_negative_zero_is_a_zero():
    levels = count_levels(np.array([0, 127, 128, 255], np.uint8), np.zeros(4, bool))
    assert levels.values == pytest.approx(np.array([0, 127, 128, 255]) / 255)
    levels = count_levels(np.array([-0.0, 0.0], np.float32), np.array([True, False]))
    assert levels.values.tolist() == [0.0]


def test_curves_with_a_leading_dimension_equal_one_by_one():
    generator = np.random.default_rng(0)
    stacked = [generator.integers(0, 5, (3, 40)) for _ in range(2)]
    curves = curve_of(LevelCounts(np.arange(40.0), stacked[0][0], stacked[1][0]))
    both = type(curves)(*(np.cumsum(part[:, ::-1], axis=1) for part in stacked))
    for function in (area_under_roc, average_precision, equal_error_rate):
        assert function(both)[0] == pytest.approx(function(curves), abs=1e-12)
