"""The whole recipe of the shipped explainer on a GPU, in a given number of seconds.

    python -m research.explanation.gpu --photographs DIR/photographs.csv --held HELD/photographs.csv \
        --seconds 330 --output $OUT

Renders and encodes examples on all cores for a third of the time, and test examples from photographs
of which no training example is made; then trains by configs/explain_tiny_train.yaml as many steps as
the rest of the time allows, evaluates, and writes to the output

    explain_tiny.safetensors    adapters and projector, half precision
    summary.json                counts, steps, seconds, and where the scores are
    run/metrics.json            losses; run/inference/ scores and texts

No network is used. On a CPU it works, too, but slowly.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model

from loupe.checkpoint import load_weights, save_weights
from loupe.config import load_config
from loupe.data.explanations.features import FeatureSet
from loupe.data.explanations.loaders import explanation_loader
from loupe.trainer.trainer import LoupeTrainer
from loupe.writing import write_json

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "explain_tiny_train.yaml"
# Of all seconds: rendering; what evaluation, saving and loading the model take, in seconds.
RENDERING = 0.33
OVERHEAD = 75.0
TRIAL_STEPS = 12


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", required=True)
    parser.add_argument("--held", required=True)
    parser.add_argument("--seconds", type=float, default=330.0)
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--count", type=int, default=20000, help="training examples at most")
    parser.add_argument("--tested", type=int, default=400)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--most-steps", type=int, default=4000)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="further settings")
    return parser.parse_intermixed_args(words)


def render(arguments: argparse.Namespace, work: Path) -> None:
    """Makes test and training features."""
    program = [sys.executable, "-m", "research.explanation.features"]
    common = ["--workers", str(arguments.workers)]
    test = ["--split", "test", "--guided", "--seed", "1", "--forged", "0.75"]
    test += ["--photographs", arguments.held, "--count", str(arguments.tested)]
    subprocess.run([*program, *common, *test, "--output", str(work / "test")], check=True)
    train = ["--photographs", arguments.photographs, "--count", str(arguments.count)]
    train += ["--seconds", str(RENDERING * arguments.seconds)]
    subprocess.run([*program, *common, *train, "--output", str(work / "train")], check=True)


def settings(arguments: argparse.Namespace, work: Path, steps: int) -> Any:
    """The configuration of a run of so many steps."""
    return load_config(
        CONFIG,
        [
            *("DATASETS.TRAIN", f"('features://{work}/train',)"),
            *("DATASETS.TEST", f"('features://{work}/test',)"),
            *("SOLVER.IMS_PER_BATCH", str(arguments.batch), "SOLVER.MAX_ITER", str(steps)),
            *("SOLVER.CHECKPOINT_PERIOD", str(max(100, steps // 4))),
            *("TEST.IMS_PER_BATCH", "100", "OUTPUT_DIR", str(work / "run"), "SEED", "0"),
            *arguments.opts,
        ],
    )


def seconds_per_step(cfg: Any) -> float:
    """Measured on the first steps, without their slow beginning."""
    model = build_model(cfg).train()
    batches = iter(explanation_loader(cfg))
    start = 0.0
    for step in range(TRIAL_STEPS):
        if step == TRIAL_STEPS // 3:
            start = time.perf_counter()
        with torch.autocast(cfg.MODEL.DEVICE, torch.bfloat16):
            loss = sum(model(next(batches)).values())
        loss.backward()
        loss.item()
    return (time.perf_counter() - start) / (TRIAL_STEPS - TRIAL_STEPS // 3)


def publish(work: Path, output: Path) -> None:
    """Writes the adapters in half precision."""
    weights = load_weights(work / "run" / "model_final.pth")
    halved = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    save_weights(halved, output / "explain_tiny.safetensors")


def main(words: list[str] | None = None) -> None:
    """Renders, trains, evaluates, writes."""
    arguments = parse_arguments(words)
    began = time.perf_counter()
    work = arguments.output.parent / "explain_work"
    arguments.output.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    render(arguments, work)
    rendered = time.perf_counter() - began
    print(f"rendered in {rendered:.0f} s", flush=True)
    per_step = seconds_per_step(settings(arguments, work, 10))
    left = arguments.seconds - OVERHEAD - (time.perf_counter() - began)
    steps = max(20, min(arguments.most_steps, int(left / per_step)))
    print(f"{per_step:.3f} s a step: {steps} steps", flush=True)
    cfg = settings(arguments, work, steps)
    trainer = LoupeTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    publish(work, arguments.output)
    (arguments.output / "run").mkdir(exist_ok=True)
    for path in [work / "run" / "metrics.json", *(work / "run" / "inference").glob("*")]:
        shutil.copy(path, arguments.output / "run" / path.name)
    summary = {
        "steps": steps,
        "batch": arguments.batch,
        "seconds per step": per_step,
        "seconds of rendering": rendered,
        "seconds": time.perf_counter() - began,
        "training examples": len(FeatureSet(work / "train")),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "torch": torch.__version__,
    }
    write_json(arguments.output / "summary.json", summary)
    print(summary)


if __name__ == "__main__":
    main()
