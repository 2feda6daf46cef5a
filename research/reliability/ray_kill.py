#!/usr/bin/env python3
"""Predicts many images on a local Ray cluster of two workers, one of which is killed in the middle.

Small crops of photographs are predicted twice, by a serial `loupe predict` and by `loupe predict
--engine ray --workers 2`. Once half of the images have rows, kill -9 ends one of the two workers.
Every image must have exactly one row, and all rows must equal the serial run's: verdict, reasons,
views, errors and maps exactly, the probability to six digits. One file is no image.

Example:
    python -m research.reliability.ray_kill FOLDER --images 2000 --side 64
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pyarrow import parquet

from loupe.data.images.decoding import read_image
from loupe.inference import find_images
from research.measuring import machine, parser_of, write_results

_WORKER = "RowWriter"
_TEXT = "no_image.png"


def write_crops(sources: list[str], folder: Path, count: int, side: int) -> None:
    """Crops of `side` x `side` pixels as PNG, drawn from the sources in turn; one file is text."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count - 1):
        image = read_image(sources[number % len(sources)])
        top, left = (int(rng.integers(0, max(1, length - side))) for length in image.shape[:2])
        crop = np.ascontiguousarray(image[top : top + side, left : left + side, ::-1])
        cv2.imwrite(str(folder / f"{number:05d}.png"), crop)
    (folder / _TEXT).write_text("this is text")


def command_of(images: Path, output: Path, *options: str) -> list[str]:
    """A `loupe predict`."""
    words = [sys.executable, "-W", "ignore", "-m", "loupe", "predict", str(images)]
    return [*words, "--output", str(output), "--no-overlays", "--quiet", *options]


def workers_below(process: int) -> list[int]:
    """Processes of Ray's workers that predict, among all descendants of a process."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:  # It ended meanwhile.
            continue
    found = []
    for number in parents:
        above = number
        while above in parents and above != process:
            above = parents[above]
        try:
            words = Path(f"/proc/{number}/cmdline").read_bytes()
        except OSError:
            continue
        if above == process and _WORKER.encode() in words:
            found.append(number)
    return sorted(found)


def predict_on_ray(images: Path, output: Path, half: int) -> dict[str, Any]:
    """Runs it, and kills a worker once `half` of the images have rows."""
    start = time.monotonic()
    run = subprocess.Popen(command_of(images, output, "--engine", "ray", "--workers", "2"))
    told: dict[str, Any] = {"killed after images": 0, "workers before": 0}
    while run.poll() is None:
        time.sleep(0.5)
        if told["killed after images"]:
            continue
        rows = sum(parquet.read_metadata(f).num_rows for f in (output / "rows").glob("*.parquet"))
        workers = workers_below(run.pid)
        if rows >= half and len(workers) == 2:
            os.kill(workers[0], signal.SIGKILL)
            told |= {"killed after images": rows, "workers before": len(workers)}
    return told | {"exit status": run.returncode, "seconds": round(time.monotonic() - start, 1)}


def differing(serial: Path, parallel: Path) -> dict[str, int]:
    """Counts rows that are missing, doubled or not equal to the serial run's."""
    tables = [parquet.read_table(file) for file in sorted((parallel / "rows").glob("*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    by_file = {row["file"]: row for row in rows}
    with (serial / "predictions.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    with (parallel / "predictions.csv").open(newline="") as file:
        joined = {row["file"]: row for row in csv.DictReader(file)}
    unequal_maps = 0
    for row in expected:
        content = by_file[row["file"]]["map"] if row["file"] in by_file else None
        picture = serial / "maps" / f"{Path(row['file']).stem}.png"
        if row["error"] or content is None:
            unequal_maps += bool(content) == bool(row["error"])
            continue
        own = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        unequal_maps += not np.array_equal(own, cv2.imread(str(picture), cv2.IMREAD_UNCHANGED))
    return {
        "rows": len(rows),
        "images with more than one row": len(rows) - len(by_file),
        "images without a row": sum(row["file"] not in by_file for row in expected),
        "rows unequal to the serial run": sum(joined.get(row["file"]) != row for row in expected),
        "maps unequal to the serial run": unequal_maps,
        "images with an error": sum(bool(row["error"]) for row in rows),
    }


def main(words: list[str] | None = None) -> int:
    """Prints and writes what came of it; the exit status is 1 if a row is missing or differs."""
    parser = parser_of(__doc__)
    parser.add_argument("sources", nargs="+", help="photographs, or folders of them")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=64)
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as place:
        images = Path(place) / "images"
        write_crops(list(find_images(arguments.sources)), images, arguments.images, arguments.side)
        start = time.monotonic()
        status = subprocess.run(command_of(images, Path(place) / "serial"), check=False).returncode
        serial = {"exit status": status, "seconds": round(time.monotonic() - start, 1)}
        ray = predict_on_ray(images, Path(place) / "ray", arguments.images // 2)
        found = differing(Path(place) / "serial", Path(place) / "ray")
    told = {
        "images": arguments.images, "side": arguments.side, "serial run": serial, "ray run": ray,
        "found": found, "versions": {name: version(name) for name in ("ray", "pyarrow", "torch")},
    }  # fmt: skip
    for name, value in told.items():
        print(name, value)
    write_results(machine() | told, arguments.output)
    wrong = [value for name, value in found.items() if name not in ("rows", "images with an error")]
    complete = found["rows"] == arguments.images and found["images with an error"] == 1
    as_said = serial["exit status"] == ray["exit status"] == 1  # One file is no image.
    return int(any(wrong) or not (complete and as_said and ray["killed after images"]))


if __name__ == "__main__":
    raise SystemExit(main())
