#!/usr/bin/env python3
"""Models side by side on the same images: detection, localisation and cost, with paired intervals.

    python -m research.benchmarks.side_by_side --images test/manifest.csv --output FILE \
        loupe=configs/quick/loupe_stage2.yaml,stage2/model_best.pth \
        expert=configs/quick/ifdl_stage1.yaml,ifdl_stage1/model_best.pth

NAME=CONFIG,WEIGHTS,WEIGHTS,... is one model trained with several seeds, in one order for all: a
value is then the mean over them.

The first model is the one that the others are compared with: of each metric the difference to it
has an interval from the same resampled images for both (and all seeds), and, of several seeds, one
by Student's t over the seeds' differences. Operations are multiply-adds of matrix
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
from research.experiments.intervals import t_interval
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


def compared(seeds: list[Columns], reference: list[Columns] | None) -> dict[str, Any]:
    """Each metric with its interval, and its difference to the reference with paired ones.

    Args:
        seeds: Numbers of every image, of each training of the model.
        reference: The same of the first model, seed by seed; None = this is the first.

    Raises:
        ValueError: The reference has been trained with another number of seeds.
    """
    if reference is not None and len(reference) != len(seeds):
        raise ValueError(f"{len(seeds)} seeds beside {len(reference)}: give the same to all models")
    images = len(seeds[0].label)
    all_images = np.ones((1, images))

    def means(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = [compute(columns, weights, METRICS) for columns in seeds]
        return {name: np.mean([one[name] for one in found], axis=0) for name in METRICS}

    def by_seed(ours: Columns, theirs: Columns, weights: np.ndarray) -> dict[str, np.ndarray]:
        first, second = (compute(side, weights, METRICS) for side in (ours, theirs))
        return {name: first[name] - second[name] for name in METRICS}

    values, intervals = means(all_images), bootstrap(means, images)
    rows: dict[str, Any] = {}
    for name in METRICS:
        rows[name] = {"value": float(values[name][0]), "ci95": list(intervals[name])}
        if len(seeds) > 1:
            single = [compute(columns, all_images, [name])[name] for columns in seeds]
            rows[name]["by_seed"] = [float(value[0]) for value in single]
    if reference is None:
        return rows
    pairs = list(zip(seeds, reference, strict=True))

    def differences(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = [by_seed(*pair, weights) for pair in pairs]
        return {name: np.mean([one[name] for one in found], axis=0) for name in METRICS}

    paired = bootstrap(differences, images)
    single = [by_seed(*pair, all_images) for pair in pairs]
    for name, value in differences(all_images).items():
        rows[name] |= {"difference": float(value[0]), "difference_ci95": list(paired[name])}
        if len(seeds) > 1:
            over_seeds = t_interval([float(one[name][0]) for one in single])
            rows[name]["difference_t95"] = [over_seeds.low, over_seeds.high]
    return rows


def main() -> None:
    """Measures each model in a process of its own, and writes all numbers."""
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME=CONFIG,WEIGHTS[,WEIGHTS...]")
    parser.add_argument("--images", required=True, help="list with labels and masks")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"images": Path(arguments.images).name, "models": {}}
    results["machine"] = machine()
    reference = None
    # Memory is the peak of a process, so each model has one of its own.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for word in arguments.models:
            name, _, place = word.partition("=")
            config, *weights = place.split(",")
            measured = [pool.apply(measure, (config, one, arguments.images)) for one in weights]
            seeds, cost = [columns for columns, _ in measured], measured[0][1]
            metrics = compared(seeds, reference)
            reference = seeds if reference is None else reference
            results["models"][name] = {"config": config, "cost": cost, "metrics": metrics}
            print(name, cost, {key: round(row["value"], 3) for key, row in metrics.items()})
            write_results(results, arguments.output)


if __name__ == "__main__":
    main()
