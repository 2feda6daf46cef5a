"""The whole recipe of the shipped explainer on a GPU, in a given number of seconds.

    python -m research.explanation.gpu --photographs A/photographs.csv --held B/photographs.csv \
        --seconds 220 --output $OUT

Renders and encodes examples on all cores for a quarter of the time, and test examples from
photographs of which no training example is made, while the model loads; then trains by
configs/explain_tiny_train.yaml as many steps as the rest of the time allows, evaluates, and writes

    explain_tiny.safetensors    adapters and projector, half precision
    summary.json                counts, steps, seconds, and where the scores are
    run/metrics.json            losses; run/inference/ scores and texts

No network is used. On a CPU it works, too, but slowly.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from loupe.checkpoint import load_weights, save_weights
from loupe.config import load_config
from loupe.data.explanations.features import FeatureSet
from loupe.data.explanations.loaders import explanation_loader
from loupe.trainer.trainer import LoupeTrainer
from loupe.writing import write_json
from research.measuring import parser_of

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "explain_tiny_train.yaml"
# Of all seconds: rendering; what evaluation, saving and loading the model take, in seconds.
RENDERING = 0.25
OVERHEAD = 25.0
TRIAL_STEPS = 12


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(__doc__, output=False)
    parser.add_argument("--photographs", required=True)
    parser.add_argument("--held", required=True)
    parser.add_argument("--seconds", type=float, default=220.0)
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--count", type=int, default=20000, help="training examples at most")
    parser.add_argument("--tested", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--most-steps", type=int, default=4000)
    parser.add_argument("--experiment", action="store_true", help="run it beside, on the cores")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="further settings")
    return parser.parse_intermixed_args(words)


def start_rendering(arguments: argparse.Namespace, work: Path) -> list[subprocess.Popen[bytes]]:
    """Starts to make test and training features."""
    program = [sys.executable, "-m", "research.explanation.features"]
    few = max(1, arguments.workers // 5)
    test = ["--split", "test", "--guided", "--seed", "1", "--forged", "0.75"]
    test += ["--photographs", arguments.held, "--count", str(arguments.tested)]
    test += ["--workers", str(few), "--output", str(work / "test")]
    train = ["--photographs", arguments.photographs, "--count", str(arguments.count)]
    train += ["--seconds", str(RENDERING * arguments.seconds), "--output", str(work / "train")]
    train += ["--workers", str(max(1, arguments.workers - few))]
    return [subprocess.Popen([*program, *words]) for words in (test, train)]


class ReadyTrainer(LoupeTrainer):
    """Takes a model that is there already: loading one takes as long as a hundred steps."""

    ready: nn.Module

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model that is there."""
        return cls.ready


def settings(arguments: argparse.Namespace, work: Path, steps: int) -> CfgNode:
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


def seconds_per_step(model: nn.Module, cfg: CfgNode) -> float:
    """Measured on the first steps, without their slow beginning; the weights stay as they are."""
    model.train()
    batches = iter(explanation_loader(cfg))
    start = 0.0
    for step in range(TRIAL_STEPS):
        if step == TRIAL_STEPS // 3:
            start = time.perf_counter()
        with torch.autocast(cfg.MODEL.DEVICE, torch.bfloat16):
            loss = sum(model(next(batches)).values())
        loss.backward()
        loss.item()
    model.zero_grad(set_to_none=True)
    return (time.perf_counter() - start) / (TRIAL_STEPS - TRIAL_STEPS // 3)


def start_experiment(arguments: argparse.Namespace, work: Path) -> subprocess.Popen[bytes]:
    """Starts the primary arms of the experiment on a smaller set, on the cores that are idle."""
    program = f"{sys.executable} -m research.explanation.experiment"
    common = f"--folder {work}/experiment --workers {max(1, arguments.workers - 3)}"
    data = f"--photographs {arguments.photographs} --held {arguments.held}"
    data += " --trained 2400 --tested 400"
    arms = "--arms none predicted truth shuffled --steps 200"
    line = f"{program} data {common} {data} && {program} run {common} {arms}"
    # A session of its own, so that all its processes end together.
    return subprocess.Popen(line, shell=True, start_new_session=True)


def end_experiment(process: subprocess.Popen[bytes], arguments: argparse.Namespace) -> None:
    """Ends it, done or not, and packs what is done."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    folder = arguments.output.parent / "explain_work" / "experiment"
    names = [path for path in (folder / "runs", folder / "test.npz") if path.exists()]
    with tarfile.open(arguments.output / "experiment.tgz", "w:gz") as archive:
        for path in names:
            archive.add(path, path.name)


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
    rendering = start_rendering(arguments, work)
    # Built before the features are there, from a configuration that differs in its length alone.
    ReadyTrainer.ready = build_model(settings(arguments, work, 10))
    print(f"model there after {time.perf_counter() - began:.0f} s", flush=True)
    if any(process.wait() for process in rendering):
        raise RuntimeError("rendering failed; see above")
    experiment = start_experiment(arguments, work) if arguments.experiment else None
    rendered = time.perf_counter() - began
    print(f"rendered in {rendered:.0f} s", flush=True)
    per_step = seconds_per_step(ReadyTrainer.ready, settings(arguments, work, 10))
    left = arguments.seconds - OVERHEAD - (time.perf_counter() - began)
    steps = min(arguments.most_steps, max(20, int(left / per_step)))
    print(f"{per_step:.3f} s a step: {steps} steps", flush=True)
    cfg = settings(arguments, work, steps)
    trainer = ReadyTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    publish(work, arguments.output)
    if experiment is not None:
        with suppress(subprocess.TimeoutExpired):
            experiment.wait(max(0.1, arguments.seconds - (time.perf_counter() - began)))
        end_experiment(experiment, arguments)
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
