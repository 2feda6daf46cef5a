"""Why are the numbers what they are? Several views of one model, measured as any detector is.

A view is a map that stands for the image: the model's own, what it gives when told the condition, a
centre prior that knows nothing, and, on the patch grid, patch map and forgery map. Each view has
its `RecordTable`; all numbers come from the table of metrics.
H W pixels of an image, h w patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np

from loupe.evaluation.measures import THRESHOLD, Columns, measure_image
from loupe.evaluation.metrics import METRICS, compute
from loupe.evaluation.pooled_histogram import PooledHistogram, merge_shards
from loupe.evaluation.records import RecordTable
from loupe.evaluation.results import THRESHOLD_NOTE, Results, summarise
from loupe.evaluation.samples import has_pixels
from loupe.structures import GroundTruth

# Width of the centre prior's bump, as a fraction of each side.
PRIOR_WIDTH = 0.25
VIEWS = ("own", "told authentic", "told forged", "centre prior", "patch map", "mask on patches")
# What is computed of every view.
LOCALISATION = tuple(name for name, m in METRICS.items() if m.group == "pixel" and not m.of_pixels)


class ConditionedPrediction(NamedTuple):
    """What a model predicts for one image, also if it is told the condition.

    Attributes:
        probability: that the image is forged.
        forgery_map: (H, W) under the model's own condition.
        told_authentic: (H, W) under the condition 0; None if there is no condition.
        told_forged: (H, W) under the condition 1.
        patch_map: (h, w), image part only; None without patch prediction.
        window: (x0, y0, x1, y1), the pixels that the patch map shows; None = all.
    """

    probability: float
    forgery_map: np.ndarray
    told_authentic: np.ndarray | None = None
    told_forged: np.ndarray | None = None
    patch_map: np.ndarray | None = None
    window: tuple[float, float, float, float] | None = None


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


def _other_views(
    prediction: ConditionedPrediction, mask: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """View, map and mask of a forged image, but for the model's own map."""
    yield "centre prior", centre_prior(*mask.shape), mask
    if prediction.told_forged is not None and prediction.told_authentic is not None:
        yield "told authentic", prediction.told_authentic, mask
        yield "told forged", prediction.told_forged, mask
    if prediction.patch_map is None:
        return
    # Both on the patch grid, so that the finer map has no advantage.
    grid, window = prediction.patch_map.shape, prediction.window
    forged = on_grid(mask, window, grid) >= 0.5
    # A region smaller than half a patch has no truth on this grid.
    if forged.any():
        yield "patch map", prediction.patch_map, forged
        yield "mask on patches", on_grid(prediction.forgery_map, window, grid), forged


class Diagnosis:
    """Gathers images, then states the facts that `patterns` are read from."""

    def __init__(self) -> None:
        """Starts empty."""
        self._tables = {view: RecordTable() for view in VIEWS}
        self._pooled = PooledHistogram()
        self._moved: list[tuple[float, float]] = []
        self.left_out: dict[str, str] = {}

    def add(self, name: str, prediction: ConditionedPrediction, truth: GroundTruth) -> None:
        """Measures one image.

        Raises:
            ValueError: a map cannot be what it should be, or has another size than the mask.
        """
        image_id = f"{len(self._tables['own']):09}"
        own, p = prediction.forgery_map, prediction.probability
        measures, levels = measure_image(name, truth, p, own, protocols=())
        views = {}
        if truth.label and truth.mask is not None and truth.mask.any():
            for view, map_, mask in _other_views(prediction, truth.mask):
                views[view] = measure_image(name, GroundTruth(1, mask), p, map_, protocols=())[0]
        for view, found in ({"own": measures} | views).items():
            self._tables[view].append(image_id, found, truth.technique)
        if levels is not None:
            self._pooled.add(image_id, levels)
        if prediction.told_forged is not None and prediction.told_authentic is not None:
            apart = np.abs(prediction.told_forged - prediction.told_authentic).mean()
            self._moved.append((float(apart), float(np.abs(prediction.told_forged - own).mean())))

    def leave_out(self, name: str, reason: str) -> None:
        """Notes an image that could not be examined."""
        self.left_out[name] = reason

    def results(self) -> Results:
        """What an evaluation of the model's own maps reports, without intervals."""
        histogram, _ = merge_shards([self._pooled.shard()])
        return summarise(
            self._tables["own"], histogram, unreadable=self.left_out, protocols=(), resamples=0
        )

    def facts(self) -> dict[str, Any]:
        """All numbers by name; NaN where a number is not defined.

        Returns:
            "counts", "reliability": of the evaluation. "views": metrics by view, also of what is
            called forged alone. "by_size", "by_technique": metrics by group, smallest regions
            first. "condition": how far it moves the maps. "empty": fraction of forged images of
            which no pixel is called forged. "threshold": best for all pixels.
        """
        results, own = self.results(), self._tables["own"].columns()
        # The identifiers count upwards, so the columns are in the order of the tables.
        groups = {
            kind: {title: self._group(rows) for title, rows in found.items()}
            for kind, found in (("by_size", _sizes(own)), ("by_technique", self._techniques(own)))
        }
        called_pixels = (own.true_positives + own.false_positives)[_masked(own)]
        moved = np.array(self._moved).reshape(-1, 2)
        views = {view: _metrics(table.columns()) for view, table in self._tables.items()}
        for view in ("patch map", "mask on patches"):
            called = self._tables[view].columns().probability > THRESHOLD
            views[f"{view}, called forged"] = _metrics(self._tables[view].columns(called))
        views["own"] |= {name: one.value for name, one in results.metrics.items()}
        return groups | {
            "counts": results.counts | {"with-mask": int(_masked(own).sum())},
            "reliability": [point._asdict() for point in results.reliability if point.images],
            "views": views,
            "condition": {
                "told apart": _mean(moved[:, 0]),
                "own to told forged": _mean(moved[:, 1]),
            },
            "probability": {
                "forged": _mean(own.probability[own.label > 0]),
                "authentic": _mean(own.probability[own.label == 0]),
            },
            "empty": _mean(called_pixels == 0),
            "threshold": results.notes.get(THRESHOLD_NOTE, np.nan),
        }

    def _techniques(self, own: Columns) -> dict[str, np.ndarray]:
        names = np.array(self._tables["own"].techniques, dtype=object)
        rows = {name: _masked(own) & (names == name) for name in sorted({*names} - {""})}
        return {name: chosen for name, chosen in rows.items() if chosen.any()}

    def _group(self, rows: np.ndarray) -> dict[str, float]:
        columns = self._tables["own"].columns(rows)
        prior, chosen = self._tables["centre prior"], np.flatnonzero(rows)
        inside = np.isin(np.array(prior.image_ids, dtype=int), chosen)
        of_prior = compute(prior.columns(inside), names=["pixel/AUC-image"])["pixel/AUC-image"]
        return {"images": int(rows.sum()), "probability": _mean(columns.probability)} | {
            **_metrics(columns),
            "centre prior": float(of_prior[0]),
        }


def _masked(own: Columns) -> np.ndarray:
    """(n,) forged images with a mask that is not empty."""
    return has_pixels(own) & (own.true_positives + own.false_negatives > 0)


def _sizes(own: Columns) -> dict[str, np.ndarray]:
    """Rows of the four quarters of the forged images by forged area, smallest first."""
    masked = np.flatnonzero(_masked(own))
    if len(masked) < 4:
        return {}
    forged = own.true_positives + own.false_negatives
    area = forged / (forged + own.false_positives + own.true_negatives)
    quarters: dict[str, np.ndarray] = {}
    for part in np.array_split(masked[np.argsort(area[masked], kind="stable")], 4):
        title = f"{area[part].min():.2%} to {area[part].max():.2%}"
        quarters[title] = np.isin(np.arange(len(area)), part) | quarters.get(title, False)
    return quarters


def _metrics(columns: Columns) -> dict[str, float]:
    found = compute(columns, names=LOCALISATION)
    return {name: float(value[0]) for name, value in found.items()}


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else np.nan
