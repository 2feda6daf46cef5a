"""Measures a model on labelled data sets: the same as `loupe train --eval-only`.

    loupe evaluate test.csv --config-file FILE --weights FILE --output DIR
    loupe evaluate casia_v1 columbia --output DIR                  # the small Loupe

INPUT: a name, folder or list with labels and masks, as in DATASETS.TEST. Writes
DIR/inference/<data set>.json, every metric with its 95% interval, and the log. What each number
means is in docs/metrics.md. An image that cannot be used is counted and named; it ends nothing, and
the exit status is 1. Where a mask has another size than its image, INPUT.MASK_SIZE_MISMATCH says
what happens: resize (the default) warns, skip counts the image, strict ends the run. A data set
without any label that can be used is an error.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from typing import Any

from loupe.commands.command_line import (
    DEFAULT_CONFIG,
    add_config_options,
    read_config,
    run_command,
)
from loupe.commands.train import (
    NEEDS_TRUTH,
    add_process_options,
    is_first,
    read_lists,
    start,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="data set with labels")
    parser.add_argument("--output", required=True, help="folder to write to")
    add_process_options(parser)
    add_config_options(parser, DEFAULT_CONFIG)


def run(arguments: argparse.Namespace) -> int:
    """Evaluates."""
    from loupe.inference import output_folder

    places = ["DATASETS.TEST", repr(tuple(arguments.inputs)), "OUTPUT_DIR", arguments.output]
    if arguments.weights:
        places += ["MODEL.WEIGHTS", arguments.weights]
    arguments.opts = [*places, *arguments.opts]
    arguments.eval_only, arguments.resume = True, False
    cfg = read_config(arguments)  # A mistake in it is told once, before any process starts.
    if not is_first(arguments):
        start(arguments)
        return 0
    with output_folder(arguments.output, arguments.inputs) as folder:
        read_lists(cfg, arguments.inputs, with_labels=True)
        begin = time.time()
        start(arguments)
        reports = (folder / "inference").glob("*.json")
        written = [path for path in reports if path.stat().st_mtime >= begin]
    return 1 if sum(left_out(json.loads(path.read_text())) for path in written) else 0


def left_out(report: Any) -> int:
    """How many images a report in DIR/inference had to leave out.

    Raises:
        ValueError: They are all that had a label.
    """
    if not isinstance(report, dict):  # The texts of an explainer, which lie beside its report.
        return 0
    if "counts" not in report:
        return len(report.get("errors", ()))
    counts = report["counts"]
    if not counts["images"]:
        raise ValueError(
            f"{report['dataset']}: no image with a label could be read "
            f"({counts['unreadable']} unreadable); {NEEDS_TRUTH}"
        )
    return counts["unreadable"]


main = partial(run_command, "evaluate", __doc__, add_arguments, run)
