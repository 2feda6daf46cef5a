"""Scores the saved maps of any detector under every protocol, side by side.

    loupe score PREDICTIONS DATASET --output DIR

PREDICTIONS: a folder: what `loupe predict` writes, PNG, .npy, TruFor .npz, IMDL-BenCo pred/,
a challenge folder (predictions.txt and masks/), or COCO results. DATASET: a manifest, a folder in a
known format, or a catalogue name. Writes scores.json, scores.csv and scores.md into DIR; what each
number means is said there and in docs/metrics.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loupe.commands.command_line import positive, run_command, some_of, whole
from loupe.threads import usable_cores
from loupe.writing import locked_folder, write_json, write_text

if TYPE_CHECKING:
    from loupe.evaluation.scoring import ScoredSet
    from loupe.structures import GroundTruth


def read_truth(
    item: dict[str, Any], shape: tuple[int, int] | None, mask_size: str = "strict"
) -> GroundTruth | None:
    """The truth about a listed image; None where it has no label.

    Args:
        item: dataset dict.
        shape: the map's (H, W); a mask of that size needs no look at its image.
        mask_size: "strict" or "resize", for a mask of another size than its image.
    """
    import numpy as np

    from loupe.data.images.masks import read_image_and_mask, read_mask
    from loupe.structures import GroundTruth

    label = item.get("label")
    if label is None:
        return None
    path, rule = item.get("mask_file_name"), item.get("mask_rule", "")
    mask = None
    if label and item.get("wholly_forged"):
        mask = np.ones(read_image_and_mask(item["file_name"], None)[0].shape[:2], bool)
    elif label and path is not None and shape is not None:
        values = read_mask(path, rule)
        if values.shape != shape:
            turned = read_image_and_mask(item["file_name"], path, mask_size, rule)[1]
            assert turned is not None  # There is a path.
            values = turned
        mask = values >= 0.5
    return GroundTruth(int(label), mask, item.get("technique", ""), item.get("source", ""))


def _temperature(text: str) -> float:
    """A number, or the number in a calibration.json."""
    path = Path(text)
    try:
        value = json.loads(path.read_text())["temperature"] if path.is_file() else text
        number = float(value)
    except (ValueError, TypeError, KeyError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number, and no calibration.json with a temperature"
        ) from None
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"the temperature is {number}; it must be above 0")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("predictions", type=Path, help="folder of saved predictions")
    parser.add_argument("dataset", help="manifest, folder in a known format, or catalogue name")
    parser.add_argument("--output", type=Path, required=True, help="folder for scores.*")
    parser.add_argument(
        "--size", choices=("strict", "resize"), default="strict", help="maps of another size"
    )
    parser.add_argument(
        "--mask-size", choices=("strict", "resize"), default="strict", help="masks of another size"
    )
    parser.add_argument(
        "--faults",
        choices=("count", "error"),
        default="count",
        help="images without a usable prediction or mask: count as unreadable, or stop",
    )
    parser.add_argument(
        "--map-score",
        choices=("none", "max", "mean"),
        default="none",
        help="image score from the map, for detectors that give none",
    )
    parser.add_argument(
        "--protocols",
        type=some_of("loupe.evaluation.measures", "PROTOCOLS"),
        metavar="NAME,...",
        help="of docs/metrics.md; default: all",
    )
    parser.add_argument(
        "--benco-size", type=whole(0), help="network size of benco/* (default 512); 0 = own size"
    )
    parser.add_argument("--resamples", type=whole(0), default=1000, help="of the bootstrap")
    parser.add_argument("--processes", type=positive, default=usable_cores())
    parser.add_argument(
        "--temperature", type=_temperature, default=1.0, help="number or calibration.json"
    )
    parser.add_argument(
        "--fit-temperature",
        action="store_true",
        help="write calibration.json fitted on this (validation) set",
    )


def write_calibration(scored: ScoredSet, folder: Path) -> float:
    """Fits a temperature to the set's scores and writes it; returns it."""
    import numpy as np

    from loupe.evaluation.calibration import fit_temperature, negative_log_likelihood, scale_scores

    known = ~np.isnan(scored.scores)
    scores, labels = scored.scores[known], scored.labels[known]
    temperature = fit_temperature(scores, labels)
    content = {
        "temperature": temperature,
        "images": len(scores),
        "negative_log_likelihood": negative_log_likelihood(scores, labels),
        "negative_log_likelihood_calibrated": negative_log_likelihood(
            scale_scores(scores, temperature), labels
        ),
    }
    write_json(folder / "calibration.json", content)
    return temperature


def write_reports(scored: ScoredSet, arguments: argparse.Namespace, kind: str) -> None:
    """Writes scores.json, scores.csv and scores.md."""
    from loupe.evaluation.report import csv_table, markdown_report

    content = scored.results.as_json() | {
        "predictions": {"folder": str(arguments.predictions), "kind": kind},
        "dataset": arguments.dataset,
        "options": {
            "size": arguments.size,
            "mask-size": arguments.mask_size,
            "faults": arguments.faults,
            "map-score": arguments.map_score,
            "benco-size": arguments.benco_size,
            "temperature": arguments.temperature,
            "resamples": arguments.resamples,
        },
        "unused_predictions": scored.unused,
    }
    title = f"Scores of {arguments.predictions.name} on {Path(arguments.dataset).name}"
    folder = arguments.output
    write_json(folder / "scores.json", content)
    write_text(folder / "scores.csv", csv_table(scored.results))
    write_text(folder / "scores.md", markdown_report(scored.results, title))


def run(arguments: argparse.Namespace) -> int:
    """Scores, prints the table, writes the reports."""
    from tqdm import tqdm

    from loupe.data.sources.catalog import load_dataset
    from loupe.evaluation.evaluator import ForgeryEvaluator
    from loupe.evaluation.measures import BENCO_SIZE, PROTOCOLS
    from loupe.evaluation.predictions import find_predictions
    from loupe.evaluation.report import text_table
    from loupe.evaluation.scoring import ScoringOptions, score_predictions

    if arguments.benco_size is None:
        arguments.benco_size = BENCO_SIZE
    with locked_folder(arguments.output, "--output"):
        items = load_dataset(arguments.dataset)
        predictions = find_predictions(arguments.predictions)
        evaluator = ForgeryEvaluator(
            arguments.dataset,
            protocols=tuple(PROTOCOLS if arguments.protocols is None else arguments.protocols),
            benco_size=arguments.benco_size or None,
            resamples=arguments.resamples,
            distributed=False,
        )
        options = ScoringOptions(
            arguments.size, arguments.faults, arguments.map_score, arguments.temperature
        )
        with tqdm(total=len(items), unit="image", disable=not sys.stderr.isatty()) as bar:
            scored = score_predictions(
                items,
                predictions,
                partial(read_truth, mask_size=arguments.mask_size),
                evaluator,
                options=options,
                processes=arguments.processes,
                report=lambda done: bar.update(done - bar.n),
            )
        write_reports(scored, arguments, predictions.kind)
        print(text_table(scored.results))
        if arguments.fit_temperature:
            print(f"temperature: {write_calibration(scored, arguments.output):.4f}")
    if scored.unused:
        print(f"unused predictions: {len(scored.unused)}, e.g. {scored.unused[:3]}")
    if scored.brightest <= 1.5 / 255:
        print("warning: no map exceeds 1/255; if they hold 0 and 1, save 0 and 255")
    return 1 if scored.results.unreadable else 0


main = partial(run_command, "score", __doc__, add_arguments, run)
