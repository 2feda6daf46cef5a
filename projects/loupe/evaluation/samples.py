"""What metrics are made of: confusion tables and curves of a set of images, drawn with weights.

Letters: n images, R resamples, T distinct probabilities. A weight (R, n) says how often an image is
drawn; weights of one give the set itself.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from loupe.evaluation.curves import Curve, divide
from loupe.evaluation.measures import THRESHOLD, Columns


def has_pixels(columns: Columns) -> np.ndarray:
    """(n,) images whose map and mask are both known."""
    return ~np.isnan(columns.true_positives)


class Confusion(NamedTuple):
    """Counts of a confusion table, each (R,) or (n,): forged is the positive class."""

    hits: np.ndarray
    alarms: np.ndarray
    missed: np.ndarray
    passed: np.ndarray

    def f1(self) -> np.ndarray:
        """2 TP / (2 TP + FP + FN); 1 where truth and prediction hold nothing forged."""
        return _or_one(2 * self.hits, 2 * self.hits + self.alarms + self.missed)

    def iou(self) -> np.ndarray:
        """TP / (TP + FP + FN); 1 where truth and prediction hold nothing forged."""
        return _or_one(self.hits, self.hits + self.alarms + self.missed)

    def swapped(self) -> Confusion:
        """The table with authentic as the positive class."""
        return Confusion(self.passed, self.missed, self.alarms, self.hits)

    def some(self) -> np.ndarray:
        """Whether anything was counted."""
        return self.hits + self.alarms + self.missed + self.passed > 0


def _or_one(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.where(total == 0, np.where(np.isnan(total), np.nan, 1.0), divide(part, total))


class Sample:
    """Images and how often each is drawn; what several metrics need is computed once.

    Attributes:
        columns: the images' numbers.
        weights: (R, n).
        forged: (n,) bool.
    """

    def __init__(self, columns: Columns, weights: np.ndarray) -> None:
        """Nothing is computed yet."""
        self.columns, self.weights = columns, weights
        self.forged = columns.label > 0

    def mean(self, values: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        """(R,) mean of the (n,) values that are not NaN, of the images `where` alone if given."""
        known = ~np.isnan(values)
        if where is not None:
            known &= where
        return divide(self.weights[:, known] @ values[known], self.weights[:, known].sum(axis=1))

    def detection(self, probabilities: np.ndarray) -> Confusion:
        """(R,) of `probability > 0.5` against the labels; images without one are left out."""
        known, called, forged = ~np.isnan(probabilities), probabilities > THRESHOLD, self.forged
        groups = [called & forged, called & ~forged, ~called & forged, ~called & ~forged]
        return Confusion(*(self.weights @ (group & known).astype(float) for group in groups))

    @cached_property
    def image_confusion(self) -> Confusion:
        """(R,) of the detector's probabilities."""
        return self.detection(self.columns.probability)

    @cached_property
    def image_curve(self) -> Curve:
        """(R, T) weighted counts above every distinct probability of an image."""
        columns, weights = self.columns, self.weights
        known = np.flatnonzero(~np.isnan(columns.probability))
        if known.size == 0:
            return Curve(np.zeros((len(weights), 1)), np.zeros((len(weights), 1)))
        order = known[np.argsort(-columns.probability[known], kind="stable")]
        probabilities = columns.probability[order]
        ends = np.flatnonzero(np.append(probabilities[1:] != probabilities[:-1], True))
        drawn, forged = weights[:, order], self.forged[order]
        return Curve(
            np.cumsum(drawn * forged, axis=1)[:, ends], np.cumsum(drawn * ~forged, axis=1)[:, ends]
        )

    @cached_property
    def pixel_confusion(self) -> Confusion:
        """(n,) one table for each image; NaN where map or mask is not known."""
        c = self.columns
        return Confusion(c.true_positives, c.false_positives, c.false_negatives, c.true_negatives)

    @cached_property
    def pooled_confusion(self) -> Confusion:
        """(R,) one table over all pixels of all forged images."""
        used = has_pixels(self.columns) & self.forged
        return Confusion(*(np.stack(self.pixel_confusion)[:, used] @ self.weights[:, used].T))
