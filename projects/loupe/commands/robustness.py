"""Measures how a detector's scores fall as images get worse, with curves and areas under them.

    tools/robustness.py DATASET --config-file FILE --weights FILE --output DIR
    tools/robustness.py DATASET --export FOLDER                  # for another tool to predict on
    tools/robustness.py FOLDER  --maps PREDICTIONS --output DIR  # scores what it has saved

The second form writes every degraded image and its mask to FOLDER/<axis>/<level>/; the third scores
PREDICTIONS/<axis>/<level>/, each a folder that tools/score.py can read. Axes and levels are in
docs/robustness.md. Writes to DIR robustness.json and robustness.csv, anew after each axis, and a
figure for each metric. Each level that is done is kept in DIR/points/, so that the same command
goes on where it was interrupted. An image that cannot be used is counted, it ends nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from loupe.config import load_config
from loupe.data.images.decoding import read_image_and_mask, read_mask
from loupe.data.images.degradation import DEGRADATIONS, Level, Pair, degrade
from loupe.data.sources.catalog import load_dataset
from loupe.data.sources.manifest import write_manifest
from loupe.data.sources.pairing import make_dataset_dict
from loupe.data.sources.synthetic import is_synthetic, render
from loupe.data.training.loaders import EvaluationDataset
from loupe.evaluation.definitions import DEFINITIONS
from loupe.evaluation.evaluator import ForgeryEvaluator
from loupe.evaluation.predictions import find_predictions
from loupe.evaluation.robustness import (
    CLEAN,
    METRICS,
    Point,
    areas,
    draw,
    load_point,
    point_report,
    protocols_of,
    save_point,
    write_tables,
)
from loupe.evaluation.scoring import ScoringOptions, score_predictions
from loupe.inference import LoupePredictor
from loupe.model_zoo import is_shipped, shipped_file
from loupe.structures import GroundTruth

SHOWN = (
    "image/AUC",
    "image/bAcc",
    "pixel/F1-image",
    "pixel/F1-pooled",
    "pixel/AUC-image",
    "pixel/FPR-authentic",
    "benco/F1",
)


class DegradingMapper:
    """Dataset dict -> batch item of the degraded image, or an item with its "error"."""

    def __init__(self, axis: str, level: Level, seed: int, map_image: Callable[..., Any]) -> None:
        """Takes the degradation, and what makes the model's input of pixels."""
        self.axis, self.level, self.seed, self.map_image = axis, level, seed, map_image

    def __call__(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The item; "ground_truth" is at the degraded image's size."""
        item = {"file_name": entry["file_name"], "image_id": entry["image_id"]}
        try:
            image, mask = read_degraded(entry, self.axis, self.level, self.seed)
            item |= self.map_image(image)
        except (ValueError, cv2.error, MemoryError) as error:
            return item | {"error": str(error)}
        truth = GroundTruth(entry["label"], mask, entry["technique"], entry["source"])
        return item | {"ground_truth": truth}


def read_degraded(entry: dict[str, Any], axis: str, level: Level, seed: int) -> Pair:
    """Reads an image and its mask (bool; None = authentic, or not known) and degrades both.

    Raises:
        ValueError: a file cannot be read.
    """
    name = entry["file_name"]
    if is_synthetic(name):
        image, mask = render(name)
    else:
        mask_file = entry["mask_file_name"] if entry["label"] else None
        image, mask = read_image_and_mask(name, mask_file, "resize", entry.get("mask_rule", ""))
    if not entry["label"]:
        mask = None
    elif entry.get("wholly_forged"):
        mask = np.ones(image.shape[:2], bool)
    mask = None if mask is None else mask >= 0.5
    if axis == CLEAN:
        return image, mask
    return degrade(image, mask, axis, level, seed=seed, image_id=str(entry["image_id"]))


def list_points(axes: list[str]) -> list[tuple[str, Level]]:
    """The clean images, then all levels of the axes."""
    return [(CLEAN, "")] + [(axis, level) for axis in axes for level in DEGRADATIONS[axis].levels]


def point_folder(axis: str, level: Level) -> Path:
    """Where a point's files lie, relative to the folder of all points."""
    return Path(axis) / str(level).replace(", ", "_").replace(" ", "-")


@torch.no_grad()
def run_model(
    predictor: LoupePredictor,
    entries: list[dict[str, Any]],
    mapper: DegradingMapper,
    evaluator: ForgeryEvaluator,
    workers: int = 0,
) -> None:
    """Predicts all images, degraded, and measures the answers; one batch is in memory at a time."""
    loader = DataLoader(
        EvaluationDataset(entries, mapper),
        batch_size=predictor.cfg.TEST.IMS_PER_BATCH,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_start_worker,
    )
    for batch in loader:
        for item, answer in zip(batch, predictor.model(batch), strict=True):
            try:
                evaluator.process([item], [answer])
            except ValueError as error:
                evaluator.add_unreadable(str(item["file_name"]), str(error))


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)


def export(
    entries: list[dict[str, Any]], folder: Path, points: list[tuple[str, Level]], seed: int
) -> dict[str, str]:
    """Writes all degraded images, as PNG, with their masks and a manifest for each point.

    Returns:
        Error by image, for those that could not be read; they are left out.
    """
    errors: dict[str, str] = {}
    for axis, level in points:
        target = folder / point_folder(axis, level)
        for name in ("images", "masks"):
            (target / name).mkdir(parents=True, exist_ok=True)
        listed = []
        for number, entry in enumerate(entries):
            name = f"{number:07d}.png"
            try:
                image, mask = read_degraded(entry, axis, level, seed)
            except (ValueError, cv2.error, MemoryError) as error:
                errors[entry["file_name"]] = str(error)
                continue
            Image.fromarray(image).save(target / "images" / name, compress_level=1)
            if mask is not None:
                Image.fromarray(mask.astype(np.uint8) * 255).save(target / "masks" / name)
            listed.append(
                make_dataset_dict(
                    target / "images" / name,
                    name,
                    label=entry["label"],
                    mask_file_name=None if mask is None else target / "masks" / name,
                    technique=entry["technique"],
                    source=entry["source"],
                )
            )
        write_manifest(listed, target)
        print(f"{len(listed)} images: {target}", flush=True)
    return errors


def read_truth(item: dict[str, Any], shape: tuple[int, int] | None) -> GroundTruth:
    """The truth about an exported image."""
    path = item["mask_file_name"]
    mask = None if path is None or not item["label"] else read_mask(path) >= 0.5
    return GroundTruth(item["label"], mask, item["technique"], item["source"])


def score_maps(exported: Path, maps: Path, evaluator: ForgeryEvaluator) -> None:
    """Measures the saved maps of one point."""
    score_predictions(
        load_dataset(str(exported / "manifest.csv")),
        find_predictions(maps),
        read_truth,
        evaluator,
        options=ScoringOptions(faults="count"),
    )


def run_points(
    points: list[tuple[str, Level]],
    measure: Callable[[str, Level, ForgeryEvaluator], None],
    arguments: argparse.Namespace,
) -> Iterator[list[Point]]:
    """Measures point by point; yields the clean point, then the points of each axis."""
    names = tuple(arguments.metrics)
    settings = settings_of(arguments)
    group: list[Point] = []
    for index, (axis, level) in enumerate(points):
        place = point_folder(axis, level)
        path = arguments.output / "points" / place.with_name(f"{place.name}.npz")
        key = key_of(settings, arguments, axis, level)
        point = load_point(key, names, path)
        how = "" if point is None else " (kept)"
        if point is None:
            evaluator = ForgeryEvaluator(
                f"{axis} {level}",
                protocols=protocols_of(names),
                resamples=arguments.resamples,
                distributed=False,
            )
            measure(axis, level, evaluator)
            share = evaluator.share()
            point = Point(axis, level, evaluator.summarise([share]), share.table)
            save_point(point, key, path)
        values = "  ".join(f"{name} {point.results.metrics[name].value:.3f}" for name in names)
        print(f"{index + 1}/{len(points)} {axis} {level}{how}: {values}", flush=True)
        group.append(point)
        if index + 1 == len(points) or points[index + 1][0] != axis:
            yield group
            group = []


def settings_of(arguments: argparse.Namespace) -> str:
    """Digest of what the numbers of all points depend on: settings, files, sizes and times."""
    told: list[Any] = [arguments.seed, arguments.resamples]
    if arguments.maps is not None:
        return _digest(told, [])
    cfg = load_config(arguments.config_file, arguments.opts)
    entries = select(arguments.dataset, arguments.images)
    files = [arguments.weights or cfg.MODEL.WEIGHTS]
    for entry in entries:
        files += [entry["file_name"], entry["mask_file_name"] or ""]
    return _digest([*told, cfg.dump(), entries], files)


def key_of(settings: str, arguments: argparse.Namespace, axis: str, level: Level) -> str:
    """Digest of what a point's numbers depend on."""
    files: list[Path] = []
    if arguments.maps is not None:
        for root in (Path(arguments.dataset), arguments.maps):
            files += sorted((root / point_folder(axis, level)).rglob("*"))
    return _digest([settings, axis, str(level)], [str(file) for file in files])


def _digest(told: list[Any], files: list[str]) -> str:
    for file in files:
        place = shipped_file(file) if is_shipped(file) else file
        found = os.stat(place) if os.path.isfile(place) else None
        told.append([file, *([found.st_size, found.st_mtime_ns] if found else [])])
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()


def write_curves(groups: Iterator[list[Point]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the numbers anew whenever an axis is done, then the figures; returns the report."""
    names = tuple(arguments.metrics)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (clean,) = next(groups)
    report: dict[str, Any] = {
        "dataset": arguments.dataset,
        "weights": str(arguments.weights or arguments.maps),
        "config": arguments.config_file,
        "seed": arguments.seed,
        "images": clean.results.counts["images"],
        "definitions": {name: DEFINITIONS[name] for name in names},
        CLEAN: point_report(clean, names) | {"errors": clean.results.unreadable},
        "axes": {},
    }
    for points in groups:
        axis = points[0].axis
        found = areas(points, names, arguments.resamples, arguments.seed)
        report["axes"][axis] = {
            "unit": DEGRADATIONS[axis].unit,
            "points": [point_report(point, names) for point in points],
            "area": {name: metric.as_json() for name, metric in found.items()},
        }
        write_tables(report, arguments.output)
    for name in names:
        draw(report, name, arguments.output / f"{name.replace('/', '_')}.png")
    return report


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="data set with labels; with --maps: an exported folder")
    parser.add_argument("--output", type=Path, help="folder for curves and numbers")
    parser.add_argument("--config-file", help="configuration of the model")
    parser.add_argument("--weights", help="checkpoint; by default MODEL.WEIGHTS")
    parser.add_argument("--export", type=Path, help="write the degraded images to this folder")
    parser.add_argument("--maps", type=Path, help="folder of saved predictions, one for each level")
    parser.add_argument(
        "--axes", nargs="+", choices=tuple(DEGRADATIONS), default=list(DEGRADATIONS), metavar="AXIS"
    )
    parser.add_argument(
        "--metrics", nargs="+", choices=METRICS, default=list(SHOWN), metavar="METRIC"
    )
    parser.add_argument("--images", type=int, help="take that many, spread over the data set")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of noise, windows and chains")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode and degrade")
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="changes to the configuration"
    )
    arguments = parser.parse_args(words)
    ways = [arguments.config_file, arguments.export, arguments.maps]
    if sum(way is not None for way in ways) != 1:
        parser.error("give one of --config-file (a model), --export and --maps")
    if arguments.output is None and arguments.export is None:
        parser.error("give --output")
    return arguments


def select(name: str, limit: int | None) -> list[dict[str, Any]]:
    """The labelled images of a data set, or some of them, evenly spread.

    Raises:
        ValueError: there is none.
    """
    entries = [entry for entry in load_dataset(name) if entry["label"] is not None]
    if not entries:
        raise ValueError(f"{name}: no image has a label; robustness needs the truth")
    if limit is None or limit >= len(entries):
        return entries
    if limit < 1:
        raise ValueError(f"--images is {limit}; it must be at least 1")
    return [entries[index * len(entries) // limit] for index in range(limit)]


def measure_of(arguments: argparse.Namespace) -> Callable[[str, Level, ForgeryEvaluator], None]:
    """What measures one point: a model on degraded images, or a reader of saved maps."""
    if arguments.maps is not None:
        root = Path(arguments.dataset)
        return lambda axis, level, evaluator: score_maps(
            root / point_folder(axis, level), arguments.maps / point_folder(axis, level), evaluator
        )
    entries = select(arguments.dataset, arguments.images)
    cfg = load_config(arguments.config_file, arguments.opts)
    predictor = LoupePredictor(cfg, arguments.weights)

    def measure(axis: str, level: Level, evaluator: ForgeryEvaluator) -> None:
        mapper = DegradingMapper(axis, level, arguments.seed, predictor.mapper.map_image)
        run_model(predictor, entries, mapper, evaluator, arguments.workers)

    return measure


def main(words: list[str] | None = None) -> int:
    """Measures and writes; returns the exit status."""
    arguments = parse_arguments(words)
    points = list_points(arguments.axes)
    try:
        if arguments.export is not None:
            entries = select(arguments.dataset, arguments.images)
            errors = export(entries, arguments.export, points, arguments.seed)
            for name, error in errors.items():
                print(f"left out: {name}: {error}")
            return 1 if errors else 0
        report = write_curves(run_points(points, measure_of(arguments), arguments), arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_areas(report, arguments.metrics)
    unreadable = report[CLEAN]["unreadable"]
    if unreadable:
        print(f"unreadable: {unreadable} images, named in robustness.json")
    return 1 if unreadable else 0


def print_areas(report: dict[str, Any], names: list[str]) -> None:
    """Prints the clean values and each axis's mean heights."""
    print(f"\n{'mean over levels':<18}" + "".join(f"{name:>21}" for name in names))
    rows = {CLEAN: report[CLEAN]["metrics"]}
    rows |= {axis: curve["area"] for axis, curve in report["axes"].items()}
    for axis, metrics in rows.items():
        cells = [metrics[name]["value"] for name in names]
        print(f"{axis:<18}" + "".join(f"{'-' if x is None else f'{x:.3f}':>21}" for x in cells))
