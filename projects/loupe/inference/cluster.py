"""`loupe predict --engine ray`: from the command line to `loupe.inference.engines_ray`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from loupe.inference import LoupePredictor


@dataclass(frozen=True)
class PredictorBuild:
    """Makes the predictor in each worker.

    Attributes:
        config: The whole configuration, as YAML.
        weights: Its checkpoint; None = MODEL.WEIGHTS.
    """

    config: str
    weights: str | None

    def __call__(self) -> LoupePredictor:
        """The predictor."""
        from loupe.config import load_config
        from loupe.inference import LoupePredictor
        from loupe.writing import write_text

        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "config.yaml"
            write_text(place, self.config)
            return LoupePredictor(load_config(place), self.weights)


def predict_on_ray(arguments: argparse.Namespace, cfg: CfgNode, names: dict[str, str]) -> int:
    """Predicts on a cluster; returns the exit status."""
    from loupe.inference.earlier import (
        PREDICTED,
        RAY_ROWS,
        check_earlier,
        check_resumable,
        has_earlier,
        parts_beside,
        remove_earlier,
    )
    from loupe.inference.engines_ray import RayPlan, all_rows, predict_on_cluster
    from loupe.inference.folders import TABLE
    from loupe.inference.results import COLUMNS
    from loupe.writing import locked_folder, write_csv

    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    plan = RayPlan(
        workers=max(1, arguments.workers),
        graphics=1.0 if on_gpu else 0.0,
        maps=not arguments.no_maps,
        cluster=arguments.cluster or "",
    )
    start = time.monotonic()

    def told(done: int, failed: int) -> None:
        if not arguments.quiet:
            rate = done / (time.monotonic() - start)
            print(f"{done} images, {failed} failed, {rate:.1f} a second", file=sys.stderr)

    with locked_folder(arguments.output, "--output") as folder:
        build = PredictorBuild(cfg.dump(), arguments.weights)
        if arguments.resume:
            check_resumable(folder, RAY_ROWS)
        else:
            places = [folder, *parts_beside(folder, folder)]
            for place in places:
                check_earlier(place, PREDICTED)
            if any(has_earlier(place, PREDICTED) for place in places):
                build()  # A mistake in it is told here, while the earlier results are there.
            for place in places:
                remove_earlier(place, PREDICTED)
        predict_on_cluster(build, list(names), folder, plan, told)
        rows = [row for row in all_rows(folder) if row["file"] in names]
        write_csv(folder / TABLE, COLUMNS, [_cells(row) for row in rows])
    failed = sum(bool(row["error"]) for row in rows)
    print(f"{len(rows) - failed} images predicted, {failed} not readable: {folder}")
    return 1 if failed else 0


def _cells(row: dict[str, Any]) -> list[str]:
    number = row["probability"]
    lists = ("; ".join(row[name] or ()) for name in ("reasons", "views"))
    first = ["" if number is None else f"{number:.6f}", row["error"] or "", row["warning"] or ""]
    classes = (row.get(name) or "" for name in ("class", "class_probabilities"))
    return [row["file"], *first, row["verdict"] or "", *lists, *classes]
