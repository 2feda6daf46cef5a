"""What is told of the points of an axis: the area under their curve, tables, figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from loupe.evaluation.bootstrap import bootstrap
from loupe.evaluation.metrics import compute
from loupe.evaluation.results import Estimate
from loupe.robustness.points import CLEAN, Point
from loupe.writing import write_csv, write_json


def areas(
    points: list[Point], names: tuple[str, ...], resamples: int, seed: int
) -> dict[str, Estimate]:
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

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = [compute(one, weights, names) for one in columns]
        if len(values) == 1:
            return values[0]
        curves = {name: np.stack([value[name] for value in values]) for name in names}
        # The trapezoid rule.
        steps, width = np.diff(positions)[:, None], positions[-1] - positions[0]
        return {
            name: (steps * (curve[1:] + curve[:-1]) / 2).sum(axis=0) / width
            for name, curve in curves.items()
        }

    values = measure(np.ones((1, len(common))))
    intervals = bootstrap(measure, len(common), resamples=resamples, seed=seed)
    undefined = "a level does not define it"
    return {
        name: Estimate(
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


def write_tables(report: dict[str, Any], folder: Path) -> None:
    """Writes robustness.json and robustness.csv."""
    write_json(folder / "robustness.json", report)
    header = ["axis", "level", "metric", "value", "low", "high", "images", "unreadable"]
    write_csv(folder / "robustness.csv", header, _rows(report))


def _rows(report: dict[str, Any]) -> Iterator[list[Any]]:
    for axis, curve in {CLEAN: {"points": [report[CLEAN]]}, **report["axes"]}.items():
        points = list(curve["points"])
        if "area" in curve:
            points.append({"level": "area", "metrics": curve["area"], "unreadable": None})
        for point in points:
            for name, metric in point["metrics"].items():
                low, high = metric["ci95"] or (None, None)
                numbers = [metric["value"], low, high, metric["images"], point["unreadable"]]
                yield [axis, point["level"], name, *numbers]


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
