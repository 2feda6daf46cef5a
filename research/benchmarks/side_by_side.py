#!/usr/bin/env python3
"""Models side by side on the same images: detection, localisation and cost, with paired intervals.

    python -m research.benchmarks.side_by_side --images test/manifest.csv --output FILE \
        loupe=configs/quick/loupe_stage2.yaml,stage2/model_best.pth \
        expert=configs/quick/ifdl_stage1.yaml,ifdl_stage1/model_best.pth

The first model is the one that the others are compared with: of each metric the difference to it
has an interval from the same resampled images for both. Operations are multiply-adds of matrix
products, convolutions and attention, counted by PyTorch for one image (deformable attention, which
it does not know, is left out); seconds are processor time, the median of single images on one
thread; memory is the peak of a process that predicts one batch, above what it had before.
"""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.modeling import build_model
from torch.utils.flop_counter import FlopCounterMode

from loupe import load_config
from loupe.checkpoint import load_into, load_weights
from loupe.data.training.loaders import build_test_loader
from loupe.evaluation import ForgeryEvaluator
from loupe.evaluation.bootstrap import bootstrap
from loupe.evaluation.measures import Columns
from loupe.evaluation.metrics import compute
from research.measuring import machine, parser_of, peak_megabytes, write_results

METRICS = (
    *("image/AUC", "image/Acc", "image/Brier"),
    *("pixel/F1-pooled", "pixel/IoU-pooled", "pixel/F1-image", "pixel/AUC-image"),
    *("pixel/FPR-authentic", "pixel/false-alarm-images"),
)
# Images that are timed, after one that is not.
TIMED = 30


def load_model(config: str, weights: str, images: str) -> tuple[Any, Any]:
    """Configuration and model of one side."""
    options = ["DATASETS.TEST", f"('{images}',)", "MODEL.DEVICE", "cpu", "MODEL.NEW_PARTS", "[]"]
    cfg = load_config(config, [*options, "MODEL.WEIGHTS", weights, "DATALOADER.NUM_WORKERS", "0"])
    model = build_model(cfg).eval()
    load_into(model, load_weights(weights), source=weights)
    return cfg, model


@torch.no_grad()
def measure(config: str, weights: str, images: str) -> tuple[Columns, dict[str, Any]]:
    """The numbers of every image, and what the model costs."""
    torch.set_num_threads(1)
    cfg, model = load_model(config, weights, images)
    evaluator = ForgeryEvaluator("side by side", protocols=(), resamples=0, distributed=False)
    first: dict[str, Any] | None = None
    durations: list[float] = []
    before, peak = peak_megabytes(), 0.0
    for batch in build_test_loader(cfg, images):
        outputs = model(batch)
        peak = peak or peak_megabytes()
        evaluator.process(batch, outputs)
        first = first or batch[0]
        for item in batch:
            if len(durations) <= TIMED:
                start = time.process_time()
                model([item])
                durations.append(time.process_time() - start)
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    # The counter looks for gradients, which there are none of here.
    model.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model([first])
    cost = {
        "parameters": sum(p.numel() for p in parameters),
        "trained": trained,
        "multiply_adds": counter.get_total_flops() // 2,
        "seconds": float(np.median(durations[1:])),
        "peak_megabytes": round(peak - before, 1),
        "batch": cfg.TEST.IMS_PER_BATCH,
    }
    return evaluator.shard().table.columns(), cost


def compared(columns: Columns, reference: Columns | None) -> dict[str, Any]:
    """Each metric with its interval, and its difference to the reference with a paired one."""
    count = len(columns.label)
    values = compute(columns, names=METRICS)
    intervals = bootstrap(lambda w: compute(columns, w, METRICS), count)
    rows: dict[str, Any] = {}
    for name in METRICS:
        rows[name] = {"value": float(values[name][0]), "ci95": list(intervals[name])}
    if reference is None:
        return rows

    def differences(weights: np.ndarray) -> dict[str, np.ndarray]:
        ours, theirs = (compute(side, weights, METRICS) for side in (columns, reference))
        return {name: ours[name] - theirs[name] for name in METRICS}

    paired = bootstrap(differences, count)
    for name, value in differences(np.ones((1, count))).items():
        rows[name] |= {"difference": float(value[0]), "difference_ci95": list(paired[name])}
    return rows


def main() -> None:
    """Measures each model in a process of its own, and writes all numbers."""
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME=CONFIG,WEIGHTS")
    parser.add_argument("--images", required=True, help="list with labels and masks")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"images": Path(arguments.images).name, "models": {}}
    results["machine"] = machine()
    reference = None
    # Memory is the peak of a process, so each model has one of its own.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for word in arguments.models:
            name, _, place = word.partition("=")
            config, _, weights = place.partition(",")
            columns, cost = pool.apply(measure, (config, weights, arguments.images))
            metrics = compared(columns, reference)
            reference = columns if reference is None else reference
            results["models"][name] = {"config": config, "cost": cost, "metrics": metrics}
            print(name, cost, {key: round(row["value"], 3) for key, row in metrics.items()})
            write_results(results, arguments.output)


if __name__ == "__main__":
    main()
