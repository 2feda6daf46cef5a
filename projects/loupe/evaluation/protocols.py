"""Per-image numbers of the peers' protocols, as their published scorers compute them.

`mvss/` and `sida/` need only the counts at the fixed threshold: they are in `metrics.py`.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

from loupe.evaluation.curves import LevelCounts, count_levels

TRUFOR_ERODE, TRUFOR_DILATE = 15, 11
# Longest side at which IFDL-VLM compares, in pixels.
IFDL_SIDE = 1024


def _as_float(forgery_map: np.ndarray) -> np.ndarray:
    if forgery_map.dtype == np.uint8:
        return forgery_map.astype(np.float32) / np.float32(255)
    return forgery_map


def ifdl_measures(
    forgery_map: np.ndarray, mask: np.ndarray, side: int = IFDL_SIDE
) -> dict[str, float]:
    """Intersection and union of one tampered image, as IFDL-VLM (and SIDA before it) count them.

    Map and mask are compared at a longest side of 1024; a pixel of the 8-bit mask that resizing or
    its file has made other than 255 counts as authentic.

    Args:
        forgery_map: (H, W) uint8 or float32 in [0, 1].
        mask: (H, W) bool, or uint8 with 255 = forged.
        side: longest side in pixels.
    """
    height, width = mask.shape
    scale = side / max(height, width)
    size = (int(width * scale + 0.5), int(height * scale + 0.5))
    scores = cv2.resize(_as_float(forgery_map), size, interpolation=cv2.INTER_LINEAR)
    levels = mask.astype(np.uint8) * np.uint8(255) if mask.dtype == bool else mask
    # The published code resizes by Pillow, which averages where it shrinks.
    resized = np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.BILINEAR))
    forged, called = resized == 255, scores > 0.5
    return {
        "ifdl_hits": float(np.count_nonzero(forged & called)),
        "ifdl_union": float(np.count_nonzero(forged | called)),
    }


def area_with_ties_in_order(scores: np.ndarray, forged: np.ndarray) -> float:
    """Area under the ROC polygon whose corners are all pixels, tied ones in reading order.

    Of two tied pixels the one that comes first is taken for the higher, so a map's AUC depends on
    where its forged region lies; a right AUC counts every tie as one half.

    Args:
        scores: (N,) float32, not negative.
        forged: (N,) bool, both classes present.
    """
    count = scores.size
    position_bits = max(count - 1, 1).bit_length()
    bits = np.ascontiguousarray(scores, dtype=np.float32).view(np.uint32).astype(np.uint64)
    # One integer per pixel: score, how early it comes, label. Sorted, they are the ranking.
    keys = (bits << np.uint64(position_bits)) | np.arange(count - 1, -1, -1, dtype=np.uint64)
    keys = np.sort((keys << np.uint64(1)) | forged.astype(np.uint64))[::-1]
    labels = (keys & np.uint64(1)).astype(bool)
    above = np.cumsum(labels)
    forged_count = int(above[-1])
    return float(above[~labels].sum()) / (forged_count * (count - forged_count))


def benco_measures(forgery_map: np.ndarray, mask: np.ndarray, size: int | None) -> dict[str, float]:
    """IMDL-BenCo's F1, IoU and AUC of one image.

    Map (bilinear) and mask (nearest) are brought to the network's square size first. Without a
    forged pixel F1 and IoU come out as 0 by the added epsilon, and AUC is set to 0. Where all
    pixels are forged its AUC divides by zero: NaN here.

    Args:
        forgery_map: (H, W) uint8 or float32 in [0, 1].
        mask: (H, W) bool.
        size: side of the square; None keeps the own size (its padding protocol).
    """
    scores, forged = _as_float(forgery_map), mask
    if size is not None:
        scores = cv2.resize(scores, (size, size), interpolation=cv2.INTER_LINEAR)
        forged = cv2.resize(mask.view(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST) > 0
    called = scores > 0.5
    hits = float(np.count_nonzero(called & forged))
    called_count, forged_count = float(np.count_nonzero(called)), float(np.count_nonzero(forged))
    precision = hits / (called_count + 1e-8)
    recall = hits / (forged_count + 1e-8)
    area = 0.0
    if forged_count == forged.size:
        area = math.nan
    elif forged_count:
        area = area_with_ties_in_order(scores.reshape(-1), forged.reshape(-1))
    return {
        "benco_f1": 2 * precision * recall / (precision + recall + 1e-8),
        "benco_iou": hits / (called_count + forged_count - hits + 1e-8),
        "benco_auc": area,
    }


def _trufor_best(levels: LevelCounts) -> float:
    """Best F1 of `score > t` or of its opposite, t over the distinct scores."""
    missed = np.cumsum(levels.forged, dtype=np.float64)
    forged = missed[-1]
    if not forged:
        return 0.0
    # Called forged are those above t, so all minus those up to t; for the opposite those up to t.
    up_to = missed + np.cumsum(levels.authentic, dtype=np.float64)
    opposite = (missed / (up_to + forged)).max()
    return 2 * float(max(opposite, ((forged - missed) / (up_to[-1] - up_to + forged)).max()))


def _trufor_fixed(levels: LevelCounts) -> float:
    """F1 of `score > 0.5` or of its opposite; NaN where truth and map are of one same class."""
    above = levels.values > 0.5
    hits, alarms = levels.forged[above].sum(), levels.authentic[above].sum()
    missed, passed = levels.forged.sum() - hits, levels.authentic.sum() - alarms
    # Its scorer asks for a 2 x 2 confusion table, fails where only one class occurs in truth and
    # map together, and skips the image.
    if hits + alarms + missed == 0 or missed + passed + alarms == 0:
        return math.nan
    forged = hits + missed
    called_f1 = 2 * hits / max(hits + alarms + forged, 1)
    return float(max(called_f1, 2 * missed / max(missed + passed + forged, 1)))


def trufor_measures(forgery_map: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """TruFor's two F1s of one forged image: fixed threshold and best threshold.

    Pixels near the edge of the forged region are dropped: forged is what survives an erosion by a
    15 x 15 square, authentic what lies outside a dilation by 11 x 11. Each F1 is the larger one of
    the map's and the inverted map's. NaN where nothing is left to compare.

    Args:
        forgery_map: (H, W) uint8 or float32 in [0, 1].
        mask: (H, W) bool.
    """
    pixels = mask.view(np.uint8)
    inner = cv2.erode(pixels, np.ones((TRUFOR_ERODE, TRUFOR_ERODE), np.uint8)) > 0
    outer = cv2.dilate(pixels, np.ones((TRUFOR_DILATE, TRUFOR_DILATE), np.uint8)) == 0
    kept = inner | outer
    if not kept.any():
        return {"trufor_fixed": math.nan, "trufor_best": math.nan}
    levels = count_levels(forgery_map[kept], inner[kept])
    return {"trufor_fixed": _trufor_fixed(levels), "trufor_best": _trufor_best(levels)}
