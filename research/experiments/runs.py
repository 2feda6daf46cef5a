"""Runs: one training or evaluation each, in a process of its own, never done twice.

A run's folder is named by a digest of everything that decides its result: the settled configuration
and the run it starts from. A table that asks for the same run finds it there. What was not finished
(no `run.json`) is taken up at its last checkpoint; at quick size there is none before the end
(SOLVER.CHECKPOINT_PERIOD), so such a run starts over. To do a run again, delete its folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from loupe.config import load_config
from loupe.writing import write_json

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "tools" / "train_net.py"
EVALUATE = ROOT / "research" / "experiments" / "evaluate.py"
WEIGHTS = "model_final.pth"


class RunError(Exception):
    """A run ended with an error; the message names its log."""


class Job(NamedTuple):
    """What is to be trained.

    Attributes:
        name: for people.
        seed: of the run.
        config: configuration file.
        options: `KEY VALUE` pairs, all strings.
        first: what it starts from; None = from the configuration's own weights.
    """

    name: str
    seed: int
    config: Path
    options: tuple[str, ...]
    first: Job | None = None


class Evaluation(NamedTuple):
    """One measurement of a trained model.

    Attributes:
        name: of the setting, for people.
        dataset: a data set's name or path.
        options: `KEY VALUE` pairs on top of the training's: `ADAPTATION.*`, `TEST.*`, `INPUT.*`.
        limit: at most so many images, drawn once for all runs; 0 = all.
    """

    name: str
    dataset: str
    options: tuple[str, ...] = ()
    limit: int = 0


class Done(NamedTuple):
    """What a finished run left: its folder, seconds, peak memory in GB and command.

    The seconds are those of its last process: of a run that was taken up at a checkpoint, the rest.
    """

    folder: Path
    seconds: float
    peak_memory_gb: float
    command: str


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def job_digest(job: Job) -> str:
    """Digest of the settled configuration, the seed and the run it starts from."""
    options = [*job.options, "SEED", str(job.seed), "OUTPUT_DIR", "", "MODEL.DEVICE", "cpu"]
    if job.first is not None:
        # Quoted: the parser of options takes a digest such as 12e3456789 for a number.
        options += ["MODEL.WEIGHTS", repr(job_digest(job.first))]
    return _digest(load_config(job.config, options).dump())


class Runner:
    """Trains and evaluates below one folder.

    Args:
        output: folder of all runs.
        threads: of PyTorch in each process.
    """

    def __init__(self, output: Path, threads: int = 1) -> None:
        self.output = output.resolve()
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.failures: list[str] = []
        self._failed: dict[str, str] = {}

    def folder(self, job: Job) -> Path:
        """Where a job's run lies: under the name it was first asked for by."""
        digest = job_digest(job)
        found = sorted((self.output / "runs").glob(f"*-{digest}"))
        return found[0] if found else self.output / "runs" / f"{job.name}-seed{job.seed}-{digest}"

    def train(self, job: Job) -> Done:
        """Trains, or finds that it is done.

        Raises:
            RunError: the training failed, now or earlier, or that of the run it starts from. The
                next runner tries again.
        """
        digest = job_digest(job)
        if digest in self._failed:
            raise RunError(self._failed[digest])
        weights = []
        if job.first is not None:
            weights = ["MODEL.WEIGHTS", str(self.train(job.first).folder / WEIGHTS)]
        folder = self.folder(job)
        record = folder / "run.json"
        if record.exists():
            return _done(folder)
        words = [str(TRAIN), "--config-file", str(job.config), "--resume", "SEED", str(job.seed)]
        words += ["OUTPUT_DIR", str(folder), *job.options, *weights]
        try:
            seconds, memory = self._call(words, folder, f"train {job.name}, seed {job.seed}")
        except RunError as error:
            self._failed[digest] = str(error)
            raise
        content = {
            "name": job.name,
            "seed": job.seed,
            "seconds": round(seconds, 1),
            "peak_memory_gb": round(memory, 2),
            "command": readable(words, self.output),
            "revision": _revision(),
        }
        write_json(record, content)
        return _done(folder)

    def evaluate(self, job: Job, evaluations: list[Evaluation]) -> list[Path]:
        """Trains if need be, then measures what was not measured yet, all in one process.

        Returns:
            For each evaluation the path of its numbers (see `evaluate.py`), which may not exist
            where it failed; its failure is noted then.

        Raises:
            RunError: the training failed.
        """
        folder = self.train(job).folder
        paths = [evaluation_path(folder, evaluation) for evaluation in evaluations]
        missing = [
            {"output": str(path), **evaluation._asdict()}
            for path, evaluation in zip(paths, evaluations, strict=True)
            if not path.exists()
        ]
        if missing:
            plan = folder / "plan.json"
            content = {
                "config": str(job.config),
                "options": [*job.options, "SEED", str(job.seed)],
                "weights": str(folder / WEIGHTS),
                "evaluations": missing,
            }
            write_json(plan, content)
            try:
                self._call([str(EVALUATE), str(plan)], folder, f"evaluate {folder.name}")
            except RunError as error:
                self.failures.append(str(error))
        return paths

    def _call(self, words: list[str], folder: Path, what: str) -> tuple[float, float]:
        """Runs a command; returns its seconds and peak memory in GB."""
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"{Path(words[0]).stem}.log"
        print(f"[{time.strftime('%H:%M:%S')}] {what} ...", end=" ", flush=True)
        start = time.perf_counter()
        with log.open("a") as file:
            print("$", readable(words, self.output), file=file, flush=True)
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=ROOT,
            )
            # The one call that tells this very process' peak memory.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        print(f"{seconds:.0f} s" if not process.returncode else "failed", flush=True)
        if process.returncode:
            raise RunError(f"{what}: status {process.returncode}, see {log}")
        return seconds, usage.ru_maxrss / 2**20


def evaluation_path(folder: Path, evaluation: Evaluation) -> Path:
    """Where an evaluation's numbers lie; the digest covers data set, options and limit."""
    digest = _digest(json.dumps(evaluation[1:]))
    return folder / "evaluations" / f"{evaluation.name}-{digest}.npz"


def readable(words: list[str], output: Path) -> str:
    """A command as a person types it in the repository's folder."""
    shown = [word.replace(f"{ROOT}/", "").replace(f"{output}", "OUTPUT") for word in words]
    return " ".join(f'"{word}"' if "'" in word else shlex.quote(word) for word in shown)


def _done(folder: Path) -> Done:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return Done(folder, record["seconds"], record["peak_memory_gb"], record["command"])


def _revision() -> str:
    """The commit that is checked out; "" outside of a repository."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
