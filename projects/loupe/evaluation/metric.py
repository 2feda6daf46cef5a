"""What a row of the table of metrics is made of: a function, the images that enter, the reasons."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from loupe.evaluation.measures import Columns
from loupe.evaluation.samples import Sample, has_pixels


class Need(NamedTuple):
    """What a set must have for a metric to be defined.

    Attributes:
        met: whether it has it.
        reason: what a report says if not.
    """

    met: Callable[[Columns], bool]
    reason: str


def scored(columns: Columns) -> np.ndarray:
    """(n,) images with a probability."""
    return ~np.isnan(columns.probability)


def forged_pixels(columns: Columns) -> np.ndarray:
    """(n,) forged images with a map and a known mask."""
    return has_pixels(columns) & (columns.label > 0)


def authentic_pixels(columns: Columns) -> np.ndarray:
    """(n,) authentic images with a map."""
    return has_pixels(columns) & (columns.label == 0)


class Support(NamedTuple):
    """Which images enter a metric, and why it may be undefined.

    Attributes:
        images: (n,) bool, those that enter.
        needs: what the set must have, most basic first.
    """

    images: Callable[[Columns], np.ndarray]
    needs: tuple[Need, ...]


PROBABILITIES = Need(lambda c: bool(scored(c).any()), "the predictions hold no image scores")
FORGED = Need(lambda c: bool((c.label > 0).any()), "the set has no forged image")
AUTHENTIC = Need(lambda c: bool((c.label == 0).any()), "the set has no authentic image")
PIXELS = Need(lambda c: bool(has_pixels(c).any()), "no image has both a map and a known mask")
AUTHENTIC_PIXELS = Need(lambda c: bool(authentic_pixels(c).any()), "no authentic image has a map")

IMAGES = Support(scored, (PROBABILITIES, FORGED, AUTHENTIC))
FORGED_IMAGES = Support(forged_pixels, (FORGED, PIXELS))
AUTHENTIC_IMAGES = Support(authentic_pixels, (AUTHENTIC, AUTHENTIC_PIXELS))
BOTH = Support(lambda c: scored(c) | forged_pixels(c), (*IMAGES.needs, PIXELS))


def having(field: str, *needs: Need) -> Support:
    """Images of which a number could be measured."""
    return Support(lambda columns: ~np.isnan(getattr(columns, field)), (*needs, FORGED, PIXELS))


class Metric(NamedTuple):
    """One row of the table.

    Attributes:
        name: group and key, e.g. "pixel/F1-pooled".
        definition: one line; the exact words are in docs/metrics.md.
        function: of a `Sample` -> (R,); of the `Curve` of all pixels of all forged images -> ()
            where `of_pixels`.
        support: the images that enter, and why the metric may be undefined.
        of_pixels: the function needs the probabilities of all pixels at once.
        of_classes: the function needs predicted classes, which only some models give.
        range: of the values.
    """

    name: str
    definition: str
    function: Callable[..., np.ndarray]
    support: Support
    of_pixels: bool = False
    range: tuple[float, float] = (0.0, 1.0)
    of_classes: bool = False

    @property
    def group(self) -> str:
        """Part of the name before the slash."""
        return self.name.split("/", 1)[0]

    def why_undefined(self, columns: Columns) -> str:
        """The most basic need that a set does not meet."""
        if len(columns.label) == 0:
            return "no image was scored"
        unmet = (need.reason for need in self.support.needs if not need.met(columns))
        return next(unmet, f"no image defines {self.name.split('/', 1)[1]}")


def mean_of(field: str) -> Callable[[Sample], np.ndarray]:
    """Mean of a measured number over the images that have it."""
    return lambda s: s.mean(getattr(s.columns, field))
