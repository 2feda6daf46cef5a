#!/usr/bin/env python3
"""Measures one trained model in several settings, on several data sets, image by image.

    experiments/evaluate.py PLAN.json

The plan (written by `runs.py`) names configuration, options, weights and evaluations. Each is
written to its `.npz`: the image identifiers, the numbers of every image
(`loupe.evaluation.measures.Columns`), and what it was. One that fails is logged and does not end
the rest; the exit status then is 1.

The same figures come from `tools/train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS FILE`
with the same options, without the numbers of single images.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from loupe.checkpoint import load_into, load_weights
from loupe.config import load_config
from loupe.data.sources.catalog import load_dataset
from loupe.evaluation import ForgeryEvaluator
from loupe.evaluation.measures import Columns
from loupe.trainer import LoupeTrainer
from loupe.trainer.evaluation import evaluate_model
from loupe.trainer.randomness import seed_everything
from loupe.writing import replacing
from research.measuring import parser_of


class Batches(list):
    """A loader's batches, kept, so that settings share the reading."""


def main(plan: dict[str, Any]) -> int:
    """Carries out a plan; returns the number of evaluations that failed."""
    cfg = load_config(plan["config"], plan["options"])
    model = LoupeTrainer.build_model(cfg)
    load_into(model, load_weights(plan["weights"]), source=plan["weights"])
    kept: dict[tuple[str, ...], Batches] = {}
    failed = 0
    for task in plan["evaluations"]:
        try:
            # Adaptation writes beside the numbers, and knows which weights it must not touch.
            places = ["OUTPUT_DIR", str(folder_of(task)), "MODEL.WEIGHTS", plan["weights"]]
            options = [*plan["options"], *task["options"], *places]
            settled = load_config(plan["config"], options)
            key = (task["dataset"], str(task["limit"]), settled.INPUT.dump(), settled.TEST.dump())
            if key not in kept:
                kept.clear()
                kept[key] = read_batches(settled, task["dataset"], task["limit"])
            measure(settled, model, kept[key], task)
        except Exception:  # Whatever it is, the other evaluations do not suffer from it.
            traceback.print_exc()
            failed += 1
    return failed


def folder_of(task: dict[str, Any]) -> Path:
    """Where an adaptation says what it did."""
    return Path(task["output"]).with_suffix("")


def read_batches(cfg: CfgNode, dataset: str, limit: int) -> Batches:
    """All batches of a data set, or of `limit` images of it, always the same ones."""
    name = dataset
    if limit:
        entries = load_dataset(dataset)
        # Drawn: at even distances a set in which labels alternate would give one label only.
        places = np.sort(np.random.default_rng(0).permutation(len(entries))[:limit])
        name = f"{limit} of {dataset}"
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        DatasetCatalog.register(name, lambda: [entries[place] for place in places])
    return Batches(LoupeTrainer.build_test_loader(cfg, name))


def measure(cfg: CfgNode, model: Any, batches: Batches, task: dict[str, Any]) -> None:
    """Evaluates, and writes the images' numbers in one go."""
    evaluator = ForgeryEvaluator(task["dataset"], protocols=(), resamples=0)
    seed_everything(cfg.SEED)
    folder_of(task).mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    evaluate_model(cfg, model.eval(), batches, evaluator)
    seconds = time.perf_counter() - start
    forget_weights(folder_of(task))
    table = evaluator.shard().table
    said = {key: task[key] for key in ("name", "dataset", "options", "limit")}
    with replacing(task["output"]) as file:
        np.savez_compressed(
            file,
            # In the order of the columns, which is that of the identifiers.
            image_ids=np.array(sorted(table.image_ids)),
            columns=np.stack(table.columns()),
            fields=np.array(Columns._fields),
            about=json.dumps(said | {"seconds": round(seconds, 2), "images": len(table)}),
        )
    print(f"{task['name']} on {task['dataset']}: {seconds:.1f} s", flush=True)


def forget_weights(folder: Path) -> None:
    """Deletes adapted weights, which nobody will load; keeps what adaptation says of itself."""
    for path in folder.glob("*.pth"):
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


if __name__ == "__main__":
    parser = parser_of(__doc__, output=False)
    parser.add_argument("plan", type=Path, help="JSON file")
    sys.exit(bool(main(json.loads(parser.parse_args().plan.read_text()))))
