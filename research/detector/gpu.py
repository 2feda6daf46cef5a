"""The whole recipe of the shipped weights on one GPU, in a given number of seconds.

    python -m research.detector.gpu --packed packed --seconds 560 --output $OUT

`packed` is a folder of datasets/pack_photographs.py (below 50 MB). Packs the pool, measures how
long an optimiser step takes, then trains the encoder, stage 1 and stage 2 in three quarters, an
eighth and an eighth of the time left. A second call with the same output goes on where the first
one stopped: finished parts are passed over, an interrupted one resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SHARES = {"pretrain_tiny_views": 0.75, "loupe_tiny_stage1": 0.125, "loupe_tiny_stage2": 0.125}
TRIAL_STEPS = 40
# Evaluation, checkpoints and start of a part, in seconds.
OVERHEAD = 20.0
# A batch of a GPU is so many times as large as one of the configuration.
LARGER = 8


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=560.0)
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings of all parts")
    return parser.parse_intermixed_args(words)


def group_settings(config: Path) -> tuple[list[int], list[str]]:
    """Sizes of the batches of a GPU, and the training sets, without those of missing lists."""
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    sizes = [LARGER * size for size in content["DATALOADER"]["GROUP_SIZES"]]
    return sizes, content["DATASETS"]["TRAIN"]


def command(part: str, arguments: argparse.Namespace, steps: int, output: Path) -> list[str]:
    """The call that trains a part for so many steps."""
    config = ROOT / "configs" / f"{part}.yaml"
    sizes, sets = group_settings(config)
    shares = yaml.safe_load(config.read_text(encoding="utf-8"))["DATALOADER"]["GROUP_SHARES"]
    pool = arguments.output / "pool"
    # A packed folder has neither MISD's photographs nor real forgeries: sets that need their lists
    # are left out.
    listed = ("output/list/", "output/real/")
    kept = [i for i, name in enumerate(sets) if not any(folder in name for folder in listed)]
    names = [sets[number].replace("output/pool", str(pool)) for number in kept]
    folder = arguments.output
    start = {
        "pretrain_tiny_views": [
            "MODEL.PERCEPTION_ENCODER.WEIGHTS",
            "loupe://loupe_tiny_views.safetensors",
        ],
        "loupe_tiny_stage1": ["MODEL.WEIGHTS", f"{folder}/pretrain_tiny_views/model_final_ema.pth"],
        "loupe_tiny_stage2": ["MODEL.WEIGHTS", f"{folder}/start2.safetensors"],
    }[part]
    return [
        *(sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", str(config)),
        *("--resume", "DATASETS.TRAIN", str(names), "DATASETS.TEST", "()"),
        *("DATALOADER.GROUP_SIZES", str([sizes[number] for number in kept])),
        *("DATALOADER.GROUP_SHARES", str([shares[number] for number in kept])),
        *("DATALOADER.NUM_WORKERS", str(arguments.workers)),
        *("SOLVER.MAX_ITER", str(steps), "SOLVER.CHECKPOINT_PERIOD", str(max(50, steps // 10))),
        *("OUTPUT_DIR", str(output), *start, *arguments.opts),
    ]


def seconds_of(words: list[str]) -> float:
    """Runs a command; how long it took."""
    start = time.perf_counter()
    subprocess.run(words, check=True, cwd=ROOT)
    return time.perf_counter() - start


def main(words: list[str] | None = None) -> None:
    """Trains all parts."""
    arguments = parse_arguments(words)
    began = time.perf_counter()
    arguments.output.mkdir(parents=True, exist_ok=True)
    pool = arguments.output / "pool"
    if not (pool / "tables.json").is_file():
        script = str(ROOT / "datasets" / "photograph_pool.py")
        listed = str(arguments.packed / "photographs.csv")
        subprocess.run([sys.executable, script, listed, "--output", str(pool)], check=True)
    plan_file = arguments.output / "plan.json"
    plan = json.loads(plan_file.read_text()) if plan_file.is_file() else {}
    for part, share in SHARES.items():
        folder = arguments.output / part
        if (folder / "model_final_ema.pth").is_file():
            continue
        if part == "loupe_tiny_stage2":
            _graft(arguments.output)
        if part not in plan:
            trials = [
                seconds_of(command(part, arguments, steps, arguments.output / f"trial_{steps}"))
                for steps in (2, TRIAL_STEPS)
            ]
            per_step = max(1e-3, (trials[1] - trials[0]) / (TRIAL_STEPS - 2))
            left = sum(value for name, value in SHARES.items() if name not in plan)
            remaining = arguments.seconds - (time.perf_counter() - began)
            plan[part] = max(50, int((remaining * share / left - OVERHEAD) / per_step))
            plan_file.write_text(json.dumps(plan))
            for steps in (2, TRIAL_STEPS):
                subprocess.run(["rm", "-r", str(arguments.output / f"trial_{steps}")], check=True)
        seconds_of(command(part, arguments, plan[part], folder))
    _write_curve(arguments.output)


def _graft(output: Path) -> None:
    words = [
        f"{output}/loupe_tiny_stage1/model_final_ema.pth",
        "loupe://loupe_tiny_views.safetensors",
    ]
    module = [sys.executable, "-m", "research.detector.graft"]
    subprocess.run([*module, *words, f"{output}/start2.safetensors"], check=True, cwd=ROOT)


def _write_curve(output: Path) -> None:
    """The losses of all parts, as curve.csv."""
    with (output / "curve.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["part", "step", "loss"])
        for part in SHARES:
            for line in (output / part / "metrics.json").read_text().splitlines():
                row = json.loads(line)
                table.writerow([part, row["iteration"], row.get("total_loss", "")])


if __name__ == "__main__":
    main()
