#!/usr/bin/env python3
"""Seeds and ablations of the quick expert beside quick Loupe, cheap enough for a busy machine.

    python -m research.benchmarks.expert_arms --folder output/expert_arms --seeds 2 3 --output FILE

All train on one list of synthetic images, the same for all, without augmentation: so the features
of the frozen encoder are computed once (`MODEL.FEATURE_CACHE`), and shared by arms and seeds. Arms
that train the encoder or its adapters run it in each step. Loupe has half of the steps in each of
its two stages. What is there is not done again. Values are means over the seeds; intervals as in
`side_by_side`. The 400 test images are of other photographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loupe.commands import synthesize
from loupe.config import load_config
from loupe.evaluation.measures import Columns
from loupe.trainer import LoupeTrainer
from research.benchmarks.side_by_side import compared, measure
from research.measuring import machine, parser_of, write_results

CONFIGS = Path(__file__).parents[2] / "configs"
# Stages that are trained one after the other; the last is evaluated.
ARMS: dict[str, tuple[str, ...]] = {
    "loupe": ("quick/loupe_stage1", "quick/loupe_stage2"),
    "expert": ("quick/ifdl_stage1",),
    "prompt tokens": ("ablations/ifdl_prompt_tokens",),
    "tower trained": ("ablations/ifdl_tower_trained",),
    "lora 4": ("ablations/ifdl_lora_4",),
    "lora 16": ("ablations/ifdl_lora_16",),
}
# Evaluated with the weights of the plain expert.
GATE = "ablations/ifdl_gate_class"


def train(stages: Sequence[str], seed: int, steps: int, data: str, folder: Path) -> str:
    """Trains what is missing; returns the last weights."""
    weights = ""
    for stage in stages:
        place = folder / f"{Path(stage).stem}_seed{seed}_steps{steps}"
        options = ["OUTPUT_DIR", str(place), "SEED", str(seed), "MODEL.DEVICE", "cpu"]
        options += ["SOLVER.MAX_ITER", str(steps // len(stages)), "DATALOADER.NUM_WORKERS", "0"]
        options += ["DATASETS.TRAIN", f"('{data}',)", "DATASETS.TEST", "()"]
        options += ["TEST.EVAL_PERIOD", "0", "TEST.BEST_METRIC", "", "TEST.EXPECTED_RESULTS", "[]"]
        options += ["INPUT.AUGMENTATION.FLIP", "0.0", "MODEL.WEIGHTS", weights]
        config = CONFIGS / f"{stage}.yaml"
        if "backbone" in load_config(config).MODEL.FREEZE:
            options += ["MODEL.FEATURE_CACHE.FOLDER", str(folder / "features")]
        weights = str(place / "model_final.pth")
        if not Path(weights).exists():
            trainer = LoupeTrainer(load_config(config, options))
            trainer.resume_or_load(resume=True)
            trainer.train()
    return weights


def evaluated(stage: str, weights: str, images: str) -> Columns:
    """The numbers of every test image, kept beside the weights."""
    path = Path(weights).with_name(f"columns_{Path(stage).stem}.npy")
    if not path.exists():
        columns, _ = measure(str(CONFIGS / f"{stage}.yaml"), weights, images)
        np.save(path, np.stack(columns))
    return Columns(*np.load(path))


def main() -> None:
    """Trains and evaluates arm by arm, and writes the table after each."""
    parser = parser_of(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of data and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--images", type=int, default=2000, help="to train on")
    parser.add_argument("--steps", type=int, default=600, help="of 16 images, of each arm")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = arguments.folder / f"data{arguments.images}"
    if not (data / "test" / "manifest.csv").exists():
        counts = ["--train", str(arguments.images), "--valid", "0", "--test", "400"]
        synthesize.main(["--output", str(data), *counts, "--size", "128", "--difficulty", "60"])
    training, test = (str(data / split / "manifest.csv") for split in ("train", "test"))
    settings = {name: getattr(arguments, name) for name in ("seeds", "images", "steps")}
    results: dict[str, Any] = {"machine": machine(), **settings, "arms": {}}
    reference = None
    for name in arguments.arms:
        runs = [
            train(ARMS[name], seed, arguments.steps, training, arguments.folder)
            for seed in arguments.seeds
        ]
        rows = {name: ARMS[name][-1]} | ({"gate class": GATE} if name == "expert" else {})
        for row, stage in rows.items():
            seeds = [evaluated(stage, weights, test) for weights in runs]
            results["arms"][row] = compared(seeds, reference)
            reference = reference or seeds
            means = {key: round(one["value"], 3) for key, one in results["arms"][row].items()}
            print(row, means, flush=True)
            write_results(results, arguments.output)


if __name__ == "__main__":
    main()
