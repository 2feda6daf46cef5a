"""Reading what `evaluate.py` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loupe.evaluation.measures import Columns
from research.experiments.intervals import Pair


class Measured(NamedTuple):
    """One evaluation: the images, their numbers, and what was done."""

    image_ids: list[str]
    columns: Columns
    about: dict[str, Any]


def read_measured(path: Path) -> Measured:
    """Reads one evaluation.

    Raises:
        ValueError: it was written by a version with other numbers; names the file.
    """
    with np.load(path) as content:
        if tuple(content["fields"]) != Columns._fields:
            raise ValueError(f"{path}: written by another version of Loupe; delete and run again")
        return Measured(
            content["image_ids"].tolist(),
            Columns(*content["columns"]),
            json.loads(str(content["about"])),
        )


def pair_of(before: Path, after: Path) -> Pair:
    """Two evaluations of the same images.

    Raises:
        ValueError: the images differ.
    """
    first, second = read_measured(before), read_measured(after)
    if first.image_ids != second.image_ids:
        raise ValueError(f"{before} and {after} are of different images")
    return Pair(first.columns, second.columns)
