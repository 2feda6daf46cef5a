"""Kills training runs anywhere, resumes them, and compares what they leave with an undisturbed run.

    python -m research.reliability.kill_resume --times 100 [--seed 0] [--output FILE]

A tiny Loupe with a segmenter trains for 12 steps on 8 images, with a loader worker, checkpoints,
evaluations, best weights and a moving average. A trial disturbs one run of it one to three times,
each time in a way drawn by chance, and resumes it:

    start       kill -9 before the first step
    anywhere    kill -9 at a random moment
    writing     kill -9 while a file is being written
    evaluation  kill -9 soon after an evaluation has begun
    signal      SIGTERM, SIGINT or SIGUSR1 at a random moment
    damaged     kill -9, then a state file is cut or has one byte changed

Then the run goes to its end, and everything in its folder has to be bit-equal: weights, optimiser,
moving average, best weights, rows, TensorBoard's curves, results of evaluations, names of files.
Processes that still live 10 s after their parent was killed are counted as orphans.

Exit status: 0 = all equal and no orphans, 1 = not.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from loupe.checkpoint import read_torch
from loupe.commands import train
from loupe.trainer.writers import CLOCK  # Runs are forks of this process, so imports count once.
from loupe.writing import write_json
from research.measuring import parser_of

WAYS = ("start", "anywhere", "writing", "evaluation", "signal", "damaged")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ORPHAN_SECONDS = 10.0
PATIENCE = 300.0

CONFIG = """
MODEL:
  DEVICE: cpu
  FREEZE: []
  PERCEPTION_ENCODER:
    {NAME: vit_pe_core_tiny_patch16_384, DEPTH: 1, EMBED_DIM: 32, NUM_HEADS: 2}
  SEGMENTER:
    {FEATURE_DIM: 32, NUM_HEADS: 2, PIXEL_LAYERS: 1, PIXEL_FFN_DIM: 32, MASK_FFN_DIM: 32,
     MASK_LAYERS: 1, NUM_QUERIES: 3, TRAIN_POINTS: 64, CONDITION_JITTER: 0.2}
INPUT: {SIZE: 64}
DATALOADER: {NUM_WORKERS: 1}
SOLVER:
  {MAX_ITER: 12, IMS_PER_BATCH: 2, ACCUMULATION_STEPS: 2, BASE_LR: 0.01, EMA_DECAY: 0.9,
   CHECKPOINT_PERIOD: 3}
TEST: {EVAL_PERIOD: 4, PANELS: 2, BEST_METRIC: image/Brier}
SEED: 1
"""


class Outcome(NamedTuple):
    """What became of a trial.

    Attributes:
        ways: How it was disturbed, in turn.
        differences: Parts of what it left that differ from the undisturbed run.
        orphans: Processes that outlived their killed parent.
        seconds: Of the trial.
    """

    ways: tuple[str, ...]
    differences: tuple[str, ...]
    orphans: int
    seconds: float


def main(arguments: argparse.Namespace) -> int:
    """Runs all trials and prints what they found."""
    torch.set_num_threads(1)
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        start = time.monotonic()
        run_to_end(folder, "whole")
        duration = time.monotonic() - start
        expected = left_behind(folder / "whole")
        outcomes = []
        for number in range(arguments.times):
            outcome = disturb(folder, f"run{number}", draw, duration, expected)
            outcomes.append(outcome)
            found = ", ".join(outcome.differences) or "equal"
            print(f"{number + 1:4} {found:10} {' '.join(outcome.ways)}", flush=True)
    report = summary(outcomes)
    print(json.dumps(report, indent=1))
    if arguments.output:
        write_json(arguments.output, report)
    return int(report["equal"] < report["trials"] or report["orphans"] > 0)


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Counts over all trials."""
    ways = Counter(way for outcome in outcomes for way in outcome.ways)
    return {
        "trials": len(outcomes),
        "equal": sum(not outcome.differences for outcome in outcomes),
        "differences": dict(Counter(part for o in outcomes for part in o.differences)),
        "disturbances": dict(ways),
        "orphans": sum(outcome.orphans for outcome in outcomes),
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
    }


def prepare(folder: Path) -> None:
    """Writes 8 images, half of them forged, their list and the configuration."""
    values = np.random.default_rng(0)
    rows = ["image,mask,label"]
    for number in range(8):
        image = values.integers(0, 256, (48, 56, 3), np.uint8)
        mask = np.zeros((48, 56), np.uint8)
        if number % 2:
            mask[10 : 20 + number, 6 : 26 + number] = 255
            image[mask > 0] //= 3
            cv2.imwrite(str(folder / f"mask{number}.png"), mask)
        cv2.imwrite(str(folder / f"image{number}.png"), image)
        rows.append(f"image{number}.png,{f'mask{number}.png' if number % 2 else ''},{number % 2}")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    (folder / "config.yaml").write_text(CONFIG)


def start_run(folder: Path, name: str) -> int:
    """Starts or resumes a run in a process of its own; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        output = os.open(folder / f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        data = f"('{folder / 'list.csv'}',)"
        words = ["--config-file", str(folder / "config.yaml"), "--resume"]
        words += ["DATASETS.TRAIN", data, "DATASETS.TEST", data]
        status = train.main([*words, "OUTPUT_DIR", str(folder / name)])
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait(pid: int, seconds: float = PATIENCE) -> int:
    """The exit status of a process.

    Raises:
        TimeoutError: It does not end.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    raise TimeoutError(f"process {pid} did not end within {seconds} s")


def run_to_end(folder: Path, name: str) -> None:
    """Runs, or resumes and runs, to the end.

    Raises:
        RuntimeError: The run failed.
    """
    if status := wait(start_run(folder, name)):
        raise RuntimeError(f"status {status}\n{(folder / f'{name}.txt').read_text()[-4000:]}")


def disturb(
    folder: Path, name: str, draw: random.Random, duration: float, expected: dict[str, Any]
) -> Outcome:
    """One trial."""
    start = time.monotonic()
    ways = tuple(draw.choice(WAYS) for _ in range(draw.randint(1, 3)))
    orphans = 0
    for way in ways:
        pid = start_run(folder, name)
        moment_of(way, folder / name, pid, draw, duration)
        children = children_of(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, draw.choice(SIGNALS) if way == "signal" else signal.SIGKILL)
        wait(pid)
        orphans += len(still_alive(children))
        if way == "damaged":
            damage(folder / name, draw)
    try:
        run_to_end(folder, name)
        found = left_behind(folder / name)
        differences = tuple(part for part in expected if found[part] != expected[part])
    except (RuntimeError, TimeoutError, ValueError) as error:
        print(error)
        differences = ("failed",)
    return Outcome(ways, differences, orphans, time.monotonic() - start)


def moment_of(way: str, output: Path, pid: int, draw: random.Random, duration: float) -> None:
    """Waits for the moment at which the run is to be disturbed, or until it has ended."""
    log = output / "log.txt"
    # A resumed run writes into the same log, so that only what it adds counts.
    known = log.stat().st_size if log.exists() else 0

    def says(text: str) -> bool:
        with contextlib.suppress(FileNotFoundError), log.open() as file:
            file.seek(known)
            return text in file.read()
        return False

    events: dict[str, Callable[[], bool]] = {
        "writing": lambda: any(output.glob(".unfinished-*")) or any(output.glob("*/.unfinished-*")),
        "evaluation": lambda: says("Start inference"),
        "start": lambda: True,
    }
    reached = events.get(way, lambda: says("Starting training"))
    # Not at the first opportunity each time.
    skipped = draw.uniform(0, duration / 2) if way == "writing" else 0.0
    time.sleep(skipped)
    end = time.monotonic() + PATIENCE
    while not reached() and is_alive(pid) and time.monotonic() < end:
        time.sleep(0.0005)
    delays = {"writing": 0.0, "start": duration / 4, "evaluation": duration / 10}
    time.sleep(draw.uniform(0, delays.get(way, duration * 0.8)))


def children_of(pid: int) -> set[int]:
    """The processes that a process has started."""
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {int(word) for word in words}


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def still_alive(pids: set[int]) -> set[int]:
    """Those that live 10 seconds from now; sooner if none does."""
    end = time.monotonic() + ORPHAN_SECONDS
    while (left := {pid for pid in pids if is_alive(pid)}) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def damage(output: Path, draw: random.Random) -> None:
    """Cuts a state file that there is a replacement for, or changes a byte of it."""
    checkpoints = [*output.glob("model_0*.pth"), *output.glob("model_final.pth")]
    checkpoints.sort(key=lambda path: path.stat().st_mtime_ns)
    files = [output / "last_checkpoint", output / "model_best.json", *checkpoints[1:][-1:]]
    files = [path for path in files if path.is_file() and path.stat().st_size]
    if not files:
        return
    path = draw.choice(files)
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    if draw.random() < 0.5:
        content = content[:place]
    else:
        content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def left_behind(output: Path) -> dict[str, Any]:
    """Everything in the folder of a run that must not depend on when it was disturbed."""
    checkpoints = {path.name: read_torch(path) for path in sorted(output.glob("model_*.pth"))}
    runs = [content for content in checkpoints.values() if "trainer" in content]
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    # TensorBoard reads a run's event files by name, which is not the order of their steps where
    # two began in the same second.
    events = EventAccumulator(str(output), size_guidance={"scalars": 0, "images": 0}).Reload()
    return {
        "files": sorted(path.name for path in output.glob("*model*")),
        "weights": [digest(content["model"]) for content in checkpoints.values()],
        "optimiser": [digest(content["trainer"]["step"]) for content in runs],
        "average": [digest(content["trainer"]["average"]) for content in runs],
        "schedule": [digest(content["trainer"]["hooks"]) for content in runs],
        "best": json.loads((output / "model_best.json").read_text()),
        "rows": [{k: v for k, v in row.items() if k not in CLOCK} for row in rows],
        "curves": {
            tag: sorted((event.step, event.value) for event in events.Scalars(tag))
            for tag in events.Tags()["scalars"]
            if tag not in CLOCK
        },
        "pictures": {
            tag: sorted((event.step, event.encoded_image_string) for event in events.Images(tag))
            for tag in events.Tags()["images"]
        },
        "results": [
            path.read_text().replace(str(output.parent), "")
            for path in sorted(output.glob("inference/*.json"))
        ],
    }


def digest(content: Any) -> str:
    """SHA-256 of nested containers of tensors, bit by bit."""
    found = hashlib.sha256()
    for part in _parts(content):
        found.update(part)
    return found.hexdigest()


def _parts(content: Any) -> Iterator[bytes]:
    if isinstance(content, torch.Tensor):
        yield repr((content.dtype, tuple(content.shape))).encode()
        yield content.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(content, dict):
        for key in sorted(content, key=repr):
            yield repr(key).encode()
            yield from _parts(content[key])
    elif isinstance(content, list | tuple):
        for item in content:
            yield from _parts(item)
    else:
        yield repr(content).encode()


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--times", type=int, default=100, help="trials (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(parse_arguments()))
