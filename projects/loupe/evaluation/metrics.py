"""Every metric as a pure function of the images' numbers and of weights on the images.

Letters: n images, R resamples. A weight says how often an image is drawn; with weights of one the
functions give the metric itself, with a bootstrap's weights (R, n) its R resampled values.
A metric that is not defined is NaN, never 0. Exact definitions: docs/metrics.md.
"""

from __future__ import annotations

import numpy as np

from loupe.evaluation.calibration import calibration_error
from loupe.evaluation.curves import (
    Curve,
    area_under_roc,
    average_precision,
    equal_error_rate,
    true_positive_rate_at,
)
from loupe.evaluation.measures import ALARM_SHARE, THRESHOLD
from loupe.evaluation.table import Columns

Values = dict[str, np.ndarray]


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient; NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator != 0)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) mean of (n,) values that are not NaN."""
    known = ~np.isnan(values)
    return ratio(weights[:, known] @ values[known], weights[:, known].sum(axis=1))


def f1_of(hits: np.ndarray, alarms: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """F1 of the forged class; 1 where there is nothing forged in truth and answer."""
    total = 2 * hits + alarms + missed
    return np.where(total == 0, np.where(np.isnan(total), np.nan, 1.0), ratio(2 * hits, total))


def iou_of(hits: np.ndarray, alarms: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """IoU of the forged class; 1 where there is nothing forged in truth and answer."""
    total = hits + alarms + missed
    return np.where(total == 0, np.where(np.isnan(total), np.nan, 1.0), ratio(hits, total))


def detection_curve(columns: Columns, weights: np.ndarray) -> Curve:
    """(R, T) weighted counts above every distinct image score; images without a score left out."""
    known = np.flatnonzero(~np.isnan(columns.score))
    if known.size == 0:
        return Curve(np.zeros((len(weights), 1)), np.zeros((len(weights), 1)))
    order = known[np.argsort(-columns.score[known], kind="stable")]
    scores = columns.score[order]
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    drawn = weights[:, order]
    forged = columns.label[order] > 0
    return Curve(
        np.cumsum(drawn * forged, axis=1)[:, ends], np.cumsum(drawn * ~forged, axis=1)[:, ends]
    )


def detection_counts(columns: Columns, weights: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(4, R) true positives, false positives, false negatives, true negatives of `scores > 0.5`."""
    known = ~np.isnan(scores)
    called, forged = scores > THRESHOLD, columns.label > 0
    groups = [called & forged, called & ~forged, ~called & forged, ~called & ~forged]
    return np.stack([weights @ (group & known).astype(float) for group in groups])


def image_metrics(columns: Columns, weights: np.ndarray) -> Values:
    """`image/*`: detection over all images that have a score."""
    curve = detection_curve(columns, weights)
    hits, alarms, missed, passed = detection_counts(columns, weights, columns.score)
    known = ~np.isnan(columns.score)
    return {
        "image/AUC": area_under_roc(curve),
        "image/AP": average_precision(curve),
        "image/EER": equal_error_rate(curve),
        "image/Acc": ratio(hits + passed, hits + alarms + missed + passed),
        "image/bAcc": (ratio(hits, hits + missed) + ratio(passed, passed + alarms)) / 2,
        # Without a forged image F1 would only say how the authentic ones were answered.
        "image/F1": np.where(hits + missed > 0, f1_of(hits, alarms, missed), np.nan),
        "image/TPR@FPR1%": true_positive_rate_at(curve, 0.01),
        "image/ECE": calibration_error(
            columns.score[known], columns.label[known], weights[:, known]
        ),
        "image/Brier": weighted_mean((columns.score - columns.label) ** 2, weights),
    }


def has_pixels(columns: Columns) -> np.ndarray:
    """(n,) images whose map and mask are both known."""
    return ~np.isnan(columns.true_positives)


def pooled_counts(columns: Columns, weights: np.ndarray) -> np.ndarray:
    """(4, R) one confusion table over all pixels of all forged images, as in `detection_counts`."""
    used = has_pixels(columns) & (columns.label > 0)
    counts = np.stack(columns[2:6])[:, used]
    return counts @ weights[:, used].T


def _pooled_metrics(columns: Columns, weights: np.ndarray) -> Values:
    hits, alarms, missed, passed = pooled_counts(columns, weights)
    some = hits + alarms + missed + passed > 0
    iou = np.where(some, iou_of(hits, alarms, missed), np.nan)
    return {
        "pixel/F1-pooled": np.where(some, f1_of(hits, alarms, missed), np.nan),
        "pixel/IoU-pooled": iou,
        "pixel/mIoU2-pooled": (iou + iou_of(passed, missed, alarms)) / 2,
    }


def pixel_metrics(columns: Columns, weights: np.ndarray) -> Values:
    """`pixel/*` but for the three pooled over scores (`pooled_histogram.py`)."""
    forged, counted = columns.label > 0, has_pixels(columns)
    hits, alarms, missed, passed = columns[2:6]
    authentic_share = np.where(forged, np.nan, ratio(alarms, alarms + passed))
    alarm = np.where(forged | ~counted, np.nan, columns.largest_region >= ALARM_SHARE)
    return _pooled_metrics(columns, weights) | {
        "pixel/F1-image": weighted_mean(
            np.where(forged, f1_of(hits, alarms, missed), np.nan), weights
        ),
        "pixel/IoU-image": weighted_mean(
            np.where(forged, iou_of(hits, alarms, missed), np.nan), weights
        ),
        "pixel/F1-best-image": weighted_mean(columns.best_f1, weights),
        "pixel/AUC-image": weighted_mean(columns.pixel_auc, weights),
        "pixel/FPR-authentic": weighted_mean(authentic_share, weights),
        "pixel/false-alarm-images": weighted_mean(alarm, weights),
    }


def ddl2025_metrics(image: Values, pixel: Values) -> Values:
    """`ddl2025/*`: released Loupe's names for metrics that are computed already."""
    parts = {
        "ddl2025/AUC": image["image/AUC"],
        "ddl2025/F1": pixel["pixel/F1-pooled"],
        "ddl2025/IoU": pixel["pixel/mIoU2-pooled"],
    }
    return parts | {"ddl2025/Overall": sum(parts.values()) / 3}


def benco_metrics(columns: Columns, weights: np.ndarray) -> Values:
    """`benco/*`: mean over all images, authentic ones as 0."""
    return {
        "benco/F1": weighted_mean(columns.benco_f1, weights),
        "benco/IoU": weighted_mean(columns.benco_iou, weights),
        "benco/AUC": weighted_mean(columns.benco_auc, weights),
    }


def trufor_metrics(columns: Columns, weights: np.ndarray) -> Values:
    """`trufor/*`: mean over forged images where the protocol gives a number."""
    return {
        "trufor/F1-fixed": weighted_mean(columns.trufor_fixed, weights),
        "trufor/F1-best": weighted_mean(columns.trufor_best, weights),
    }


def mvss_pixel_f1(columns: Columns) -> np.ndarray:
    """(n,) MVSS-Net's pixel F1 of forged images, NaN elsewhere."""
    hits, alarms, missed = columns[2:5]
    f1 = 2 * hits / (2 * hits + alarms + missed + 1e-6)
    f1 = np.where(hits + alarms + missed == 0, 1.0, f1)
    return np.where(columns.label > 0, f1, np.nan)


def mvss_metrics(columns: Columns, weights: np.ndarray) -> Values:
    """`mvss/*`: an image's score is its map's highest pixel, as in MVSS-Net's own scorer."""
    hits, alarms, missed, passed = detection_counts(columns, weights, columns.map_maximum)
    sensitivity, specificity = hits / (hits + missed + 1e-6), passed / (passed + alarms + 1e-6)
    image_f1 = ratio(2 * sensitivity * specificity, sensitivity + specificity)
    image_f1 = np.where((hits + missed > 0) & (alarms + passed > 0), image_f1, np.nan)
    pixel_f1 = weighted_mean(mvss_pixel_f1(columns), weights)
    return {
        "mvss/F1-image": image_f1,
        "mvss/F1-combined": 2 * pixel_f1 * image_f1 / (pixel_f1 + image_f1 + 1e-6),
    }


def sida_metrics(columns: Columns, weights: np.ndarray) -> Values:
    """`sida/*`: mean of per-image IoU and pooled IoU, over forged images with a mask."""
    hits, alarms, missed = columns[2:5]
    union = hits + alarms + missed
    per_image = np.where(union == 0, 1.0, hits / (union + 1e-5))
    pooled = pooled_counts(columns, weights)
    some = pooled.sum(axis=0) > 0
    return {
        "sida/gIoU": weighted_mean(np.where(columns.label > 0, per_image, np.nan), weights),
        "sida/cIoU": np.where(some, pooled[0] / (pooled[:3].sum(axis=0) + 1e-10), np.nan),
    }


PROTOCOL_METRICS = {
    "benco": benco_metrics,
    "trufor": trufor_metrics,
    "mvss": mvss_metrics,
    "sida": sida_metrics,
}


def all_metrics(columns: Columns, weights: np.ndarray, protocols: tuple[str, ...]) -> Values:
    """Every metric that the images' numbers give, each (R,)."""
    image, pixel = image_metrics(columns, weights), pixel_metrics(columns, weights)
    values = image | pixel | ddl2025_metrics(image, pixel)
    for name in protocols:
        values |= PROTOCOL_METRICS[name](columns, weights)
    return values


def supports(columns: Columns, protocols: tuple[str, ...]) -> dict[str, int]:
    """How many images enter each metric."""
    scored, counted, forged = ~np.isnan(columns.score), has_pixels(columns), columns.label > 0
    with_map = ~np.isnan(columns.map_maximum)
    groups = {"image/": scored, "pixel/": counted & forged, "ddl2025/": counted & forged}
    groups |= {"sida/": counted & forged, "mvss/": with_map}
    groups["benco/"] = ~np.isnan(columns.benco_f1)
    single = {
        "pixel/F1-best-image": ~np.isnan(columns.best_f1),
        "pixel/AUC-image": ~np.isnan(columns.pixel_auc),
        "pixel/FPR-authentic": counted & ~forged,
        "pixel/false-alarm-images": counted & ~forged,
        "ddl2025/AUC": scored,
        "ddl2025/Overall": scored | (counted & forged),
        "benco/AUC": ~np.isnan(columns.benco_auc),
        "trufor/F1-fixed": ~np.isnan(columns.trufor_fixed),
        "trufor/F1-best": ~np.isnan(columns.trufor_best),
    }
    names = all_metrics(columns, np.ones((1, len(columns.label))), protocols)
    return {
        name: int(single.get(name, groups.get(name.split("/")[0] + "/")).sum()) for name in names
    }
