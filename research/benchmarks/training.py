"""Training from files: images per second of one process and of several, and the wait for data.

    python -m research.benchmarks.training LIST.csv --output FILE

Each run is `tools/train_net.py` as a user starts it, on the quick configurations at 336 px, in a
process of its own; runs of one and of several processes take turns, all with the same images a
step. Steps after the first row of `metrics.json` count. The wait is the time a step waits for its
batch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from loupe.trainer.writers import PERIOD
from research.measuring import ROOT, machine, output_of, parser_of, write_results

STAGES = (1, 2)


def train(arguments: argparse.Namespace, stage: int, processes: int) -> dict[str, float]:
    """Medians of one run: seconds of a step and of its wait, images per second."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(ROOT / "projects")}
        purpose = f"stage {stage}, {processes} processes"
        output_of(_command(arguments, stage, processes, folder), purpose, environment)
        lines = (Path(folder) / "metrics.json").read_text().splitlines()
    periods = [row for row in map(json.loads, lines) if row["iteration"] >= PERIOD]
    step = median(row["time"] for row in periods)
    return {
        "step": round(step, 3),
        "wait": round(median(row["data_time"] for row in periods), 4),
        "images_per_second": round(arguments.batch / step, 2),
    }


def _command(arguments: argparse.Namespace, stage: int, processes: int, folder: str) -> list[str]:
    settings = {
        "INPUT.SIZE": arguments.size,
        "DATASETS.TRAIN": f"('{arguments.images.resolve()}',)",
        "DATASETS.TEST": "()",
        "DATALOADER.NUM_WORKERS": arguments.workers,
        "SOLVER.IMS_PER_BATCH": arguments.batch,
        "SOLVER.MAX_ITER": arguments.steps,
        "TEST.EVAL_PERIOD": 0,
        "TEST.EXPECTED_RESULTS": "[]",
        "OUTPUT_DIR": folder,
    }
    if stage == 2:
        settings["MODEL.WEIGHTS"] = ""
    config = ROOT / "configs" / "quick" / f"loupe_stage{stage}.yaml"
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", str(config)]
    command += ["--num-gpus", str(processes)]
    return command + [str(part) for pair in settings.items() for part in pair] + arguments.opts


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each stage with each number of processes in turn, round by round."""
    counts = (1, arguments.processes)
    result: dict[str, Any] = {}
    for stage in STAGES:
        rows: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
        for _ in range(arguments.rounds):
            for count in counts:
                rows[count].append(train(arguments, stage, count))
                print(f"stage {stage}, {count} processes", rows[count][-1], flush=True)
        alone, several = (rows[count] for count in counts)
        result[f"stage {stage}"] = {
            str(count): {key: median(row[key] for row in taken) for key in taken[0]}
            for count, taken in rows.items()
        } | {
            "step_ratio": median(
                b["step"] / a["step"] for a, b in zip(alone, several, strict=True)
            ),
            "rounds": {str(count): taken for count, taken in rows.items()},
        }
    return result


def main() -> None:
    """Compares and writes."""
    parser = parser_of(__doc__)
    parser.add_argument("images", type=Path, help="list or folder of training images")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=336)
    parser.add_argument("--batch", type=int, default=16, help="images of a step, of all processes")
    parser.add_argument("--workers", type=int, default=1, help="that decode, of each process")
    parser.add_argument("--opts", nargs="*", default=[], help="further keys of the configuration")
    arguments = parser.parse_args()
    settings = {key: getattr(arguments, key) for key in ("batch", "workers", "size", "steps")}
    write_results({**machine(), **settings, **compare(arguments)}, arguments.output)


if __name__ == "__main__":
    main()
