"""What is kept of one image: a few numbers, however many pixels it has.

Everything a metric needs of an image is measured while its map is in memory; metrics are then
computed from the numbers of all images (`metrics.py`), and the map is forgotten.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np

from loupe.evaluation.curves import (
    LevelCounts,
    area_under_roc,
    best_f1,
    count_levels,
    curve_of,
)
from loupe.evaluation.protocols import benco_measures, ifdl_measures, trufor_measures
from loupe.structures import CLASSES, THRESHOLD, GroundTruth, class_of

# An authentic image counts as a false alarm from a forged region of this fraction of it.
ALARM_FRACTION = 0.01
PROTOCOLS = ("benco", "trufor", "mvss", "sida", "ifdl")
# The peer's own default size; `None` means the image's own size (its padding protocol).
BENCO_SIZE = 512


# A float for one image, (n,) float64 for n images.
Number = Any


class ImageMeasures(NamedTuple):
    """One image's numbers; NaN where a number is not defined or could not be measured.

    The same fields hold n images as arrays (n,): see `RecordTable.columns`.

    Attributes:
        label: 1 = forged.
        probability: that the image is forged, as the detector says.
        true_positives: forged pixels above the threshold. The four counts are NaN where the image
            has no map or its mask is not known.
        false_positives: authentic pixels above the threshold.
        false_negatives: forged pixels at or below the threshold.
        true_negatives: authentic pixels at or below the threshold.
        pixel_auc: area under this image's pixel ROC; NaN unless it has pixels of both classes.
        best_f1: F1 at this image's own best threshold (an oracle); NaN for an authentic image.
        map_maximum: highest probability of a pixel.
        largest_region: authentic images only: largest 8-connected region called forged, as a
            fraction of the image.
        benco_f1: IMDL-BenCo's F1 at its network size.
        benco_iou: IMDL-BenCo's IoU at its network size.
        benco_auc: IMDL-BenCo's AUC at its network size, with its rule for ties.
        trufor_fixed: TruFor's F1 at 0.5; NaN for an authentic image.
        trufor_best: TruFor's F1 at the best threshold; NaN for an authentic image.
        true_class: index in CLASSES; NaN, like the next, where no class was predicted.
        predicted_class: the same, as the model says.
        ifdl_hits: tampered images only: forged pixels found, as IFDL-VLM counts them.
        ifdl_union: pixels that are forged, called forged or both, likewise.
    """

    label: Number
    probability: Number
    true_positives: Number = math.nan
    false_positives: Number = math.nan
    false_negatives: Number = math.nan
    true_negatives: Number = math.nan
    pixel_auc: Number = math.nan
    best_f1: Number = math.nan
    map_maximum: Number = math.nan
    largest_region: Number = math.nan
    benco_f1: Number = math.nan
    benco_iou: Number = math.nan
    benco_auc: Number = math.nan
    trufor_fixed: Number = math.nan
    trufor_best: Number = math.nan
    true_class: Number = math.nan
    predicted_class: Number = math.nan
    ifdl_hits: Number = math.nan
    ifdl_union: Number = math.nan


# `ImageMeasures` of n images: every field is an array (n,).
Columns = ImageMeasures


def checked_map(forgery_map: np.ndarray, name: str, shape: tuple[int, int] | None) -> np.ndarray:
    """The map as uint8 or float32 in [0, 1], or an error that names the image.

    Args:
        forgery_map: (H, W) uint8, uint16 (full range), bool or float.
        name: the image, for the error.
        shape: the truth's (H, W), if known.

    Raises:
        ValueError: not (H, W), of another size than the truth, not finite, or outside [0, 1].
    """
    if forgery_map.ndim != 2 or forgery_map.size == 0:
        raise ValueError(f"{name}: the forgery map has shape {forgery_map.shape}, needed is (H, W)")
    if shape is not None and forgery_map.shape != tuple(shape):
        raise ValueError(
            f"{name}: the forgery map is {forgery_map.shape[0]}x{forgery_map.shape[1]} (H x W), "
            f"the truth {shape[0]}x{shape[1]}; save maps at the image's own size, "
            "or let the scorer resize them (--size resize)"
        )
    if forgery_map.dtype == np.uint8:
        return forgery_map
    if forgery_map.dtype == bool:
        return forgery_map.astype(np.uint8) * np.uint8(255)
    if forgery_map.dtype == np.uint16:
        return (forgery_map / np.float32(65535)).astype(np.float32)
    if not np.issubdtype(forgery_map.dtype, np.floating):
        raise ValueError(
            f"{name}: the forgery map is {forgery_map.dtype}; "
            "needed is uint8, uint16, bool or a float in [0, 1]"
        )
    forgery_map = forgery_map.astype(np.float32, copy=False)
    lowest, highest = float(forgery_map.min()), float(forgery_map.max())
    if not (lowest >= 0 and highest <= 1):
        raise ValueError(
            f"{name}: the forgery map reaches from {lowest} to {highest}; probabilities in [0, 1] "
            "are needed (apply a sigmoid to logits, replace NaN)"
        )
    return forgery_map


def _known_mask(truth: GroundTruth, shape: tuple[int, int]) -> np.ndarray | None:
    """Forged pixels of the truth; None where they are not known or contradict the label."""
    if truth.label == 0:
        if truth.mask is not None and truth.mask.any():
            return None
        return np.zeros(shape, bool)
    return None if truth.mask is None else np.ascontiguousarray(truth.mask, dtype=bool)


def largest_region(forged: np.ndarray) -> float:
    """Largest 8-connected region of a (H, W) bool map, as a fraction of its pixels."""
    # Labelling costs ten times a sum; most maps of authentic images need none.
    if forged.sum() < ALARM_FRACTION * forged.size:
        return 0.0
    statistics = cv2.connectedComponentsWithStats(forged.view(np.uint8), connectivity=8)[2]
    return float(statistics[1:, cv2.CC_STAT_AREA].max(initial=0)) / forged.size


def _own_size_measures(levels: LevelCounts) -> dict[str, float]:
    """Counts at the fixed threshold and curve numbers of one image."""
    above = slice(int(np.searchsorted(levels.values, THRESHOLD, side="right")), None)
    forged, authentic = float(levels.forged.sum()), float(levels.authentic.sum())
    true_positives = float(levels.forged[above].sum())
    false_positives = float(levels.authentic[above].sum())
    measures = {
        "true_positives": true_positives,
        "false_positives": false_positives,
        "false_negatives": forged - true_positives,
        "true_negatives": authentic - false_positives,
        "map_maximum": float(levels.values[-1]),
    }
    if forged:
        curve = curve_of(levels)
        measures["best_f1"] = float(best_f1(curve)[0])
        measures["pixel_auc"] = float(area_under_roc(curve))
    return measures


def class_measures(truth: GroundTruth, class_probabilities: np.ndarray | None) -> dict[str, float]:
    """True and predicted class of an image; nothing where the model has no classes.

    Of two classes the second is "tampered", and images generated as a whole belong to it, too.
    """
    if class_probabilities is None:
        return {}
    two = len(class_probabilities) == 2
    predicted = int(np.argmax(class_probabilities))
    true = CLASSES.index(class_of(truth.label, truth.wholly_forged and not two))
    return {"true_class": true, "predicted_class": 2 * predicted if two else predicted}


def measure_image(
    name: str,
    truth: GroundTruth,
    probability: float,
    forgery_map: np.ndarray | None,
    *,
    protocols: tuple[str, ...] = PROTOCOLS,
    benco_size: int | None = BENCO_SIZE,
    class_probabilities: np.ndarray | None = None,
) -> tuple[ImageMeasures, LevelCounts | None]:
    """Measures one image.

    Args:
        name: for errors.
        truth: label and mask.
        probability: that the image is forged; NaN where the detector gives none.
        forgery_map: (H, W) at the truth's size, or None where there is no map.
        protocols: which peers' protocols to measure as well.
        benco_size: network size for `benco`.
        class_probabilities: (K,) of the model's classes, K = 2 or 3; None where it has none.

    Returns:
        The numbers, and the counts of the scores of a forged image's pixels (None otherwise).

    Raises:
        ValueError: see `checked_map`; or the probability is not in [0, 1].
    """
    if not (math.isnan(probability) or 0 <= probability <= 1):
        raise ValueError(f"{name}: the probability is {probability}; needed is one in [0, 1]")
    label = int(truth.label)
    classes = class_measures(truth, class_probabilities)
    if forgery_map is None:
        return ImageMeasures(label, probability, **classes), None
    shape = None if truth.mask is None else truth.mask.shape
    forgery_map = checked_map(forgery_map, name, shape)
    mask = _known_mask(truth, forgery_map.shape)
    if mask is None:
        scale = 255.0 if forgery_map.dtype == np.uint8 else 1.0
        maximum = float(forgery_map.max()) / scale
        return ImageMeasures(label, probability, map_maximum=maximum, **classes), None
    levels = count_levels(forgery_map, mask)
    numbers = _own_size_measures(levels)
    if not label:
        above = forgery_map > (127 if forgery_map.dtype == np.uint8 else THRESHOLD)
        numbers["largest_region"] = largest_region(above)
    if "benco" in protocols:
        numbers |= benco_measures(forgery_map, mask, benco_size)
    if "trufor" in protocols and label:
        numbers |= trufor_measures(forgery_map, mask)
    if "ifdl" in protocols and classes and label and not truth.wholly_forged:
        numbers |= ifdl_measures(forgery_map, mask)
    numbers |= classes
    return ImageMeasures(label, probability, **numbers), levels if label else None
