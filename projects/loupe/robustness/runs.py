"""Measures point by point, keeps each, goes on where a run was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from loupe.data.images.degradation import DEGRADATIONS, Level
from loupe.data.images.masks import read_mask
from loupe.data.sources.catalog import load_dataset
from loupe.data.training.loaders import EvaluationDataset, EvaluationLoader, start_worker
from loupe.evaluation.evaluator import ForgeryEvaluator
from loupe.evaluation.metrics import METRICS
from loupe.evaluation.predictions import find_predictions
from loupe.evaluation.scoring import ScoringOptions, score_predictions
from loupe.modeling.guarded import guarded
from loupe.robustness.curves import areas, draw, point_report, write_tables
from loupe.robustness.degraded import DegradingMapper
from loupe.robustness.points import (
    CLEAN,
    Point,
    digest,
    list_points,
    load_point,
    point_folder,
    protocols_of,
    save_point,
)
from loupe.structures import GroundTruth


class Detector(Protocol):
    """What is measured at a point.

    Attributes:
        source: its weights, or the folder of its maps, for the report.
    """

    source: str

    def measure(self, axis: str, level: Level, evaluator: ForgeryEvaluator) -> None:
        """Gives the evaluator its predictions of the degraded images."""

    def key(self, axis: str, level: Level) -> str:
        """Digest of what its predictions at a point depend on."""


class ModelDetector:
    """A model that predicts degraded images; one batch is in memory at a time."""

    def __init__(
        self,
        predictor: Any,
        entries: list[dict[str, Any]],
        *,
        seed: int,
        workers: int = 0,
        weights: str | Path = "",
    ) -> None:
        """Takes a `LoupePredictor`, the data set, and what the draws and the digest depend on.

        Args:
            predictor: with `cfg`, `model` and `mapper`.
            entries: dataset dicts.
            seed: of noise, windows and chains.
            workers: processes that decode and degrade.
            weights: file of the model.
        """
        self.predictor, self.entries, self.seed, self.workers = predictor, entries, seed, workers
        files = [weights]
        for entry in entries:
            files += [entry["file_name"], entry["mask_file_name"] or ""]
        self.source = str(predictor.cfg.MODEL.WEIGHTS)
        self._key = digest([seed, predictor.cfg.dump(), entries], files)

    def key(self, axis: str, level: Level) -> str:
        """Digest of configuration, weights, data set and seed."""
        return self._key

    @torch.no_grad()
    def measure(self, axis: str, level: Level, evaluator: ForgeryEvaluator) -> None:
        """Predicts all images, degraded; a prediction that cannot be measured is counted."""
        loader = EvaluationLoader(
            EvaluationDataset(
                self.entries,
                DegradingMapper(axis, level, self.seed, self.predictor.mapper.map_image),
            ),
            batch_size=self.predictor.cfg.TEST.IMS_PER_BATCH,
            num_workers=self.workers,
            collate_fn=list,
            worker_init_fn=start_worker,
        )
        model = guarded(self.predictor.model)
        for batch in loader:
            for item, prediction in zip(batch, model(batch), strict=True):
                try:
                    evaluator.process([item], [prediction])
                except ValueError as error:
                    evaluator.add_unreadable(str(item["file_name"]), str(error))


class SavedDetector:
    """Maps that any tool has saved of an exported set, `<axis>/<level>/` in both folders."""

    def __init__(self, exported: Path, maps: Path) -> None:
        """Reads nothing yet."""
        self.exported, self.maps, self.source = exported, maps, str(maps)

    def key(self, axis: str, level: Level) -> str:
        """Digest of the point's images, masks and maps."""
        place = point_folder(axis, level)
        files = [file for root in (self.exported, self.maps) for file in (root / place).rglob("*")]
        return digest([], sorted(files))

    def measure(self, axis: str, level: Level, evaluator: ForgeryEvaluator) -> None:
        """Reads the saved maps; an unusable one is counted."""
        place = point_folder(axis, level)
        score_predictions(
            load_dataset(str(self.exported / place / "manifest.csv")),
            find_predictions(self.maps / place),
            _read_truth,
            evaluator,
            options=ScoringOptions(faults="count"),
        )


def _read_truth(item: dict[str, Any], shape: tuple[int, int] | None) -> GroundTruth:
    path = item["mask_file_name"]
    mask = None if path is None or not item["label"] else read_mask(path) >= 0.5
    return GroundTruth(item["label"], mask, item["technique"], item["source"])


class Plan(NamedTuple):
    """What is measured and how.

    Attributes:
        axes: names of degradations.
        metrics: names of metrics.
        resamples: of the bootstrap.
        seed: of the bootstrap of areas.
        output: folder for points, numbers and figures.
    """

    axes: tuple[str, ...]
    metrics: tuple[str, ...]
    resamples: int
    seed: int
    output: Path


def measure_point(plan: Plan, detector: Detector, axis: str, level: Level) -> tuple[Point, bool]:
    """One point, and whether it was kept by an earlier run."""
    place = point_folder(axis, level)
    path = plan.output / "points" / place.with_name(f"{place.name}.npz")
    key = digest([plan.resamples, axis, str(level), detector.key(axis, level)], [])
    kept = load_point(key, plan.metrics, path)
    if kept is not None:
        return kept, True
    evaluator = ForgeryEvaluator(
        f"{axis} {level}",
        protocols=protocols_of(plan.metrics),
        resamples=plan.resamples,
        distributed=False,
    )
    detector.measure(axis, level, evaluator)
    shard = evaluator.shard()
    point = Point(axis, level, evaluator.summarise([shard]), shard.table)
    save_point(point, key, path)
    return point, False


def measure_points(
    plan: Plan, detector: Detector, report: Callable[[str], None] = print
) -> Iterator[list[Point]]:
    """Measures point by point; yields the clean point, then the points of each axis."""
    points = list_points(plan.axes)
    group: list[Point] = []
    for number, (axis, level) in enumerate(points, start=1):
        point, kept = measure_point(plan, detector, axis, level)
        metrics = point.results.metrics
        values = "  ".join(f"{name} {metrics[name].value:.3f}" for name in plan.metrics)
        report(f"{number}/{len(points)} {axis} {level}{' (kept)' if kept else ''}: {values}")
        group.append(point)
        if number == len(points) or points[number][0] != axis:
            yield group
            group = []


def write_curves(
    plan: Plan, groups: Iterable[list[Point]], about: dict[str, Any]
) -> dict[str, Any]:
    """Writes the numbers anew whenever an axis is done, then the figures; returns the report.

    Args:
        plan: what is measured.
        groups: of `measure_points`.
        about: what the report says of model and data set.
    """
    groups = iter(groups)
    (clean,) = next(groups)
    report: dict[str, Any] = about | {
        "seed": plan.seed,
        "images": clean.results.counts["images"],
        "definitions": {name: METRICS[name].definition for name in plan.metrics},
        CLEAN: point_report(clean, plan.metrics) | {"errors": clean.results.unreadable},
        "axes": {},
    }
    for points in groups:
        axis = points[0].axis
        found = areas(points, plan.metrics, plan.resamples, plan.seed)
        report["axes"][axis] = {
            "unit": DEGRADATIONS[axis].unit,
            "points": [point_report(point, plan.metrics) for point in points],
            "area": {name: metric.as_json() for name, metric in found.items()},
        }
        write_tables(report, plan.output)
    for name in plan.metrics:
        draw(report, name, plan.output / f"{name.replace('/', '_')}.png")
    return report
