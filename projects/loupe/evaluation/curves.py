"""Threshold curves: ROC area, average precision, best F1, equal error rate; ties always right.

The ROC area is the Mann-Whitney statistic P(forged > authentic) + P(equal) / 2 (Hanley & McNeil
1982); trapezoids over distinct scores give it exactly. Average precision sums (recall gained) x
precision without interpolation (Davis & Goadrich 2006: lines between points would be optimistic).

Letters: T distinct scores of one set, R resamples (any leading dimensions are allowed).
A curve counts what is called forged at `score >= threshold` for every distinct score, from the
highest down. Its arrays are (..., T), so a bootstrap is the same call with one more dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class LevelCounts(NamedTuple):
    """How often each distinct score occurs: all that a threshold curve needs.

    Attributes:
        values: (T,) float; the distinct scores, ascending.
        forged: (T,) integer; forged pixels (or images) with that score.
        authentic: (T,) integer; authentic ones.
    """

    values: np.ndarray
    forged: np.ndarray
    authentic: np.ndarray


class Curve(NamedTuple):
    """Counts of what is called forged, from the highest threshold to the lowest (at least one).

    Attributes:
        true_positives: (..., T) forged ones called forged.
        false_positives: (..., T) authentic ones called forged.
    """

    true_positives: np.ndarray
    false_positives: np.ndarray


def count_levels(scores: np.ndarray, forged: np.ndarray) -> LevelCounts:
    """Counts the distinct scores of a set, exactly.

    Args:
        scores: uint8 (level v means v / 255), or float32 that is not negative; any shape.
        forged: bool of the same shape.
    """
    scores, forged = scores.reshape(-1), forged.reshape(-1)
    if scores.dtype == np.uint8:
        both = np.zeros((256, 2), np.int64)
        # In parts, because `bincount` makes eight bytes of each pixel.
        for start in range(0, scores.size, 1 << 22):
            part = slice(start, start + (1 << 22))
            keys = scores[part].astype(np.uint16) << 1 | forged[part]
            both += np.bincount(keys, minlength=512).reshape(256, 2)
        seen = both.any(axis=1)
        values = (np.arange(256, dtype=np.float32) / np.float32(255))[seen]
        return LevelCounts(values, both[seen, 1], both[seen, 0])
    # The bits of non-negative floats sort as the floats do, and integers sort several times faster.
    # The shift drops the sign (of a negative zero) and makes room for the label.
    keys = np.ascontiguousarray(scores, dtype=np.float32).view(np.uint32) << np.uint32(1)
    keys |= forged
    keys.sort()
    below = np.cumsum(keys & np.uint32(1), dtype=np.int32)
    keys >>= np.uint32(1)
    last = np.empty(keys.size, bool)
    last[-1] = True
    np.not_equal(keys[1:], keys[:-1], out=last[:-1])
    ends = np.flatnonzero(last).astype(np.int32)
    forged_counts = np.diff(below[ends], prepend=np.int32(0))
    authentic_counts = np.diff(ends, prepend=np.int32(-1))
    authentic_counts -= forged_counts
    return LevelCounts(keys[ends].view(np.float32), forged_counts, authentic_counts)


def curve_of(counts: LevelCounts) -> Curve:
    """Counts above every threshold, from counts at every score; float64, exact to 2^53."""
    forged, authentic = counts.forged[::-1], counts.authentic[::-1]
    return Curve(np.cumsum(forged, dtype=np.float64), np.cumsum(authentic, dtype=np.float64))


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient in float64; NaN where the denominator is 0, without a warning."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator != 0)


def _steps(cumulative: np.ndarray) -> np.ndarray:
    return np.diff(cumulative, prepend=np.zeros_like(cumulative[..., :1]), axis=-1)


def area_under_roc(curve: Curve) -> np.ndarray:
    """(...,) probability that a forged one scores above an authentic one, ties counting half.

    NaN where one of the classes is missing.
    """
    above, wrong = curve
    # Trapezoids, multiplied out: two sums of products, without a temporary array of T numbers.
    pairs = above[..., -1].astype(float) * wrong[..., -1]
    right = np.einsum("...t,...t->...", wrong[..., 1:].astype(float, copy=False), above[..., :-1])
    left = np.einsum("...t,...t->...", above[..., 1:].astype(float, copy=False), wrong[..., :-1])
    return divide(pairs + right - left, 2 * pairs)


def average_precision(curve: Curve) -> np.ndarray:
    """(...,) sum over thresholds of (recall gained) x precision; NaN without a forged one."""
    above, wrong = curve
    precision = above / np.maximum(above + wrong, 1)
    return divide((_steps(above) * precision).sum(axis=-1), above[..., -1])


def best_f1(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """The best F1 over all thresholds and its position on the curve.

    Returns:
        (...,) F1, NaN without a forged one; (...,) index of the threshold on the curve.
    """
    above, wrong = curve
    forged = above[..., -1:]
    f1 = above / np.maximum(above + wrong + forged, 1)
    position = f1.argmax(axis=-1)
    best = 2 * np.take_along_axis(f1, position[..., None], axis=-1)[..., 0]
    return np.where(forged[..., 0] > 0, best, np.nan), position


def equal_error_rate(curve: Curve) -> np.ndarray:
    """(...,) error where false positive rate = false negative rate, linear between thresholds."""
    above, wrong = curve
    missed = 1 - divide(above, above[..., -1:])
    false_alarms = divide(wrong, wrong[..., -1:])
    # The curve starts at (0, 0): nothing is called forged.
    ones = np.ones_like(missed[..., :1])
    missed = np.concatenate([ones, missed], axis=-1)
    false_alarms = np.concatenate([0 * ones, false_alarms], axis=-1)
    right = np.argmax(false_alarms >= missed, axis=-1)[..., None]
    left = np.maximum(right - 1, 0)
    gap_left = np.take_along_axis(missed - false_alarms, left, axis=-1)
    gap_right = np.take_along_axis(false_alarms - missed, right, axis=-1)
    part = divide(gap_left, gap_left + gap_right)
    start = np.take_along_axis(false_alarms, left, axis=-1)
    end = np.take_along_axis(false_alarms, right, axis=-1)
    rate = (start + part * (end - start))[..., 0]
    return np.where((above[..., -1] > 0) & (wrong[..., -1] > 0), rate, np.nan)


def true_positive_rate_at(curve: Curve, false_positive_rate: float) -> np.ndarray:
    """(...,) highest recall of a threshold whose false positive rate is not above the given one."""
    above, wrong = curve
    allowed = wrong <= false_positive_rate * wrong[..., -1:]
    reached = np.where(allowed, above, 0).max(axis=-1, initial=0)
    defined = (above[..., -1] > 0) & (wrong[..., -1] > 0)
    return np.where(defined, divide(reached, above[..., -1]), np.nan)
