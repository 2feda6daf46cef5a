"""Says why a model's numbers are what they are, and what to do first.

    loupe diagnose DATASET --config-file FILE --weights FILE --output DIR
    loupe diagnose DATASET --output DIR                            # of the small Loupe

DATASET: a name, folder or list with labels and masks, as in DATASETS.TEST. Writes to the output
folder diagnosis.md and diagnosis.json: is the classifier reliable, are the patch maps (the
pseudo-labels of adaptation) better than the masks, how far does the condition move the masks, where
do errors sit by size and technique, and which known patterns of failure show, each with a remedy.
An image that cannot be used is counted, it ends nothing.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from loupe.commands.command_line import (
    DEFAULT_CONFIG,
    add_config_options,
    read_config,
    run_command,
)
from loupe.writing import write_json, write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("dataset", help="data set with labels")
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    add_config_options(parser, DEFAULT_CONFIG)


def run(arguments: argparse.Namespace) -> int:
    """Examines and writes."""
    cfg = read_config(arguments)
    from loupe.evaluation.diagnosis_report import markdown
    from loupe.evaluation.patterns import find_patterns
    from loupe.inference import LoupePredictor, output_folder
    from loupe.inference.diagnosed import examine

    with output_folder(arguments.output, [arguments.dataset]):
        diagnosis = examine(LoupePredictor(cfg, arguments.weights), arguments.dataset)
        facts = diagnosis.facts()
        patterns = find_patterns(facts)
        report = markdown(facts, patterns, arguments.dataset)
        write_text(arguments.output / "diagnosis.md", report)
        content = {
            "dataset": arguments.dataset,
            "findings": [pattern._asdict() for pattern in patterns],
            "facts": facts,
            "left_out": diagnosis.left_out,
        }
        write_json(arguments.output / "diagnosis.json", content)
    print(report)
    return 1 if diagnosis.left_out else 0


main = partial(run_command, "diagnose", __doc__, add_arguments, run)
