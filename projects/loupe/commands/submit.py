"""Turns saved predictions into a submission to a challenge, and validates it.

    tools/write_submission.py PREDICTIONS --format ddl2025  --images FOLDER --output submission.zip
    tools/write_submission.py PREDICTIONS --format ddlx2026 --images FOLDER --output submission

PREDICTIONS: a folder of tools/predict.py, or of another tool that tools/score.py can read and that
gives a score and a map for each image. Maps are not resized: they must have their image's size.

Exit status: 0 = written and valid, 1 = written with faults, 2 = not written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from loupe.challenge.checks import Sizes, image_sizes, validate
from loupe.challenge.writers import (
    BOX_THRESHOLD,
    FORMATS,
    SMALLEST_REGION,
    THRESHOLD,
    ChallengeAnswer,
    write_ddl2025,
    write_ddlx2026,
)
from loupe.evaluation.map_files import read_map
from loupe.evaluation.predictions import SavedPrediction, find_predictions, without_suffix


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("predictions", type=Path, help="folder of saved predictions")
    parser.add_argument("--format", choices=FORMATS, required=True, help="which challenge")
    parser.add_argument("--images", type=Path, required=True, help="the challenge's images")
    parser.add_argument("--output", type=Path, required=True, help="new folder, or .zip")
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        help=f"above it: a pixel (ddl2025) or an image (ddlx2026) is forged (default {THRESHOLD})",
    )
    parser.add_argument(
        "--box-threshold",
        type=float,
        default=BOX_THRESHOLD,
        help=f"ddlx2026: pixels of boxes, from it on (default {BOX_THRESHOLD})",
    )
    parser.add_argument(
        "--smallest-region",
        type=int,
        default=SMALLEST_REGION,
        help=f"ddlx2026: pixels of the smallest region that has a box (default {SMALLEST_REGION})",
    )
    parser.add_argument(
        "--fill",
        type=float,
        metavar="SCORE",
        help="answer images without a prediction with this score and an empty map, not an error",
    )
    return parser.parse_args(words)


def answers(
    entries: dict[str, SavedPrediction], sizes: Sizes, fill: float | None
) -> Iterator[ChallengeAnswer]:
    """The answer for each image, in the order of their names, read one by one.

    Raises:
        ValueError: a prediction has no score or no map, or is missing and there is no `fill`.
    """
    for stem in sorted(sizes):
        entry = entries.get(stem)
        if entry is None or entry.error:
            if fill is None:
                why = entry.error if entry else "there is no prediction"
                raise ValueError(f"{stem}: {why}; predict it, or give --fill SCORE")
            yield ChallengeAnswer(stem, fill, np.zeros(sizes[stem], bool))
            continue
        if not isinstance(entry.source, Path):
            raise ValueError(f"{stem}: the prediction has no map; save maps")
        saved = read_map(entry.source)
        score = saved.score if entry.score is None else entry.score
        if score is None:
            raise ValueError(f"{stem}: the prediction has no score; list it in predictions.csv")
        values = saved.forgery_map
        if values.dtype == np.uint16:
            values = values / np.float32(65535)
        yield ChallengeAnswer(stem, score, values)


def by_stem(predictions: list[SavedPrediction]) -> dict[str, SavedPrediction]:
    """Predictions by their image's stem.

    Raises:
        ValueError: two have one stem.
    """
    entries: dict[str, SavedPrediction] = {}
    for entry in predictions:
        stem = without_suffix(entry.name)[-1]
        if stem in entries:
            names = ["/".join(one.name) for one in (entries[stem], entry)]
            raise ValueError(f"the predictions {names} have one stem; a challenge tells them by it")
        entries[stem] = entry
    return entries


def main(words: list[str] | None = None) -> int:
    """Writes and validates; returns the exit status."""
    arguments = parse_arguments(words)
    try:
        sizes = image_sizes(arguments.images)
        entries = by_stem(find_predictions(arguments.predictions).entries)
        stream = answers(entries, sizes, arguments.fill)
        if arguments.format == "ddl2025":
            written = write_ddl2025(stream, arguments.output, threshold=arguments.threshold)
        else:
            written = write_ddlx2026(
                stream,
                arguments.output,
                threshold=arguments.threshold,
                box_threshold=arguments.box_threshold,
                smallest_region=arguments.smallest_region,
            )
        faults = validate(arguments.output, arguments.format, sizes)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    unused = sorted(entries.keys() - sizes.keys())
    if unused:
        print(f"left out: {len(unused)} predictions of no image, e.g. {unused[:3]}")
    for fault in faults:
        print(fault)
    state = f"{len(faults)} faults" if faults else "valid"
    print(f"{written} answers written, {state}: {arguments.output}")
    return 1 if faults else 0
