"""Predicts and trains for long, and says how much memory that leaves behind.

    python -m research.reliability.leaks [--predictions 2000] [--steps 400] [--output FILE]

The shipped model predicts synthetic images of many sizes, and the tiny model of `kill_resume`
trains. What is measured is the memory that this process has filled: anonymous and shared pages,
also those that were swapped out. Pages of files are left out: the kernel drops them when it likes.
Free memory is given back first, so that only what is still held counts. Growth is the value at the
end less that after a quarter: caches are full by then. Exit status: 0 = each grows by less than
8 MB, 1 = not.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.events import EventStorage

from loupe.config import load_config
from loupe.data.sources.synthetic import make_sample
from loupe.inference import LoupePredictor
from loupe.model_zoo import CONFIGS
from loupe.trainer import LoupeTrainer
from loupe.writing import write_json
from research.measuring import machine, parser_of
from research.reliability.kill_resume import prepare

MOST_MEGABYTES = 8.0
# Sides of the images, in turn.
SIZES = (64, 96, 128, 80, 160, 112)


def own_megabytes() -> float:
    """Memory that this process has filled, without what waits to be collected."""
    gc.collect()
    with suppress(AttributeError):  # A C library without it.
        ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    return sum(int(sizes[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmSwap")) / 1024


def predict(count: int) -> Iterator[int]:
    """Predicts so many images; yields after each."""
    predictor = LoupePredictor(load_config(CONFIGS / "loupe_tiny.yaml"))
    images = [make_sample("test", 0, index, size, 50).image for index, size in enumerate(SIZES)]
    for number in range(count):
        predictor(images[number % len(images)])
        yield number


def train(count: int, folder: Path) -> Iterator[int]:
    """Trains so many steps; yields after each."""
    prepare(folder)
    data = f"('{folder / 'list.csv'}',)"
    options = ["DATASETS.TRAIN", data, "DATASETS.TEST", "()", "TEST.BEST_METRIC", ""]
    options += ["SOLVER.MAX_ITER", str(count), "SOLVER.CHECKPOINT_PERIOD", str(count + 1)]
    cfg = load_config(folder / "config.yaml", [*options, "OUTPUT_DIR", str(folder / "output")])
    trainer = LoupeTrainer(cfg)
    with EventStorage() as storage:
        for number in range(count):
            trainer.iter = number
            trainer.run_step()
            storage.step()
            yield number


def growth(done: Iterator[int], count: int) -> dict[str, Any]:
    """Megabytes after each quarter of a work, and between the first and the last."""
    quarters = [count * part // 4 for part in range(1, 5)]
    marks = [own_megabytes() for number in done if number + 1 in quarters]
    return {"after each quarter": marks, "growth": marks[-1] - marks[0]}


def main(arguments: argparse.Namespace) -> int:
    """Does both, and prints what they leave behind."""
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        works = {
            "predictions": (arguments.predictions, predict(arguments.predictions)),
            "steps": (arguments.steps, train(arguments.steps, Path(name))),
        }
        for work, (count, done) in works.items():
            report[f"{count} {work}"] = found = growth(done, count)
            print(f"{count} {work}: {found['growth']:.1f} MB more at the end", flush=True)
    if arguments.output:
        write_json(arguments.output, report)
    grown = [found["growth"] for found in report.values() if "growth" in found]
    return int(max(grown) > MOST_MEGABYTES)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--predictions", type=int, default=2000, help="images (default 2000)")
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps (default 400)")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(parse_arguments()))
