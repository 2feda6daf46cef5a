"""Measures how a detector's scores fall as images get worse, with curves and areas under them.

    loupe robustness DATASET --config-file FILE --weights FILE --output DIR
    loupe robustness DATASET --output DIR                     # of the small Loupe
    loupe robustness DATASET --export FOLDER                  # for another tool to predict on
    loupe robustness FOLDER  --maps PREDICTIONS --output DIR  # scores what it has saved

--export writes every degraded image and its mask to FOLDER/<axis>/<level>/; --maps scores
PREDICTIONS/<axis>/<level>/, each a folder that `loupe score` can read. Axes and levels are in
docs/robustness.md. Writes to DIR robustness.json and robustness.csv, anew after each axis, and a
figure for each metric. Each level that is done is kept in DIR/points/, so that the same command
goes on where it was interrupted. An image that cannot be used is counted, it ends nothing.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loupe.commands import command_line
from loupe.commands.command_line import (
    DEFAULT_CONFIG,
    UsageError,
    positive,
    read_config,
    run_command,
    some_of,
    whole,
)

if TYPE_CHECKING:
    from loupe.robustness.runs import Detector

SHOWN = (
    "image/AUC",
    "image/bAcc",
    "pixel/F1-image",
    "pixel/F1-pooled",
    "pixel/AUC-image",
    "pixel/FPR-authentic",
    "benco/F1",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("dataset", help="data set with labels; with --maps: an exported folder")
    parser.add_argument("--output", type=Path, help="folder for curves and numbers")
    parser.add_argument("--export", type=Path, help="write the degraded images to this folder")
    parser.add_argument("--maps", type=Path, help="folder of saved predictions, one for each level")
    parser.add_argument(
        "--axes",
        type=some_of("loupe.data.images.degradation", "DEGRADATIONS"),
        metavar="AXIS,...",
        help="of docs/robustness.md; default: all",
    )
    parser.add_argument(
        "--metrics",
        type=some_of("loupe.robustness.points", "METRICS"),
        default=list(SHOWN),
        metavar="METRIC,...",
        help="of docs/metrics.md",
    )
    parser.add_argument("--images", type=positive, help="take that many, spread over the data set")
    parser.add_argument("--resamples", type=whole(0), default=1000, help="of the bootstrap")
    parser.add_argument("--seed", type=whole(0), default=0, help="of noise, windows and chains")
    parser.add_argument(
        "--workers", type=whole(0), default=0, help="processes that decode and degrade"
    )
    command_line.add_config_options(parser, DEFAULT_CONFIG)
    # `check` has to see whether a model was asked for.
    parser.set_defaults(config_file=None)


def check(arguments: argparse.Namespace) -> None:
    """Raises a UsageError where the command line says too little or too much.

    Without --export and --maps it is a model that is measured, by default the small Loupe.
    """
    ways = [arguments.config_file, arguments.export, arguments.maps]
    if sum(way is not None for way in ways) > 1:
        raise UsageError("give only one of --config-file (a model), --export and --maps")
    if arguments.weights is not None and (arguments.export or arguments.maps) is not None:
        raise UsageError("--weights are of a model: leave --export and --maps away, or the weights")
    if arguments.output is None and arguments.export is None:
        raise UsageError("there is no place for the results; give --output")
    if not any(way is not None for way in ways):
        arguments.config_file = str(DEFAULT_CONFIG)


def detector_of(arguments: argparse.Namespace) -> Detector:
    """A model on degraded images, or the maps that another tool has saved."""
    from loupe.robustness.runs import ModelDetector, SavedDetector

    if arguments.maps is not None:
        return SavedDetector(Path(arguments.dataset), arguments.maps)
    cfg = read_config(arguments)
    from loupe.inference import LoupePredictor
    from loupe.model_zoo import is_shipped, shipped_file
    from loupe.robustness.degraded import select

    entries = select(arguments.dataset, arguments.images)
    weights = arguments.weights or cfg.MODEL.WEIGHTS
    return ModelDetector(
        LoupePredictor(cfg, arguments.weights),
        entries,
        seed=arguments.seed,
        workers=arguments.workers,
        weights=shipped_file(weights) if is_shipped(weights) else weights,
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures and writes."""
    check(arguments)
    if arguments.axes is None:
        from loupe.data.images.degradation import DEGRADATIONS

        arguments.axes = list(DEGRADATIONS)
    if arguments.export is not None:
        return export_images(arguments)
    from loupe.inference import output_folder
    from loupe.robustness.points import CLEAN
    from loupe.robustness.runs import Plan, measure_points, write_curves

    plan = Plan(
        tuple(arguments.axes),
        tuple(arguments.metrics),
        arguments.resamples,
        arguments.seed,
        arguments.output,
    )
    with output_folder(arguments.output, [arguments.dataset]):
        detector = detector_of(arguments)
        about = {
            "dataset": arguments.dataset,
            "weights": detector.source,
            "config": arguments.config_file,
        }
        report = write_curves(plan, measure_points(plan, detector, say), about)
    print_areas(report, arguments.metrics)
    unreadable = report[CLEAN]["unreadable"]
    if unreadable:
        print(f"unreadable: {unreadable} images, named in robustness.json")
    return 1 if unreadable else 0


def export_images(arguments: argparse.Namespace) -> int:
    """Writes the degraded images; returns 1 if some had to be left out."""
    from loupe.robustness.degraded import export, select
    from loupe.robustness.points import list_points, point_folder

    entries = select(arguments.dataset, arguments.images)
    points = list_points(arguments.axes)
    for axis, level in points:
        images = arguments.export / point_folder(axis, level) / "images"
        if images.is_dir() and any(images.iterdir()):
            raise UsageError(
                f"{images}: holds images of an earlier export, which would mix with these; remove "
                "them, or give another --export"
            )
    errors = export(entries, arguments.export, points, arguments.seed, say)
    for name, error in errors.items():
        print(f"left out: {name}: {error}")
    return 1 if errors else 0


def say(line: str) -> None:
    """Prints a line at once: a run takes hours."""
    print(line, flush=True)


def print_areas(report: dict[str, Any], names: list[str]) -> None:
    """Prints the clean values and each axis's mean heights."""
    from loupe.robustness.points import CLEAN

    print(f"\n{'mean over levels':<18}" + "".join(f"{name:>21}" for name in names))
    rows = {CLEAN: report[CLEAN]["metrics"]}
    rows |= {axis: curve["area"] for axis, curve in report["axes"].items()}
    for axis, metrics in rows.items():
        cells = [metrics[name]["value"] for name in names]
        print(f"{axis:<18}" + "".join(f"{'-' if x is None else f'{x:.3f}':>21}" for x in cells))


main = partial(run_command, "robustness", __doc__, add_arguments, run)
