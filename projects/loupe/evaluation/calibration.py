"""Are the probabilities right? Reliability curve, calibration error, temperature scaling.

The expected calibration error (Naeini et al. 2015; Guo et al. 2017, "On calibration of modern
neural networks") over bins b of n_b images, mean probability p_b and fraction forged f_b:

    ECE = sum_b  n_b / n * |p_b - f_b|

Temperature scaling (Guo et al. 2017) replaces a probability p by sigmoid(logit(p) / T), where one
T > 0 minimises the negative log likelihood of a validation set. It changes no ranking and no
decision at 0.5.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

BINS = 15
# A score of exactly 0 or 1 has no finite logit.
SMALLEST = 1e-7
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0


class ReliabilityBin(NamedTuple):
    """One point of the reliability curve.

    Attributes:
        low: probabilities from here on,
        high: below here (the last bin holds 1 too).
        images: how many are in the bin.
        mean_probability: what the detector says; NaN in an empty bin.
        forged_fraction: what is true; NaN in an empty bin.
    """

    low: float
    high: float
    images: int
    mean_probability: float
    forged_fraction: float


def bin_index(scores: np.ndarray) -> np.ndarray:
    """(n,) equal bin of each score in [0, 1]."""
    return np.minimum((scores * BINS).astype(int), BINS - 1)


def reliability_curve(scores: np.ndarray, labels: np.ndarray) -> list[ReliabilityBin]:
    """Mean score and fraction of forged images in each of 15 equal bins.

    Args:
        scores: (n,) in [0, 1].
        labels: (n,) 0 or 1.
    """
    bins = bin_index(scores)
    curve = []
    for index in range(BINS):
        inside = bins == index
        edges = index / BINS, (index + 1) / BINS
        means = (np.nan, np.nan)
        if inside.any():
            means = (float(scores[inside].mean()), float(labels[inside].mean()))
        curve.append(ReliabilityBin(*edges, int(inside.sum()), *means))
    return curve


def calibration_error(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) ECE: mean distance between mean score and fraction of forged images, over the bins.

    Args:
        scores: (n,) in [0, 1].
        labels: (n,) 0 or 1.
        weights: (R, n) how often each image is drawn.
    """
    members = np.eye(BINS)[bin_index(scores)]
    gaps = np.abs(weights @ (members * (scores - labels)[:, None])).sum(axis=1)
    total = weights.sum(axis=1)
    return np.divide(gaps, total, out=np.full(len(weights), np.nan), where=total > 0)


def scale_scores(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Scores with their logits divided by the temperature; above 1 makes them less sure."""
    return expit(logit(np.clip(scores, SMALLEST, 1 - SMALLEST)) / temperature)


def negative_log_likelihood(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log likelihood of the labels, in nats."""
    scores = np.clip(scores, SMALLEST, 1 - SMALLEST)
    return float(-np.mean(np.where(labels > 0, np.log(scores), np.log1p(-scores))))


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that makes the labels of a validation set likeliest.

    Args:
        scores: (n,) in [0, 1].
        labels: (n,) 0 or 1.

    Raises:
        ValueError: a class is missing, so that any certainty could be right.
    """
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"temperature scaling needs forged and authentic images, given are {len(labels)} images"
            f" with the labels {sorted({int(label) for label in labels})}"
        )
    # Convex in the inverse temperature; its logarithm makes the bounds symmetric.
    result = minimize_scalar(
        lambda log_t: negative_log_likelihood(scale_scores(scores, float(np.exp(log_t))), labels),
        bounds=(np.log(LOWEST_TEMPERATURE), np.log(HIGHEST_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(result.x))
