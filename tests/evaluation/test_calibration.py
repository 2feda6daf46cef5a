"""Reliability, and temperatures that are recovered."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from loupe.evaluation.calibration import (
    BINS,
    calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_curve,
    scale_scores,
)


def overconfident(temperature: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from calibrated scores; the scores made surer by the temperature."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 1.5, count)
    labels = (generator.random(count) < expit(logits)).astype(float)
    return expit(logits * temperature), labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_spoiled_the_scores_is_found(temperature):
    scores, labels = overconfident(temperature)
    assert fit_temperature(scores, labels) == pytest.approx(temperature, rel=0.05)


def test_scaling_by_the_fitted_temperature_lowers_error_and_likelihood():
    scores, labels = overconfident(3.0)
    scaled = scale_scores(scores, fit_temperature(scores, labels))
    ones = np.ones((1, len(scores)))
    assert calibration_error(scaled, labels, ones) < 0.02 < calibration_error(scores, labels, ones)
    assert negative_log_likelihood(scaled, labels) < negative_log_likelihood(scores, labels)


def test_scaling_keeps_the_order_and_the_answer_at_one_half():
    scores = np.linspace(0, 1, 101)
    scaled = scale_scores(scores, 2.5)
    assert (np.diff(scaled) > 0).all()
    assert ((scaled > 0.5) == (scores > 0.5)).all()
    assert np.isfinite(scaled).all()


def test_one_class_alone_cannot_be_calibrated():
    with pytest.raises(ValueError, match=r"forged and authentic images, given are 3 .*\[1\]"):
        fit_temperature(np.array([0.2, 0.4, 0.6]), np.ones(3))


def test_the_reliability_curve_counts_every_image_in_its_bin():
    scores = np.array([0.0, 0.01, 0.5, 1.0])
    curve = reliability_curve(scores, np.array([0, 1, 1, 1]))
    assert [point.images for point in curve] == [2] + [0] * 6 + [1] + [0] * 6 + [1]
    assert curve[0].mean_probability == pytest.approx(0.005)
    assert curve[0].forged_fraction == 0.5
    assert np.isnan(curve[1].mean_probability)
    assert len(curve) == BINS


def test_the_error_is_the_curves_mean_gap():
    scores, labels = overconfident(2.0, 500)
    curve = [point for point in reliability_curve(scores, labels) if point.images]
    expected = sum(p.images * abs(p.mean_probability - p.forged_fraction) for p in curve) / 500
    assert calibration_error(scores, labels, np.ones((1, 500)))[0] == pytest.approx(expected)
