"""From the gathered numbers of all images to metrics with intervals, in one structure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from loupe.evaluation.bootstrap import RESAMPLES, bootstrap
from loupe.evaluation.calibration import ReliabilityBin, reliability_curve
from loupe.evaluation.measures import PROTOCOLS, Columns, ImageMeasures
from loupe.evaluation.metric import Metric
from loupe.evaluation.metrics import METRICS, compute, metrics_of
from loupe.evaluation.pooled_histogram import PooledHistogram, best_threshold, pooled_estimates
from loupe.evaluation.records import RecordTable
from loupe.evaluation.samples import has_pixels
from loupe.writing import plain

# A breakdown by a name that nearly every image has for itself would be as long as the set.
MAX_GROUPS = 50
# Pooled metrics that binning may have changed by more say so.
BINNING_TOLERANCE = 1e-4
THRESHOLD_NOTE = "pixel/F1-best-pooled threshold (score >=)"


class Estimate(NamedTuple):
    """The value of a metric on a set of images.

    Attributes:
        value: NaN where the metric is not defined on this set.
        low: lower end of the 95% interval over images, NaN without one.
        high: upper end.
        images: how many images entered.
        reason: why the value or its interval is missing; "" otherwise.
    """

    value: float
    low: float
    high: float
    images: int
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """`{"value", "ci95", "images"}`; null for what is not defined, and then a "reason"."""
        interval = None if math.isnan(self.low) else [self.low, self.high]
        entry = {"value": plain(self.value), "ci95": interval, "images": self.images}
        return entry | ({"reason": self.reason} if self.reason else {})


Estimates = dict[str, Estimate]


class Results(NamedTuple):
    """All that an evaluation says.

    Attributes:
        metrics: by name, e.g. "pixel/F1-pooled".
        counts: numbers of images: "images", "forged", "authentic", "unreadable", "unlabelled",
            "without-score", "without-pixels" (map or mask missing, or contradicting the label),
            "forged-empty-mask".
        by_technique: metrics by technique, then name; authentic images are in every group.
        by_source: metrics by source, then name.
        notes: remarks, e.g. the pooled best threshold.
        unreadable: error by image.
        reliability: the reliability curve of the image probabilities.
    """

    metrics: Estimates
    counts: dict[str, int]
    by_technique: dict[str, Estimates]
    by_source: dict[str, Estimates]
    notes: dict[str, float | str]
    unreadable: dict[str, str]
    reliability: list[ReliabilityBin]

    def flat_groups(self) -> dict[str, dict[str, float]]:
        """`{"pixel": {"F1-pooled": 0.5}}`: what Detectron2's printers and checks take."""
        groups: dict[str, dict[str, float]] = {}
        for name, metric in self.metrics.items():
            group, key = name.split("/", 1)
            groups.setdefault(group, {})[key] = metric.value
        groups.setdefault("image", {})["unreadable"] = float(self.counts["unreadable"])
        return groups

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for `json.dump`; the metrics' names are keys at the top."""

        def entries(metrics: Estimates) -> dict[str, Any]:
            return {name: metric.as_json() for name, metric in metrics.items()}

        return entries(self.metrics) | {
            "counts": self.counts,
            "by_technique": {name: entries(group) for name, group in self.by_technique.items()},
            "by_source": {name: entries(group) for name, group in self.by_source.items()},
            "notes": self.notes,
            "unreadable": self.unreadable,
            "reliability": [
                # An empty bin has no means.
                {key: value for key, value in point._asdict().items() if value == value}
                for point in self.reliability
            ],
            "definitions": {name: METRICS[name].definition for name in self.metrics},
        }


def estimate(columns: Columns, metrics: list[Metric], resamples: int) -> Estimates:
    """Values, intervals, numbers of images and reasons of a set of images.

    Args:
        columns: the images' numbers.
        metrics: rows of the table; those `of_pixels` are left out.
        resamples: of the bootstrap; 0 gives no intervals.
    """
    metrics = [metric for metric in metrics if not metric.of_pixels]
    names = [metric.name for metric in metrics]
    values = compute(columns, names=names)
    intervals = bootstrap(
        lambda weights: compute(columns, weights, names),
        len(columns.label),
        resamples=resamples,
    )
    estimates = {}
    for metric in metrics:
        value, (low, high) = float(values[metric.name][0]), intervals[metric.name]
        reason = ""
        if math.isnan(value):
            low, high, reason = math.nan, math.nan, metric.why_undefined(columns)
        elif math.isnan(low):
            reason = "no interval: most resamples leave it undefined"
        images = int(metric.support.images(columns).sum())
        estimates[metric.name] = Estimate(value, low, high, images, reason)
    return estimates


def _estimate_pooled(
    histogram: PooledHistogram, repeated: int, columns: Columns, metrics: list[Metric]
) -> tuple[Estimates, dict[str, float | str]]:
    """The metrics that need all pixels at once, and the pooled best threshold."""
    metrics = [metric for metric in metrics if metric.of_pixels]
    found = pooled_estimates(histogram, {metric.name: metric.function for metric in metrics})
    estimates = {}
    for metric in metrics:
        value, low, high, error = found[metric.name]
        low, high = np.clip([low, high], *metric.range).tolist()
        reasons = []
        if repeated:
            value = low = high = math.nan
            reasons = [f"{repeated} images were counted by two processes; use another sampler"]
        elif math.isnan(value):
            reasons = [metric.why_undefined(columns)]
        elif math.isnan(low):
            reasons = ["no interval: the values fill too few of the bins that are resampled"]
        if error > BINNING_TOLERANCE:
            reasons.append(f"binned: the values lie too close, error about {error:.4f}")
        images = len(histogram.image_ids)
        estimates[metric.name] = Estimate(value, low, high, images, "; ".join(reasons))
    threshold = best_threshold(histogram)
    if math.isnan(threshold) or repeated:
        return estimates, {}
    return estimates, {THRESHOLD_NOTE: threshold}


def _breakdown(
    table: RecordTable,
    names: Sequence[str],
    shared: np.ndarray,
    metrics: list[Metric],
    resamples: int,
) -> tuple[dict[str, Estimates], str]:
    """Metrics of each group of images that share a name, each with the `shared` images added."""
    labels = np.array(names, dtype=object)
    groups = sorted({name for name, common in zip(names, shared, strict=True) if not common} - {""})
    if len(groups) < 2:
        return {}, ""
    if len(groups) > MAX_GROUPS:
        return {}, f"left out: {len(groups)} different names (at most {MAX_GROUPS})"
    return {
        group: estimate(table.columns((labels == group) | shared), metrics, resamples)
        for group in groups
    }, ""


def summarise(
    table: RecordTable,
    histogram: PooledHistogram,
    *,
    repeated: int = 0,
    unreadable: dict[str, str] | None = None,
    unlabelled: int = 0,
    protocols: tuple[str, ...] = PROTOCOLS,
    resamples: int = RESAMPLES,
) -> Results:
    """Computes every metric of a gathered table.

    Args:
        table: all images' numbers.
        histogram: all forged images' pixels.
        repeated: images that the histogram holds twice.
        unreadable: error by image, for those that could not be read or predicted.
        unlabelled: images without a truth.
        protocols: peers' protocols to report.
        resamples: bootstrap resamples; 0 gives no intervals.
    """
    unreadable = dict(sorted((unreadable or {}).items()))
    columns = table.columns()
    metrics = metrics_of(protocols, columns)
    pooled, notes = _estimate_pooled(histogram, repeated, columns, metrics)
    estimates = estimate(columns, metrics, resamples) | pooled
    forged = columns.label > 0
    pixels = has_pixels(columns)
    empty = forged & pixels & (columns.true_positives + columns.false_negatives == 0)
    counts = {
        "images": len(table),
        "forged": int(forged.sum()),
        "authentic": int((~forged).sum()),
        "unreadable": len(unreadable),
        "unlabelled": unlabelled,
        "without-score": int(np.isnan(columns.probability).sum()),
        "without-pixels": int((~pixels).sum()),
        "forged-empty-mask": int(empty.sum()),
    }
    authentic = ImageMeasures(*table.matrix().T).label == 0
    by_technique, why = _breakdown(table, table.techniques, authentic, metrics, resamples)
    notes = notes | ({"by_technique": why} if why else {})
    none_shared = np.zeros(len(table), bool)
    by_source, why = _breakdown(table, table.sources, none_shared, metrics, resamples)
    notes = notes | ({"by_source": why} if why else {})
    ordered = {metric.name: estimates[metric.name] for metric in metrics}
    known = ~np.isnan(columns.probability)
    reliability = reliability_curve(columns.probability[known], columns.label[known])
    return Results(ordered, counts, by_technique, by_source, notes, unreadable, reliability)
