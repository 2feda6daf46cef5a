"""The table of metrics: a new metric is one row of `_TABLE`, and its line in docs/metrics.md.

Evaluator, reports, robustness, diagnosis and research read the table; a test holds the names of
docs/metrics.md equal to it.

Letters: n images, R resamples, T distinct probabilities. A weight says how often an image is drawn;
with weights of one a function gives the metric itself, with a bootstrap's weights (R, n) its R
resampled values. A metric that is not defined is NaN, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from loupe.evaluation.calibration import calibration_error
from loupe.evaluation.class_metrics import CLASS_METRICS, classified
from loupe.evaluation.curves import (
    area_under_roc,
    average_precision,
    best_f1,
    divide,
    equal_error_rate,
    true_positive_rate_at,
)
from loupe.evaluation.measures import ALARM_FRACTION, PROTOCOLS, Columns
from loupe.evaluation.metric import (
    AUTHENTIC,
    AUTHENTIC_IMAGES,
    BOTH,
    FORGED,
    FORGED_IMAGES,
    IMAGES,
    Metric,
    authentic_pixels,
    having,
    mean_of,
)
from loupe.evaluation.samples import Confusion, Sample


def _calibration_error(s: Sample) -> np.ndarray:
    known = ~np.isnan(s.columns.probability)
    return calibration_error(
        s.columns.probability[known], s.columns.label[known], s.weights[:, known]
    )


def _image_accuracy(s: Sample) -> np.ndarray:
    hits, alarms, missed, passed = s.image_confusion
    return divide(hits + passed, hits + alarms + missed + passed)


def _balanced_accuracy(s: Sample) -> np.ndarray:
    hits, alarms, missed, passed = s.image_confusion
    return (divide(hits, hits + missed) + divide(passed, passed + alarms)) / 2


def _image_f1(s: Sample) -> np.ndarray:
    # Without a forged image F1 would only say how the authentic ones were classified.
    table = s.image_confusion
    return np.where(table.hits + table.missed > 0, table.f1(), np.nan)


def _pooled(of: Callable[[Confusion], np.ndarray]) -> Callable[[Sample], np.ndarray]:
    return lambda s: np.where(s.pooled_confusion.some(), of(s.pooled_confusion), np.nan)


_pooled_f1 = _pooled(Confusion.f1)
# Mean over the two classes, as released Loupe prints it.
_pooled_miou = _pooled(lambda table: (table.iou() + table.swapped().iou()) / 2)


def _authentic_pixel_alarms(s: Sample) -> np.ndarray:
    _, alarms, _, passed = s.pixel_confusion
    return s.mean(divide(alarms, alarms + passed), ~s.forged)


def _authentic_region_alarms(s: Sample) -> np.ndarray:
    alarm = (s.columns.largest_region >= ALARM_FRACTION).astype(float)
    return s.mean(alarm, authentic_pixels(s.columns))


def _ddl2025_overall(s: Sample) -> np.ndarray:
    return (area_under_roc(s.image_curve) + _pooled_f1(s) + _pooled_miou(s)) / 3


def _mvss_image_f1(s: Sample) -> np.ndarray:
    """2 sen spe / (sen + spe) of the maps' maxima, as MVSS-Net's own scorer has it."""
    hits, alarms, missed, passed = s.detection(s.columns.map_maximum)
    sensitivity, specificity = hits / (hits + missed + 1e-6), passed / (passed + alarms + 1e-6)
    f1 = divide(2 * sensitivity * specificity, sensitivity + specificity)
    return np.where((hits + missed > 0) & (alarms + passed > 0), f1, np.nan)


def _mvss_combined(s: Sample) -> np.ndarray:
    hits, alarms, missed, _ = s.pixel_confusion
    f1 = 2 * hits / (2 * hits + alarms + missed + 1e-6)
    pixel = s.mean(np.where(hits + alarms + missed == 0, 1.0, f1), s.forged)
    image = _mvss_image_f1(s)
    return 2 * pixel * image / (pixel + image + 1e-6)


def _sida_giou(s: Sample) -> np.ndarray:
    hits, alarms, missed, _ = s.pixel_confusion
    union = hits + alarms + missed
    return s.mean(np.where(union == 0, 1.0, hits / (union + 1e-5)), s.forged)


_TABLE = (
    Metric(
        "image/AUC",
        "area under the ROC of image probabilities, ties counting half",
        lambda s: area_under_roc(s.image_curve),
        IMAGES,
    ),
    Metric(
        "image/AP",
        "average precision of image probabilities",
        lambda s: average_precision(s.image_curve),
        IMAGES,
    ),
    Metric(
        "image/EER",
        "error rate where false alarms = misses",
        lambda s: equal_error_rate(s.image_curve),
        IMAGES,
    ),
    Metric(
        "image/Acc",
        "fraction of images classified right at probability > 0.5",
        _image_accuracy,
        IMAGES,
    ),
    Metric(
        "image/bAcc",
        "mean of the fractions right among forged and among authentic images",
        _balanced_accuracy,
        IMAGES,
    ),
    Metric("image/F1", "F1 of forged images at probability > 0.5", _image_f1, IMAGES),
    Metric(
        "image/TPR@FPR1%",
        "fraction of forged images found at a false alarm rate of at most 1%",
        lambda s: true_positive_rate_at(s.image_curve, 0.01),
        IMAGES,
    ),
    Metric("image/ECE", "expected calibration error, 15 equal bins", _calibration_error, IMAGES),
    Metric(
        "image/Brier",
        "mean squared distance of probability and label",
        lambda s: s.mean((s.columns.probability - s.columns.label) ** 2),
        IMAGES,
    ),
    Metric(
        "pixel/F1-pooled",
        "F1 at > 0.5, one table over all pixels of all forged images",
        _pooled_f1,
        FORGED_IMAGES,
    ),
    Metric(
        "pixel/IoU-pooled",
        "forged IoU at > 0.5, one table over all pixels of all forged images",
        _pooled(Confusion.iou),
        FORGED_IMAGES,
    ),
    Metric(
        "pixel/mIoU2-pooled",
        "mean of forged and authentic IoU over that same table",
        _pooled_miou,
        FORGED_IMAGES,
    ),
    Metric(
        "pixel/F1-image",
        "F1 at > 0.5 of each forged image, then the mean",
        lambda s: s.mean(s.pixel_confusion.f1(), s.forged),
        FORGED_IMAGES,
    ),
    Metric(
        "pixel/IoU-image",
        "forged IoU at > 0.5 of each forged image, then the mean",
        lambda s: s.mean(s.pixel_confusion.iou(), s.forged),
        FORGED_IMAGES,
    ),
    Metric(
        "pixel/F1-best-image",
        "F1 at each forged image's own best threshold (an oracle), mean",
        mean_of("best_f1"),
        having("best_f1"),
    ),
    Metric(
        "pixel/F1-best-pooled",
        "F1-pooled at the one best threshold for the set (an oracle)",
        lambda curve: best_f1(curve)[0],
        FORGED_IMAGES,
        of_pixels=True,
    ),
    Metric(
        "pixel/AUC-image",
        "pixel ROC area of each forged image, then the mean",
        mean_of("pixel_auc"),
        having("pixel_auc"),
    ),
    Metric(
        "pixel/AUC-pooled",
        "ROC area over all pixels of all forged images",
        area_under_roc,
        FORGED_IMAGES,
        of_pixels=True,
    ),
    Metric(
        "pixel/AP-pooled",
        "average precision over all pixels of all forged images",
        average_precision,
        FORGED_IMAGES,
        of_pixels=True,
    ),
    Metric(
        "pixel/FPR-authentic",
        "fraction of pixels called forged in each authentic image, mean",
        _authentic_pixel_alarms,
        AUTHENTIC_IMAGES,
    ),
    Metric(
        "pixel/false-alarm-images",
        "fraction of authentic images with a forged region of 1% or more",
        _authentic_region_alarms,
        AUTHENTIC_IMAGES,
    ),
    Metric("ddl2025/AUC", "image AUC", lambda s: area_under_roc(s.image_curve), IMAGES),
    Metric("ddl2025/F1", "pixel/F1-pooled", _pooled_f1, FORGED_IMAGES),
    Metric(
        "ddl2025/IoU",
        "pixel/mIoU2-pooled (a mean over two classes, not the forged IoU)",
        _pooled_miou,
        FORGED_IMAGES,
    ),
    Metric("ddl2025/Overall", "mean of the three", _ddl2025_overall, BOTH),
    Metric(
        "benco/F1",
        "IMDL-BenCo: per image at network size, authentic images enter as 0",
        mean_of("benco_f1"),
        having("benco_f1"),
    ),
    Metric("benco/IoU", "IMDL-BenCo: likewise", mean_of("benco_iou"), having("benco_f1")),
    Metric(
        "benco/AUC",
        "IMDL-BenCo: likewise; tied pixels are ranked in reading order",
        mean_of("benco_auc"),
        having("benco_auc"),
    ),
    Metric(
        "trufor/F1-fixed",
        "TruFor: forged images, edge band dropped, larger of map and inverse, 0.5",
        mean_of("trufor_fixed"),
        having("trufor_fixed"),
    ),
    Metric(
        "trufor/F1-best",
        "TruFor: likewise, at each image's best threshold (an oracle)",
        mean_of("trufor_best"),
        having("trufor_best"),
    ),
    Metric(
        "mvss/F1-image",
        "MVSS-Net: 2 sen spe / (sen + spe), an image's probability is its map's maximum",
        _mvss_image_f1,
        having("map_maximum", FORGED, AUTHENTIC),
    ),
    Metric(
        "mvss/F1-combined",
        "MVSS-Net: harmonic mean of that and the per-image pixel F1",
        _mvss_combined,
        having("map_maximum", FORGED, AUTHENTIC),
    ),
    Metric(
        "sida/gIoU",
        "SIDA: forged IoU of each forged image, mean (1 where truth and prediction are empty)",
        _sida_giou,
        FORGED_IMAGES,
    ),
    Metric(
        "sida/cIoU",
        "SIDA: forged IoU over all pixels of all forged images",
        _pooled(lambda t: t.hits / (t.hits + t.alarms + t.missed + 1e-10)),
        FORGED_IMAGES,
    ),
    *CLASS_METRICS,
)
METRICS = {metric.name: metric for metric in _TABLE}


def metrics_of(
    protocols: Iterable[str] = PROTOCOLS, columns: Columns | None = None
) -> list[Metric]:
    """The rows that a report shows: Loupe's own and those of the peers' protocols asked for.

    Args:
        protocols: of the peers.
        columns: the images; rows of classes are shown where a class was predicted of some.
    """
    left_out = set(PROTOCOLS) - set(protocols)
    with_classes = columns is not None and classified(columns)
    return [
        metric
        for metric in METRICS.values()
        if metric.group not in left_out and (with_classes or not metric.of_classes)
    ]


def compute(
    columns: Columns, weights: np.ndarray | None = None, names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Values (R,) by name.

    Args:
        columns: the images' numbers.
        weights: (R, n); by default every image once.
        names: of metrics that do not need all pixels at once; by default all of them.
    """
    weights = np.ones((1, len(columns.label))) if weights is None else weights
    sample = Sample(columns, weights)
    if names is None:
        names = [row.name for row in metrics_of(columns=columns) if not row.of_pixels]
    return {name: METRICS[name].function(sample) for name in names}
