"""A local Ray cluster: a worker is killed in the middle, and every image has one row."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs loupe[ray]")

from loupe.inference.engines_ray import RayPlan, all_rows, done_files, predict_on_cluster  # noqa: E402

SECONDS = 0.05


class Made(NamedTuple):
    score: float
    verdict: str = "authentic"
    reasons: tuple[str, ...] = ()
    views: tuple[str, ...] = ("whole image at its own scale",)
    forgery_map: np.ndarray = np.zeros((2, 3), np.float32)
    class_name: str = ""
    class_probabilities: Mapping[str, float] = MappingProxyType({})


class Found(NamedTuple):
    file: str
    prediction: Made | None
    error: str = ""
    warnings: tuple[str, ...] = ()


class NumberPredictor:
    """Takes the number in a file's name for its score; leaves its process' id where told."""

    def __init__(self, folder: Path) -> None:
        (folder / str(os.getpid())).touch()

    def predict_many(self, files: Sequence[str]) -> Iterator[Found]:
        for file in files:
            time.sleep(SECONDS)
            number = int(Path(file).stem)
            bad = number % 10 == 7
            yield Found(file, None, f"{file}: damaged") if bad else Found(file, Made(number / 1000))


class NumberBuild(NamedTuple):
    folder: Path

    def __call__(self) -> NumberPredictor:
        return NumberPredictor(self.folder)


def kill_one(folder: Path, rows: Path, killed: list[int]) -> None:
    """Kills a worker once some batches are done."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if len(list(rows.glob("*.parquet"))) >= 3:
            killed.append(int(min(folder.iterdir()).name))
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.02)


def test_a_killed_worker_costs_no_image_and_doubles_none(tmp_path: Path):
    workers, output = tmp_path / "workers", tmp_path / "output"
    workers.mkdir()
    files = [f"{number:04d}.png" for number in range(160)]
    plan, build = RayPlan(workers=2, batch=8, maps=True), NumberBuild(workers)
    killed: list[int] = []
    killer = threading.Thread(target=kill_one, args=(workers, output / "rows", killed))
    killer.start()
    predict_on_cluster(build, files, output, plan)
    killer.join()
    assert len(killed) == 1
    assert len(list(workers.iterdir())) >= 3
    rows = list(all_rows(output))
    assert [row["file"] for row in rows] == files
    assert [row["error"] != "" for row in rows] == [n % 10 == 7 for n in range(160)]
    assert [row["probability"] for row in rows if not row["error"]] == [
        n / 1000 for n in range(160) if n % 10 != 7
    ]
    # Going on: what has a row is left alone.
    before = {path: path.stat().st_mtime_ns for path in (output / "rows").iterdir()}
    predict_on_cluster(build, files, output, plan)
    assert {path: path.stat().st_mtime_ns for path in (output / "rows").iterdir()} == before
    assert done_files(output) == set(files)
