"""Says of each image how probable it is that it was forged, and where.

    loupe predict photograph.jpg --output predictions
    loupe predict --output predictions folder *.jpg
    loupe predict --output predictions --config-file FILE --weights FILE folder

INPUT: images, folders (with their subfolders) and patterns such as "*.jpg". Without a configuration
it is the small Loupe that comes with the code (weights/README.md).

Writes to the output folder, at each image's own size and under its name:

    predictions.csv      file, probability, error (why there is no probability, if so), warning,
                         verdict (authentic, forged, undecided), reasons of an undecided one
    maps/<name>.png      probability of each pixel, 8 bit, 255 = forged
    masks/<name>.png     0 or 255 = forged
    overlays/<name>.png  the image with its map drawn on it

Exit status: 0 = all images predicted, 1 = some were not readable (the table says which and why),
2 = nothing was done.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from loupe.commands.command_line import (
    DEFAULT_CONFIG,
    add_config_options,
    read_config,
    run_command,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_image_options(parser)
    add_config_options(parser, DEFAULT_CONFIG)


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Adds the images and how their predictions are written."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, folder or pattern")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode (default 1)")
    parser.add_argument("--no-overlays", action="store_true", help="do not draw overlays")


def run(arguments: argparse.Namespace) -> int:
    """Predicts and writes."""
    cfg = read_config(arguments)
    from loupe.inference import LoupePredictor, find_images, output_folder, write_predictions

    names = find_images(arguments.inputs)
    with output_folder(arguments.output, arguments.inputs) as folder:
        predictor = LoupePredictor(cfg, arguments.weights)
        start = time.perf_counter()
        predictions = predictor.predict_many(list(names), arguments.workers)
        done, failed = write_predictions(
            predictions, names, folder, overlays=not arguments.no_overlays
        )
    seconds = time.perf_counter() - start
    print(f"{done} images predicted in {seconds:.1f} s, {failed} not readable: {folder}")
    return 1 if failed else 0


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command("predict", __doc__, add_arguments, run, words)
