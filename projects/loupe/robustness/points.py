"""One level of one degradation: its folder, what was measured, and keeping it for a later run."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from loupe.data.images.degradation import DEGRADATIONS, Level
from loupe.evaluation.measures import PROTOCOLS, ImageMeasures
from loupe.evaluation.metrics import METRICS as ALL_METRICS
from loupe.evaluation.records import RecordTable
from loupe.evaluation.results import Estimate, Results
from loupe.writing import replacing

# The undegraded images: the line that all curves are compared with.
CLEAN = "clean"
# Intervals of areas draw images anew, so they need metrics made of single images' numbers.
METRICS = tuple(name for name, metric in ALL_METRICS.items() if not metric.of_pixels)


class Point(NamedTuple):
    """One level of one axis.

    Attributes:
        axis: name of the degradation, or CLEAN.
        level: of that axis.
        results: all metrics.
        table: the numbers of each image.
    """

    axis: str
    level: float | str
    results: Results
    table: RecordTable


def list_points(axes: Iterable[str]) -> list[tuple[str, Level]]:
    """The clean images, then all levels of the axes."""
    return [(CLEAN, "")] + [(axis, level) for axis in axes for level in DEGRADATIONS[axis].levels]


def point_folder(axis: str, level: Level) -> Path:
    """Where a point's files lie, relative to the folder of all points."""
    return Path(axis) / str(level).replace(", ", "_").replace(" ", "-")


def digest(settings: list[Any], files: Iterable[str | Path]) -> str:
    """Says what numbers depend on: settings, and the size and time of each file."""
    told = list(settings)
    for file in files:
        found = os.stat(file) if os.path.isfile(file) else None
        told.append([str(file), *([found.st_size, found.st_mtime_ns] if found else [])])
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()


def save_point(point: Point, key: str, path: Path) -> None:
    """Writes what a point has gathered, whole or not at all.

    Args:
        point: to keep.
        key: says of what and how it was measured; `load_point` wants the same.
        path: file to write.
    """
    results, table = point.results, point.table
    content = {
        "key": key,
        "axis": point.axis,
        "level": point.level,
        "metrics": {name: metric.as_json() for name, metric in results.metrics.items()},
        "counts": results.counts,
        "unreadable": results.unreadable,
        "images": [table.image_ids, table.techniques, table.sources],
    }
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    with replacing(path) as file:
        np.savez_compressed(file, text=text, numbers=table.matrix())


def load_point(key: str, names: tuple[str, ...], path: Path) -> Point | None:
    """A kept point; None if there is none, it is damaged, of another key, or lacks a metric."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            content, numbers = json.loads(bytes(stored["text"])), stored["numbers"]
        if content["key"] != key or not set(names) <= content["metrics"].keys():
            return None
        table = RecordTable()
        for *image, row in zip(*content["images"], numbers, strict=True):
            table.append(image[0], ImageMeasures(*row), image[1], image[2])
        metrics = {name: _estimate(entry) for name, entry in content["metrics"].items()}
        results = Results(metrics, content["counts"], {}, {}, {}, content["unreadable"], [])
        return Point(content["axis"], content["level"], results, table)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return None


def _estimate(entry: dict[str, Any]) -> Estimate:
    """The estimate that `Estimate.as_json` gave."""
    value = math.nan if entry["value"] is None else entry["value"]
    low, high = entry["ci95"] or (math.nan, math.nan)
    return Estimate(value, low, high, entry["images"], entry.get("reason", ""))


def protocols_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """Peers' protocols that the metrics need."""
    return tuple(name for name in PROTOCOLS if any(one.startswith(f"{name}/") for one in names))
