#!/usr/bin/env python3
"""Optimiser steps of the quick configurations with and without a cache of the encoder's features.

    python -m research.benchmarks.feature_cache --output FILE

Each step is one batch of 16 images of 128 px, forward, backward and AdamW, on one thread; the ways
take turns, step by step. Reading and changing images is not counted: it is the same for all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model

from loupe import load_config
from loupe.data.sources.catalog import load_dataset
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper
from loupe.solver import build_optimizer
from research.measuring import machine, milliseconds, parser_of, take_turns, write_results

CONFIGS = Path(__file__).parents[2] / "configs" / "quick"
STREAM = "synthetic://train?size=128&count=64&difficulty=60"
# Of the cache; None = no cache.
WAYS = {"without": None, "float32": "float32", "float16": "float16"}
STAGES = {"stage 1": "loupe_stage1", "stage 2": "loupe_stage2", "expert": "ifdl_stage1"}
BATCH, ROUNDS = 16, 12


def step_of(config: str, precision: str | None, folder: Path) -> Callable[[], None]:
    """One optimiser step on the next batch."""
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "INPUT.AUGMENTATION.FLIP", "0.0"]
    options += ["DATASETS.TRAIN", "()"]
    if precision:
        options += ["MODEL.FEATURE_CACHE.FOLDER", str(folder / precision)]
        options += ["MODEL.FEATURE_CACHE.PRECISION", precision]
    cfg = load_config(CONFIGS / f"{config}.yaml", options)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    mapper = ForgeryDatasetMapper(cfg, is_train=True)
    items = [mapper(entry) for entry in load_dataset(STREAM)]
    batches = cycle([items[start : start + BATCH] for start in range(0, len(items), BATCH)])
    if precision:
        with torch.no_grad():
            for _ in range(len(items) // BATCH):
                model.encode(model.preprocess(next(batches)))

    def step() -> None:
        optimizer.zero_grad()
        sum(model(next(batches)).values()).backward()
        optimizer.step()

    return step


def main() -> None:
    """Measures each stage, and writes all numbers."""
    arguments = parser_of(__doc__).parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine(), "images": BATCH, "rounds": ROUNDS}
    for stage, config in STAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            ways = {way: step_of(config, kind, Path(folder)) for way, kind in WAYS.items()}
            times = take_turns(ways, ROUNDS)
        row = {way: round(milliseconds(taken), 1) for way, taken in times.items()}
        results[stage] = row
        print(stage, row)
    write_results(results, arguments.output)


if __name__ == "__main__":
    main()
