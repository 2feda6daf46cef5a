"""Predicts images, and writes a report that an analyst can look at, print and keep.

    loupe report photographs --output report
    loupe report photographs "*.jpg" --output report --title "Case 12"

Writes to the output folder index.html (opens from the disk, loads nothing from elsewhere),
report.json, report.csv and pictures/: for each image verdict and probability, the picture with its
map, marked regions and what was measured in them, and what the file says of itself (hash, JPEG
quality, software, EXIF and its contradictions, thumbnail, content credentials). An earlier report
in the folder is replaced, its pictures, too.

Exit status: 0 = all images reported, 1 = some were not readable (the report says which and why),
2 = nothing was done.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loupe.commands.command_line import (
    DEFAULT_CONFIG,
    add_config_options,
    add_image_options,
    read_config,
    run_command,
)

if TYPE_CHECKING:
    from loupe.inference import LoupePredictor
    from loupe.report.writer import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_image_options(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    parser.add_argument("--title", default="Image forgery report", help="of the page")
    add_config_options(parser, DEFAULT_CONFIG)


def model_of(predictor: LoupePredictor) -> Model:
    """What the report says of the model."""
    import loupe
    from loupe.model_zoo import digest_of
    from loupe.report.writer import Model

    cfg, rule = predictor.cfg, predictor.rule
    name = cfg.MODEL.WEIGHTS
    settings = {
        "INPUT.SIZE": cfg.INPUT.SIZE,
        "INPUT.RESIZE": cfg.INPUT.RESIZE,
        "TEST.TILES": f"{predictor.tiles.side} px" if predictor.tiles.enabled else "off",
        "MODEL.DEVICE": cfg.MODEL.DEVICE,
    }
    statement = "" if rule is None else rule.statement
    if rule is not None and rule.tiles is not None:
        statement = f"{statement}. {rule.tiles.statement}"
    return Model(Path(name).name, digest_of(name), loupe.__version__, statement, settings)


def run(arguments: argparse.Namespace) -> int:
    """Predicts and reports."""
    cfg = read_config(arguments)
    from loupe.inference import LoupePredictor, find_images, output_folder
    from loupe.inference.earlier import remove_earlier, with_first
    from loupe.inference.progress import Progress
    from loupe.report import write_report
    from loupe.report.writer import REPORT

    names = find_images(arguments.inputs)
    with output_folder(arguments.output, arguments.inputs, results=REPORT) as folder:
        predictor = LoupePredictor(cfg, arguments.weights)
        progress = Progress(len(names), quiet=arguments.quiet)
        predictions = with_first(predictor.predict_many(list(names), arguments.workers))
        remove_earlier(folder, REPORT)
        done, failed = write_report(
            predictions,
            folder,
            model_of(predictor),
            title=arguments.title,
            told=lambda entry: progress.add(),
        )
        progress.close()
    if not arguments.quiet:
        print(f"{done} images reported, {failed} not readable: {arguments.output / 'index.html'}")
    return 1 if failed else 0


main = partial(run_command, "report", __doc__, add_arguments, run)
