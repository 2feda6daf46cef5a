"""Turns saved predictions into a submission to a challenge, and validates it.

    loupe submit PREDICTIONS --format ddl2025  --images FOLDER --output submission.zip
    loupe submit PREDICTIONS --format ddlx2026 --images FOLDER --output submission

PREDICTIONS: a folder of `loupe predict`, or of another tool that `loupe score` can read and that
gives a score and a map for each image. Maps are not resized: they must have their image's size.

Exit status: 0 = written and valid, 1 = written with faults, 2 = not written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loupe.commands.command_line import add_challenge_options, run_command, whole

if TYPE_CHECKING:
    from loupe.challenge.checks import Sizes
    from loupe.challenge.writers import ChallengePrediction
    from loupe.evaluation.predictions import SavedPrediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("predictions", type=Path, help="folder of saved predictions")
    add_challenge_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="new folder, or .zip")
    parser.add_argument(
        "--threshold",
        type=float,
        help="above it: a pixel (ddl2025) or an image (ddlx2026) is forged (default 0.5)",
    )
    parser.add_argument("--box-threshold", type=float, help="ddlx2026: pixels of boxes, from it on")
    parser.add_argument(
        "--smallest-region",
        type=whole(0),
        metavar="PIXELS",
        help="ddlx2026: of the smallest region that has a box",
    )
    parser.add_argument(
        "--fill",
        type=float,
        metavar="SCORE",
        help="give images without a prediction this score and an empty map, instead of an error",
    )


def predictions_of(
    entries: dict[str, SavedPrediction], sizes: Sizes, fill: float | None
) -> Iterator[ChallengePrediction]:
    """What to submit for each image, in the order of their names, read one by one.

    Raises:
        ValueError: A prediction has no score or no map, or is missing and there is no `fill`.
    """
    import numpy as np

    from loupe.challenge.writers import ChallengePrediction
    from loupe.evaluation.map_files import read_map

    for stem in sorted(sizes):
        entry = entries.get(stem)
        if entry is None or entry.error:
            if fill is None:
                why = entry.error if entry else "there is no prediction"
                raise ValueError(f"{stem}: {why}; predict it, or give --fill SCORE")
            yield ChallengePrediction(stem, fill, np.zeros(sizes[stem], bool))
            continue
        if not isinstance(entry.source, Path):
            raise ValueError(f"{stem}: the prediction has no map; save maps")
        saved = read_map(entry.source)
        score = saved.probability if entry.probability is None else entry.probability
        if score is None:
            raise ValueError(f"{stem}: no probability; list it in predictions.csv")
        values = saved.forgery_map
        if values.dtype == np.uint16:
            values = values / np.float32(65535)
        yield ChallengePrediction(stem, score, values)


def by_stem(predictions: list[SavedPrediction]) -> dict[str, SavedPrediction]:
    """Predictions by their image's stem.

    Raises:
        ValueError: Two have one stem.
    """
    from loupe.evaluation.predictions import without_suffix

    entries: dict[str, SavedPrediction] = {}
    for entry in predictions:
        stem = without_suffix(entry.name)[-1]
        if stem in entries:
            names = ["/".join(one.name) for one in (entries[stem], entry)]
            raise ValueError(f"the predictions {names} have one stem; a challenge tells them by it")
        entries[stem] = entry
    return entries


def run(arguments: argparse.Namespace) -> int:
    """Writes and validates."""
    from loupe.challenge.checks import image_sizes, validate
    from loupe.challenge.writers import write_ddl2025, write_ddlx2026
    from loupe.evaluation.predictions import find_predictions

    sizes = image_sizes(arguments.images)
    entries = by_stem(find_predictions(arguments.predictions).entries)
    stream = predictions_of(entries, sizes, arguments.fill)
    names = ["threshold"]
    if arguments.format == "ddlx2026":
        names += ["box_threshold", "smallest_region"]
    given = {name: getattr(arguments, name) for name in names}
    options = {name: value for name, value in given.items() if value is not None}
    write = write_ddl2025 if arguments.format == "ddl2025" else write_ddlx2026
    written = write(stream, arguments.output, **options)
    faults = validate(arguments.output, arguments.format, sizes)
    unused = sorted(entries.keys() - sizes.keys())
    if unused:
        print(f"left out: {len(unused)} predictions of no image, e.g. {unused[:3]}")
    for fault in faults:
        print(fault)
    state = f"{len(faults)} faults" if faults else "valid"
    print(f"{written} images written, {state}: {arguments.output}")
    return 1 if faults else 0


main = partial(run_command, "submit", __doc__, add_arguments, run)
