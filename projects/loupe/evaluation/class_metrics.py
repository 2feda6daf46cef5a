"""Metrics of predicted classes (authentic, generated, tampered), and IFDL-VLM's own numbers.

Letters: n images, R resamples, K classes that occur in the truth.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from loupe.evaluation.curves import divide
from loupe.evaluation.measures import Columns
from loupe.evaluation.metric import Metric, Need, Support
from loupe.evaluation.samples import Sample
from loupe.structures import CLASSES


def has_class(columns: Columns) -> np.ndarray:
    """(n,) images with a predicted class."""
    return ~np.isnan(columns.predicted_class)


def classified(columns: Columns) -> bool:
    """Whether a class was predicted of any image."""
    return bool(has_class(columns).any())


def _has_tampered_pixels(columns: Columns) -> np.ndarray:
    return ~np.isnan(columns.ifdl_union)


_PREDICTED = Need(classified, "no class was predicted")
_ALL = Support(has_class, (_PREDICTED,))
_TAMPERED = Support(
    _has_tampered_pixels,
    (_PREDICTED, Need(lambda c: bool(_has_tampered_pixels(c).any()), "no tampered image has both")),
)


def _right(s: Sample) -> np.ndarray:
    """(n,) 1 where the class is right; NaN without one."""
    right = (s.columns.predicted_class == s.columns.true_class).astype(float)
    return np.where(has_class(s.columns), right, np.nan)


def _accuracy(s: Sample) -> np.ndarray:
    return s.mean(_right(s))


def _recall(index: int) -> Callable[[Sample], np.ndarray]:
    return lambda s: s.mean(_right(s), s.columns.true_class == index)


def _giou(s: Sample) -> np.ndarray:
    """Mean IoU of the tampered images, 1 where both are empty."""
    hits, union = s.columns.ifdl_hits, s.columns.ifdl_union
    overlap = np.where(union == 0, 1.0, hits / (union + 1e-5))
    return s.mean(np.where(np.isnan(union), np.nan, overlap))


def _ciou(s: Sample) -> np.ndarray:
    known = _has_tampered_pixels(s.columns)
    hits, union = (
        s.weights[:, known] @ values[known]
        for values in (s.columns.ifdl_hits, s.columns.ifdl_union)
    )
    return divide(hits, union)


def _harmonic(s: Sample) -> np.ndarray:
    ciou, accuracy = _ciou(s), _accuracy(s)
    return divide(2 * ciou * accuracy, ciou + accuracy)


def _precision_times_recall(s: Sample) -> np.ndarray:
    """Mean precision x mean recall, both over the classes that occur in the truth."""
    known, predicted, truth = has_class(s.columns), s.columns.predicted_class, s.columns.true_class
    precision, recall = [], []
    for index in sorted(set(truth[known].tolist())):
        hits, called, members = (
            s.weights @ (group & known).astype(float)
            for group in (
                (predicted == index) & (truth == index),
                predicted == index,
                truth == index,
            )
        )
        precision.append(hits / np.maximum(called, 1e-10))
        recall.append(hits / np.maximum(members, 1e-10))
    if not precision:
        return np.full(len(s.weights), np.nan)
    return np.mean(precision, axis=0) * np.mean(recall, axis=0)


def _row(
    name: str, definition: str, function: Callable[..., np.ndarray], support: Support = _ALL
) -> Metric:
    return Metric(name, definition, function, support, of_classes=True)


CLASS_METRICS = (
    _row("image/class-accuracy", "fraction of images whose class is predicted right", _accuracy),
    *(
        _row(f"image/recall-{name}", f"fraction of {name} images predicted as such", _recall(index))
        for index, name in enumerate(CLASSES)
    ),
    _row("ifdl/Acc", "IFDL-VLM: accuracy of the classes", _accuracy),
    _row(
        "ifdl/gIoU",
        "IFDL-VLM: IoU of each tampered image at a longest side of 1024, mean",
        _giou,
        _TAMPERED,
    ),
    _row("ifdl/cIoU", "IFDL-VLM: likewise, over all their pixels", _ciou, _TAMPERED),
    _row("ifdl/F1", "IFDL-VLM: harmonic mean of cIoU and accuracy", _harmonic, _TAMPERED),
    _row("ifdl/AUC", "IFDL-VLM: mean precision x mean recall of classes", _precision_times_recall),
)
