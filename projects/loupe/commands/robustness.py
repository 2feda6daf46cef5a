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
import sys
from pathlib import Path
from typing import Any

from loupe.config import load_config
from loupe.data.images.degradation import DEGRADATIONS
from loupe.inference import LoupePredictor
from loupe.model_zoo import is_shipped, shipped_file
from loupe.robustness.degraded import export, select
from loupe.robustness.points import CLEAN, METRICS, list_points
from loupe.robustness.runs import (
    Detector,
    ModelDetector,
    Plan,
    SavedDetector,
    measure_points,
    write_curves,
)

SHOWN = (
    "image/AUC",
    "image/bAcc",
    "pixel/F1-image",
    "pixel/F1-pooled",
    "pixel/AUC-image",
    "pixel/FPR-authentic",
    "benco/F1",
)


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


def detector_of(arguments: argparse.Namespace) -> Detector:
    """A model on degraded images, or the maps that another tool has saved."""
    if arguments.maps is not None:
        return SavedDetector(Path(arguments.dataset), arguments.maps)
    entries = select(arguments.dataset, arguments.images)
    cfg = load_config(arguments.config_file, arguments.opts)
    weights = arguments.weights or cfg.MODEL.WEIGHTS
    return ModelDetector(
        LoupePredictor(cfg, arguments.weights),
        entries,
        seed=arguments.seed,
        workers=arguments.workers,
        weights=shipped_file(weights) if is_shipped(weights) else weights,
    )


def main(words: list[str] | None = None) -> int:
    """Measures and writes; returns the exit status."""
    arguments = parse_arguments(words)
    try:
        if arguments.export is not None:
            return export_images(arguments)
        plan = Plan(
            tuple(arguments.axes),
            tuple(arguments.metrics),
            arguments.resamples,
            arguments.seed,
            arguments.output,
        )
        about = {
            "dataset": arguments.dataset,
            "weights": str(arguments.weights or arguments.maps),
            "config": arguments.config_file,
        }
        report = write_curves(plan, measure_points(plan, detector_of(arguments), say), about)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_areas(report, arguments.metrics)
    unreadable = report[CLEAN]["unreadable"]
    if unreadable:
        print(f"unreadable: {unreadable} images, named in robustness.json")
    return 1 if unreadable else 0


def export_images(arguments: argparse.Namespace) -> int:
    """Writes the degraded images; returns 1 if some had to be left out."""
    entries = select(arguments.dataset, arguments.images)
    points = list_points(arguments.axes)
    errors = export(entries, arguments.export, points, arguments.seed, say)
    for name, error in errors.items():
        print(f"left out: {name}: {error}")
    return 1 if errors else 0


def say(line: str) -> None:
    """Prints a line at once: a run takes hours."""
    print(line, flush=True)


def print_areas(report: dict[str, Any], names: list[str]) -> None:
    """Prints the clean values and each axis's mean heights."""
    print(f"\n{'mean over levels':<18}" + "".join(f"{name:>21}" for name in names))
    rows = {CLEAN: report[CLEAN]["metrics"]}
    rows |= {axis: curve["area"] for axis, curve in report["axes"].items()}
    for axis, metrics in rows.items():
        cells = [metrics[name]["value"] for name in names]
        print(f"{axis:<18}" + "".join(f"{'-' if x is None else f'{x:.3f}':>21}" for x in cells))
