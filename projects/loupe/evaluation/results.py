"""From the gathered numbers of all images to metrics with intervals, in one structure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from loupe.evaluation.bootstrap import RESAMPLES, bootstrap
from loupe.evaluation.calibration import ReliabilityBin, reliability_curve
from loupe.evaluation.definitions import DEFINITIONS
from loupe.evaluation.measures import PROTOCOLS
from loupe.evaluation.metrics import all_metrics, has_pixels, supports
from loupe.evaluation.pooled_histogram import PooledHistogram, pooled_estimates
from loupe.evaluation.table import Columns, RecordTable

# A breakdown by a name that nearly every image has for itself would be as long as the set.
MAX_GROUPS = 50
# Pooled metrics that binning may have changed by more say so.
BINNING_TOLERANCE = 1e-4


class Metric(NamedTuple):
    """One number of the report.

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
        value = None if math.isnan(self.value) else self.value
        entry: dict[str, Any] = {"value": value, "ci95": interval, "images": self.images}
        return entry | ({"reason": self.reason} if self.reason else {})


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
        reliability: the reliability curve of the image scores.
    """

    metrics: dict[str, Metric]
    counts: dict[str, int]
    by_technique: dict[str, dict[str, Metric]]
    by_source: dict[str, dict[str, Metric]]
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

        def entries(metrics: dict[str, Metric]) -> dict[str, Any]:
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
            "definitions": {name: DEFINITIONS[name] for name in self.metrics},
        }


def _why_undefined(name: str, columns: Columns) -> str:
    """The commonest reasons a value is missing, most basic first."""
    forged, authentic = (columns.label > 0).sum(), (columns.label == 0).sum()
    group, key = name.split("/", 1)
    of_image = group == "image" or name in ("ddl2025/AUC", "ddl2025/Overall")
    if len(columns.label) == 0:
        return "no image was scored"
    if of_image and np.isnan(columns.score).all():
        return "the predictions hold no image scores"
    if name in ("pixel/FPR-authentic", "pixel/false-alarm-images"):
        return "the set has no authentic image" if not authentic else "no authentic image has a map"
    if not forged:
        return "the set has no forged image"
    if (of_image or group == "mvss") and not authentic:
        return "the set has no authentic image"
    if not has_pixels(columns).any():
        return "no image has both a map and a known mask"
    return f"no image defines {key}"


def _metrics_of(
    columns: Columns, protocols: tuple[str, ...], resamples: int, seed: int
) -> dict[str, Metric]:
    """Values, intervals, numbers of images and reasons of all metrics of a set of images."""
    images = len(columns.label)
    values = all_metrics(columns, np.ones((1, images)), protocols)
    intervals = bootstrap(
        lambda weights: all_metrics(columns, weights, protocols),
        images,
        resamples=resamples,
        seed=seed,
    )
    counted = supports(columns, protocols)
    metrics = {}
    for name, value in values.items():
        number, (low, high) = float(value[0]), intervals[name]
        if math.isnan(number):
            metrics[name] = Metric(
                math.nan, math.nan, math.nan, counted[name], _why_undefined(name, columns)
            )
            continue
        reason = "no interval: most resamples leave it undefined" if math.isnan(low) else ""
        metrics[name] = Metric(number, low, high, counted[name], reason)
    return metrics


def _pooled_metrics(
    histogram: PooledHistogram, repeated: int, columns: Columns
) -> tuple[dict[str, Metric], dict[str, float | str]]:
    """The three metrics that need all scores at once, and the pooled best threshold."""
    estimates = pooled_estimates(histogram)
    threshold = estimates.pop("threshold").value
    metrics = {}
    for name, (value, low, high, error) in estimates.items():
        name, reason = f"pixel/{name}", ""
        if repeated:
            value = low = high = math.nan
            reason = f"{repeated} images were counted by two processes; use a sampler without that"
        elif math.isnan(value):
            reason = _why_undefined(name, columns)
        elif math.isnan(low):
            reason = "no interval: the scores fill too few of the bins that are resampled"
        if error > BINNING_TOLERANCE:
            reason += (
                f"{'; ' if reason else ''}binned: the scores lie too close, error about {error:.4f}"
            )
        metrics[name] = Metric(value, low, high, len(histogram.image_ids), reason)
    if math.isnan(threshold) or repeated:
        return metrics, {}
    return metrics, {"pixel/F1-best-pooled threshold (score >=)": threshold}


def _breakdown(
    table: RecordTable,
    names: Sequence[str],
    shared: np.ndarray,
    protocols: tuple[str, ...],
    resamples: int,
) -> tuple[dict[str, dict[str, Metric]], str]:
    """Metrics of each group of images that share a name, each with the `shared` images added."""
    labels = np.array(names, dtype=object)
    groups = sorted({name for name, common in zip(names, shared, strict=True) if not common} - {""})
    if len(groups) < 2:
        return {}, ""
    if len(groups) > MAX_GROUPS:
        return {}, f"left out: {len(groups)} different names (at most {MAX_GROUPS})"
    return {
        group: _metrics_of(table.columns((labels == group) | shared), protocols, resamples, 0)
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
    seed: int = 0,
) -> Results:
    """Computes every metric of a gathered table.

    Args:
        table: all images' numbers.
        histogram: all forged images' scores.
        repeated: images that the histogram holds twice.
        unreadable: error by image, for those that could not be read or answered.
        unlabelled: images without a truth.
        protocols: peers' protocols to report.
        resamples: bootstrap resamples; 0 gives no intervals.
        seed: of the bootstrap.
    """
    unreadable = dict(sorted((unreadable or {}).items()))
    columns = table.columns()
    metrics = _metrics_of(columns, protocols, resamples, seed)
    pooled, notes = _pooled_metrics(histogram, repeated, columns)
    metrics = metrics | pooled
    forged = columns.label > 0
    pixels = has_pixels(columns)
    empty = forged & pixels & (columns.true_positives + columns.false_negatives == 0)
    counts = {
        "images": len(table),
        "forged": int(forged.sum()),
        "authentic": int((~forged).sum()),
        "unreadable": len(unreadable),
        "unlabelled": unlabelled,
        "without-score": int(np.isnan(columns.score).sum()),
        "without-pixels": int((~pixels).sum()),
        "forged-empty-mask": int(empty.sum()),
    }
    authentic = table.matrix()[:, 0] == 0
    by_technique, why = _breakdown(table, table.techniques, authentic, protocols, resamples)
    notes = notes | ({"by_technique": why} if why else {})
    nobody = np.zeros(len(table), bool)
    by_source, why = _breakdown(table, table.sources, nobody, protocols, resamples)
    notes = notes | ({"by_source": why} if why else {})
    ordered = {name: metrics[name] for name in DEFINITIONS if name in metrics}
    known = ~np.isnan(columns.score)
    reliability = reliability_curve(columns.score[known], columns.label[known])
    return Results(ordered, counts, by_technique, by_source, notes, unreadable, reliability)
