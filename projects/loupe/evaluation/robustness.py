"""How a detector's scores fall as images get worse: areas under curves, tables, figures.

An axis is one kind of degradation, a point one level of it. Nothing here degrades an image; it
takes what a `ForgeryEvaluator` has gathered at each point.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from loupe.evaluation.bootstrap import bootstrap
from loupe.evaluation.definitions import DEFINITIONS
from loupe.evaluation.measures import PROTOCOLS, ImageMeasures
from loupe.evaluation.metrics import all_metrics
from loupe.evaluation.results import Metric, Results
from loupe.evaluation.table import RecordTable

# The undegraded images: the line that all curves are held against.
CLEAN = "clean"
# Computed from all scores of a set at once; an area's interval needs numbers of single images.
_WITHOUT_AREA = {"pixel/AUC-pooled", "pixel/AP-pooled", "pixel/F1-best-pooled"}
METRICS = tuple(name for name in DEFINITIONS if name not in _WITHOUT_AREA)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as stream:
        text = np.frombuffer(json.dumps(content).encode(), np.uint8)
        np.savez_compressed(stream, text=text, numbers=table.matrix())
    unfinished.replace(path)


def load_point(key: str, names: tuple[str, ...], path: Path) -> Point | None:
    """A kept point; None if there is none, it is damaged, of another key, or lacks a metric."""
    try:
        with np.load(path) as stored:
            content, numbers = json.loads(bytes(stored["text"])), stored["numbers"]
        if content["key"] != key or not set(names) <= content["metrics"].keys():
            return None
        table = RecordTable()
        for *image, row in zip(*content["images"], numbers, strict=True):
            table.append(image[0], ImageMeasures(*row), image[1], image[2])
        metrics = {name: _metric(entry) for name, entry in content["metrics"].items()}
        results = Results(metrics, content["counts"], {}, {}, {}, content["unreadable"], [])
        return Point(content["axis"], content["level"], results, table)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return None


def areas(
    points: list[Point], names: tuple[str, ...], resamples: int, seed: int
) -> dict[str, Metric]:
    """Area under each metric's curve, divided by its width: the curve's mean height.

    The 95% intervals come from drawing images anew, the same ones at all levels; only images that
    were measured at all levels enter.

    Args:
        points: of one axis, in the order of its levels.
        names: metrics.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        By name; NaN where a level does not define the metric.
    """
    common = set.intersection(*(set(point.table.image_ids) for point in points))
    columns = [
        point.table.columns(np.array([name in common for name in point.table.image_ids], bool))
        for point in points
    ]
    positions = np.array(places([point.level for point in points]))
    protocols = protocols_of(names)

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = [all_metrics(one, weights, protocols) for one in columns]
        if len(values) == 1:
            return {name: values[0][name] for name in names}
        curves = {name: np.stack([value[name] for value in values]) for name in names}
        width = positions[-1] - positions[0]
        return {
            name: np.trapezoid(curve, positions, axis=0) / width for name, curve in curves.items()
        }

    values = measure(np.ones((1, len(common))))
    intervals = bootstrap(measure, len(common), resamples=resamples, seed=seed)
    undefined = "a level does not define it"
    return {
        name: Metric(
            float(values[name][0]),
            *intervals[name],
            len(common),
            undefined if math.isnan(values[name][0]) else "",
        )
        for name in names
    }


def places(levels: list[float | str]) -> list[float]:
    """Where levels stand on their axis: at their numbers, or in equal steps if they have names."""
    if all(isinstance(level, int | float) for level in levels):
        return [float(level) for level in levels]
    return [float(index) for index in range(len(levels))]


def _metric(entry: dict[str, Any]) -> Metric:
    """The metric that `Metric.as_json` gave."""
    value = math.nan if entry["value"] is None else entry["value"]
    low, high = entry["ci95"] or (math.nan, math.nan)
    return Metric(value, low, high, entry["images"], entry.get("reason", ""))


def protocols_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """Peers' protocols that the metrics need."""
    return tuple(name for name in PROTOCOLS if any(one.startswith(f"{name}/") for one in names))


def write_tables(report: dict[str, Any], folder: Path) -> None:
    """Writes robustness.json and robustness.csv."""
    text = json.dumps(report, indent=1, allow_nan=False)
    (folder / "robustness.json").write_text(text + "\n")
    with (folder / "robustness.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        header = ["axis", "level", "metric", "value", "low", "high", "images", "unreadable"]
        writer.writerow(header)
        for axis, curve in {CLEAN: {"points": [report[CLEAN]]}, **report["axes"]}.items():
            points = list(curve["points"])
            if "area" in curve:
                points.append({"level": "area", "metrics": curve["area"], "unreadable": ""})
            for point in points:
                for name, metric in point["metrics"].items():
                    low_high = metric["ci95"] or ["", ""]
                    value = "" if metric["value"] is None else metric["value"]
                    row = [axis, point["level"], name, value, *low_high, metric["images"]]
                    writer.writerow([*row, point["unreadable"]])


def draw(report: dict[str, Any], name: str, path: Path) -> None:
    """One metric's curves, a panel for each axis, with 95% bands and the clean value dashed."""
    axes = report["axes"]
    columns = min(4, len(axes))
    rows = math.ceil(len(axes) / columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    clean = report[CLEAN]["metrics"][name]["value"]
    for panel, (axis, curve) in zip(panels, axes.items(), strict=False):
        metrics = [point["metrics"][name] for point in curve["points"]]
        place = places([point["level"] for point in curve["points"]])
        values = [math.nan if one["value"] is None else one["value"] for one in metrics]
        band = [one["ci95"] or (math.nan, math.nan) for one in metrics]
        panel.fill_between(place, *zip(*band, strict=True), alpha=0.25, linewidth=0)
        panel.plot(place, values, marker="o", markersize=4)
        if clean is not None:
            panel.axhline(clean, color="black", linestyle="--", linewidth=1)
        labels = [str(point["level"]) for point in curve["points"]]
        named = any(isinstance(point["level"], str) for point in curve["points"])
        turned = {"rotation": 20, "ha": "right"} if named else {}
        panel.set_xticks(place, labels, fontsize=8, **turned)
        if place[0] > place[-1]:
            panel.invert_xaxis()  # Mild is left, whichever way the numbers run.
        area = curve["area"][name]["value"]
        panel.set_title(f"{axis}: area {'undefined' if area is None else f'{area:.3f}'}")
        panel.set_xlabel(curve["unit"], fontsize=8)
        panel.grid(alpha=0.3)
    for panel in panels[len(axes) :]:
        panel.set_visible(False)
    figure.suptitle(f"{name} ({report['images']} images; dashed: clean; bands: 95%)")
    figure.savefig(path, dpi=110)


def point_report(point: Point, names: tuple[str, ...]) -> dict[str, Any]:
    """One point for the report."""
    metrics = {name: point.results.metrics[name].as_json() for name in names}
    unreadable = point.results.counts["unreadable"]
    return {"level": point.level, "metrics": metrics, "unreadable": unreadable}
