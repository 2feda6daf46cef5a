"""Why are the numbers what they are? Facts about classifier, pseudo-labels, condition and errors.

Everything is measured image by image while its maps are in memory; a few numbers stay.
H W pixels of an image, h w patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from loupe.evaluation.calibration import calibration_error, reliability_curve
from loupe.evaluation.curves import LevelCounts, area_under_roc, best_f1, count_levels, curve_of
from loupe.evaluation.measures import ALARM_FRACTION, THRESHOLD, largest_region
from loupe.structures import GroundTruth

# Width of the centre prior's bump, as a share of each side.
PRIOR_WIDTH = 0.25
# Scores are counted in so many levels for the best threshold over all images.
LEVELS = 1024


class ModelAnswer(NamedTuple):
    """What a model says about one image, also if it is told the verdict.

    Attributes:
        score: Probability that the image is forged.
        forgery_map: (H, W) under the model's own verdict.
        told_authentic: (H, W) under the condition 0; None if there is no condition.
        told_forged: (H, W) under the condition 1.
        patch_map: (h, w), image part only; None without patch prediction.
        window: (x0, y0, x1, y1), the pixels that the patch map shows; None = all.
    """

    score: float
    forgery_map: np.ndarray
    told_authentic: np.ndarray | None = None
    told_forged: np.ndarray | None = None
    patch_map: np.ndarray | None = None
    window: tuple[float, float, float, float] | None = None


class ImageFacts(NamedTuple):
    """One image's numbers; NaN where not defined.

    Attributes:
        label: 1 = forged.
        score: Probability that the image is forged.
        area: Forged share of the image.
        f1: F1 at 0.5.
        iou: IoU at 0.5.
        best: F1 at the image's own best threshold.
        auc: Area under the pixel ROC.
        prior_auc: The same of the centre prior.
        patch_f1: F1 of the patch map on the patch grid.
        patch_iou: IoU likewise.
        patch_best: Its F1 at the image's own best threshold: low trust is no low quality.
        grid_f1: F1 of the forgery map on the patch grid.
        grid_iou: IoU likewise.
        grid_best: F1 at the image's own best threshold.
        told_apart: Mean |map told forged - map told authentic|.
        own_to_forged: Mean |own map - map told forged|.
        f1_told_authentic: F1 under the condition 0.
        f1_told_forged: F1 under the condition 1.
        called: Share of the image that the map calls forged.
        alarm: Authentic images: largest region called forged, as a share of the image.
        maximum: Highest score of a pixel.
    """

    label: float
    score: float
    area: float
    f1: float = math.nan
    iou: float = math.nan
    best: float = math.nan
    auc: float = math.nan
    prior_auc: float = math.nan
    patch_f1: float = math.nan
    patch_iou: float = math.nan
    patch_best: float = math.nan
    grid_f1: float = math.nan
    grid_iou: float = math.nan
    grid_best: float = math.nan
    told_apart: float = math.nan
    own_to_forged: float = math.nan
    f1_told_authentic: float = math.nan
    f1_told_forged: float = math.nan
    called: float = math.nan
    alarm: float = math.nan
    maximum: float = math.nan


def f1_and_iou(called: np.ndarray, forged: np.ndarray) -> tuple[float, float]:
    """F1 and IoU of two bool maps; 1 where both are empty."""
    hits, either = int((called & forged).sum()), int((called | forged).sum())
    if not either:
        return 1.0, 1.0
    return 2 * hits / (either + hits), hits / either


def centre_prior(height: int, width: int) -> np.ndarray:
    """(H, W) float32: a fixed bump in the middle, which knows nothing of the image."""
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    bump = np.exp(-(y[:, None] ** 2 + x**2) / (2 * PRIOR_WIDTH**2))
    return bump.astype(np.float32)


def on_grid(
    values: np.ndarray, window: tuple[float, float, float, float] | None, grid: tuple[int, int]
) -> np.ndarray:
    """(h, w): means of a (H, W) map over the patches of the window.

    A window may reach beyond the image (a last patch that is partly padding); the image's edge is
    repeated there.

    Raises:
        ValueError: The window shows nothing of the image.
    """
    height, width = values.shape
    x0, y0, x1, y1 = (0, 0, width, height) if window is None else map(round, window)
    part = values[y0:y1, x0:x1].astype(np.float32)
    if min(part.shape) < 1:
        raise ValueError(f"the window {window} shows nothing of a map of {values.shape}")
    beyond = max(0, y1 - height), max(0, x1 - width)
    part = np.pad(part, ((0, beyond[0]), (0, beyond[1])), mode="edge")
    # A patch may be larger than an image's pixel or smaller; area means serve both.
    return cv2.resize(part, grid[::-1], interpolation=cv2.INTER_AREA).clip(0, 1)


def _forged_facts(answer: ModelAnswer, mask: np.ndarray) -> tuple[dict[str, float], LevelCounts]:
    """How well the map finds the forged pixels, and its scores' counts."""
    own = answer.forgery_map
    levels = count_levels(own.astype(np.float32), mask)
    curve = curve_of(levels)
    f1, iou = f1_and_iou(own > THRESHOLD, mask)
    facts = {
        "f1": f1,
        "iou": iou,
        "best": float(best_f1(curve)[0]),
        "auc": float(area_under_roc(curve)),
        "prior_auc": float(area_under_roc(curve_of(count_levels(centre_prior(*mask.shape), mask)))),
    }
    if answer.told_forged is not None and answer.told_authentic is not None:
        facts["f1_told_forged"] = f1_and_iou(answer.told_forged > THRESHOLD, mask)[0]
        facts["f1_told_authentic"] = f1_and_iou(answer.told_authentic > THRESHOLD, mask)[0]
    return facts | _grid_facts(answer, mask), levels


def _grid_facts(answer: ModelAnswer, mask: np.ndarray) -> dict[str, float]:
    """Patch map and forgery map, both on the patch grid, so that the finer one has no advantage."""
    if answer.patch_map is None:
        return {}
    grid = answer.patch_map.shape
    truth = on_grid(mask, answer.window, grid) >= 0.5
    if not truth.any():
        # A region smaller than half a patch has no truth on this grid.
        return {}
    facts = {}
    maps = {"patch": answer.patch_map, "grid": on_grid(answer.forgery_map, answer.window, grid)}
    for name, map_ in maps.items():
        facts[f"{name}_f1"], facts[f"{name}_iou"] = f1_and_iou(map_ > THRESHOLD, truth)
        curve = curve_of(count_levels(map_.astype(np.float32), truth))
        facts[f"{name}_best"] = float(best_f1(curve)[0])
    return facts


def examine(answer: ModelAnswer, truth: GroundTruth) -> tuple[ImageFacts, LevelCounts | None]:
    """Measures one image.

    Returns:
        Its facts, and the counts of a forged image's scores (None without a mask).

    Raises:
        ValueError: Map and mask differ in size.
    """
    own = answer.forgery_map
    facts: dict[str, float] = {
        "called": float((own > THRESHOLD).mean()),
        "maximum": float(own.max()),
    }
    if answer.told_forged is not None and answer.told_authentic is not None:
        facts["told_apart"] = float(np.abs(answer.told_forged - answer.told_authentic).mean())
        facts["own_to_forged"] = float(np.abs(answer.told_forged - own).mean())
    levels = None
    area = 0.0 if not truth.label else math.nan
    if not truth.label:
        facts["alarm"] = largest_region(own > THRESHOLD)
    elif truth.mask is not None:
        if truth.mask.shape != own.shape:
            raise ValueError(f"the map is {own.shape}, the mask {truth.mask.shape}")
        area = float(truth.mask.mean())
        if area:
            more, levels = _forged_facts(answer, truth.mask)
            facts |= more
    return ImageFacts(float(truth.label), answer.score, area, **facts), levels


class Diagnosis:
    """Gathers images, then states the facts that `signatures` are read from."""

    def __init__(self) -> None:
        """Starts empty."""
        self._facts: list[ImageFacts] = []
        self._techniques: list[str] = []
        self._forged = np.zeros(LEVELS, dtype=np.int64)
        self._authentic = np.zeros(LEVELS, dtype=np.int64)
        # Hits, false alarms and forged pixels at the fixed threshold, exactly.
        self._counts = np.zeros(3)
        self.left_out: dict[str, str] = {}

    def add(self, answer: ModelAnswer, truth: GroundTruth) -> None:
        """Measures one image; see `examine`."""
        facts, levels = examine(answer, truth)
        self._facts.append(facts)
        self._techniques.append(truth.technique)
        if levels is not None:
            index = np.minimum((levels.values * LEVELS).astype(int), LEVELS - 1)
            np.add.at(self._forged, index, levels.forged.astype(np.int64))
            np.add.at(self._authentic, index, levels.authentic.astype(np.int64))
            above = levels.values > THRESHOLD
            self._counts += (
                levels.forged[above].sum(),
                levels.authentic[above].sum(),
                levels.forged.sum(),
            )

    def leave_out(self, name: str, reason: str) -> None:
        """Notes an image that could not be examined."""
        self.left_out[name] = reason

    def columns(self) -> dict[str, np.ndarray]:
        """Facts by name, each (n,)."""
        matrix = np.array(self._facts, dtype=float).reshape(-1, len(ImageFacts._fields))
        return dict(zip(ImageFacts._fields, matrix.T, strict=True))

    def facts(self) -> dict[str, Any]:
        """All numbers, ready for `json.dumps`; null where a number is not defined."""
        columns = self.columns()
        forged, authentic = columns["label"] > 0, columns["label"] == 0
        masked = ~np.isnan(columns["f1"])
        facts = {
            "images": len(self._facts),
            "forged": int(forged.sum()),
            "with_mask": int(masked.sum()),
            "authentic": int(authentic.sum()),
            "left_out": len(self.left_out),
            "classifier": _classifier(columns["score"], columns["label"]),
            "masks": _means(columns, ("f1", "iou", "best", "auc", "prior_auc", "area"), masked)
            | {"empty": _mean(columns["called"][masked] == 0)}
            | self._pooled(),
            "authentic_images": {
                "false_alarms": _mean(columns["alarm"][authentic] >= ALARM_FRACTION),
                "called": _mean(columns["called"][authentic]),
            },
            "pseudo_labels": self._pseudo_labels(columns),
            "condition": _condition(columns),
            "by_size": _by_size(columns),
            "by_technique": self._by_technique(columns),
        }
        return _without_nan(facts)

    def _pooled(self) -> dict[str, float]:
        """F1 over all pixels of forged images, at 0.5 and at the best common threshold."""
        hits, alarms, forged = self._counts
        if not forged:
            return {"pooled_f1": math.nan, "pooled_best_f1": math.nan, "best_threshold": math.nan}
        levels = LevelCounts(np.arange(LEVELS) / LEVELS, self._forged, self._authentic)
        best, position = best_f1(curve_of(levels))
        fixed = float(2 * hits / (hits + alarms + forged))
        return {
            "pooled_f1": fixed,
            # The best of the levels' edges may miss the fixed threshold by a hair.
            "pooled_best_f1": max(float(best), fixed),
            "best_threshold": float(levels.values[::-1][position]),
        }

    @staticmethod
    def _pseudo_labels(columns: dict[str, np.ndarray]) -> dict[str, float]:
        """Patch map against mask on the patch grid, where the truth is known."""
        known = ~np.isnan(columns["patch_f1"])
        names = ("patch_f1", "patch_iou", "patch_best", "grid_f1", "grid_iou", "grid_best")
        facts = _means(columns, names, known) | {"images": int(known.sum())}
        called = known & (columns["score"] > THRESHOLD)
        facts["called_forged"] = _mean(columns["score"][known] > THRESHOLD)
        facts["patch_f1_if_called"] = _mean(columns["patch_f1"][called])
        facts["grid_f1_if_called"] = _mean(columns["grid_f1"][called])
        facts["gap_f1"] = facts["patch_f1_if_called"] - facts["grid_f1_if_called"]
        return facts

    def _by_technique(self, columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        names = np.array(self._techniques, dtype=object)
        masked = ~np.isnan(columns["f1"])
        groups = sorted({name for name in names[masked] if name})
        return [_group(name, columns, masked & (names == name)) for name in groups]


def _classifier(scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Ranking and reliability of the verdicts."""
    facts: dict[str, Any] = {"auc": math.nan, "ece": math.nan, "accuracy": math.nan}
    if len(scores):
        forged = labels > 0
        facts["auc"] = float(
            area_under_roc(curve_of(count_levels(scores.astype(np.float32), forged)))
        )
        facts["ece"] = float(calibration_error(scores, labels, np.ones((1, len(labels))))[0])
        facts["accuracy"] = float(((scores > THRESHOLD) == forged).mean())
        facts["mean_score_forged"] = _mean(scores[forged])
        facts["mean_score_authentic"] = _mean(scores[~forged])
    facts["reliability"] = [
        point._asdict() for point in reliability_curve(scores, labels) if point.images
    ]
    return facts


def _condition(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """How much the verdict moves the mask."""
    known = ~np.isnan(columns["f1_told_forged"])
    facts = {
        "told_apart": _mean(columns["told_apart"]),
        "own_to_told_forged": _mean(columns["own_to_forged"]),
        "f1_told_authentic": _mean(columns["f1_told_authentic"][known]),
        "f1_own": _mean(columns["f1"][known]),
        "f1_told_forged": _mean(columns["f1_told_forged"][known]),
    }
    facts["f1_gain_told_forged"] = facts["f1_told_forged"] - facts["f1_own"]
    return facts


def _by_size(columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Errors in the four quarters of the forged images, by forged area, smallest first."""
    masked = np.flatnonzero(~np.isnan(columns["f1"]))
    if len(masked) < 4:
        return []
    order = masked[np.argsort(columns["area"][masked], kind="stable")]
    quarters = []
    for part in np.array_split(order, 4):
        chosen = np.zeros(len(columns["f1"]), bool)
        chosen[part] = True
        area = columns["area"][part]
        quarters.append(_group(f"{area.min():.2%} to {area.max():.2%}", columns, chosen))
    return quarters


def _group(name: str, columns: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, Any]:
    numbers = _means(columns, ("score", "f1", "iou", "best", "auc", "prior_auc"), chosen)
    return {"name": name, "images": int(chosen.sum())} | numbers


def _means(
    columns: dict[str, np.ndarray], names: Sequence[str], rows: np.ndarray
) -> dict[str, float]:
    return {name: _mean(columns[name][rows]) for name in names}


def _mean(values: np.ndarray) -> float:
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else math.nan


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
