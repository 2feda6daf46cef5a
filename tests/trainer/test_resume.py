"""A run that was stopped leaves, once resumed, what one leaves that was not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.utils import comm

from loupe.checkpoint import read_torch
from loupe.trainer import LoupeTrainer, signals
from loupe.trainer.signals import SIGNALS, Stopped, StopRequest, StopsEvaluation
from research.reliability.kill_resume import left_behind
from tests.test_child_processes import children_of, is_alive
from tests.trainer.toy import toy_config

# Evaluations after 3, 6 and 9 of 10 steps, checkpoints after every second: both after 6.
PERIODS = ("SOLVER.MAX_ITER", 10, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 3)


def start(folder: Path, *options: Any, resume: bool = False) -> LoupeTrainer:
    # TensorBoard reads event files by name: second, process, number. Within one second number 10
    # would come before 9, and what the resumed run took back would count.
    if resume:
        time.sleep(1.1)
    data = str(folder / "manifest.csv")
    cfg = toy_config(
        folder,
        "DATASETS.TEST",
        (data,),
        *PERIODS,
        "SOLVER.EMA_DECAY",
        0.9,
        "TEST.PANELS",
        2,
        *options,
    )
    trainer = LoupeTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from tests.trainer.toy import write_dataset

    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder)
    (folder / "output").mkdir()
    start(folder).train()
    return left_behind(folder / "output")


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


def killed_at(
    trainer: LoupeTrainer, monkeypatch: pytest.MonkeyPatch, where: str, step: int
) -> None:
    """Runs until something is called in an iteration; what is on the disk then, stays."""
    owner, name = {
        "step": (trainer._trainer, "run"),
        "evaluation": (trainer, "test"),
        "rows": (trainer.writer, "write"),
        "checkpoint": (trainer.checkpointer, "save"),
        "best": (trainer.checkpointer, "save_weights"),
        "average": (trainer.checkpointer, "save_weights"),
    }[where]
    called = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        if trainer.iter == step:
            # The end of the run may call it again.
            shutil.rmtree(trainer.cfg.OUTPUT_DIR + "-then", ignore_errors=True)
            shutil.copytree(trainer.cfg.OUTPUT_DIR, trainer.cfg.OUTPUT_DIR + "-then")
            raise Killed
        return called(*arguments, **options)

    monkeypatch.setattr(owner, name, call)
    with pytest.raises(Killed):
        trainer.train()
    output = Path(trainer.cfg.OUTPUT_DIR)
    shutil.rmtree(output)
    (output.parent / "output-then").rename(output)


@pytest.mark.parametrize(
    ("where", "step"),
    [
        *(("step", 1), ("step", 6), ("evaluation", 5), ("evaluation", 10), ("rows", 5)),
        *(("rows", 10), ("checkpoint", 7), ("checkpoint", 9), ("best", 2), ("average", 10)),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(folder, undisturbed, monkeypatch, where, step):
    trainer = start(folder)
    killed_at(trainer, monkeypatch, where, step)
    start(folder, resume=True).train()
    found = left_behind(folder / "output")
    for part, expected in undisturbed.items():
        assert found[part] == expected, part


def test_the_rows_of_an_undisturbed_run_are_counted_once(undisturbed):
    assert [row["iteration"] for row in undisturbed["rows"]] == [2, 5, 8, 9, 10]
    assert undisturbed["files"] == [
        *("model_0000007.pth", "model_0000009.pth", "model_best.json", "model_best.pth"),
        *("model_final.pth", "model_final_ema.pth"),
    ]


# ---- Signals


@pytest.mark.parametrize(
    ("number", "where"),
    [
        (signal.SIGTERM, "step"),
        (signal.SIGINT, "evaluation"),
        (signal.SIGINT, "evaluation between checkpoints"),
        (signal.SIGUSR1, "last evaluation"),
    ],
)
def test_a_signal_saves_and_ends_the_run_with_the_usual_status(
    folder, undisturbed, monkeypatch, number, where
):
    trainer = start(folder)
    owner, name, step = {
        "step": (trainer._trainer, "run", 4),
        "evaluation": (trainer, "test", 5),
        "evaluation between checkpoints": (trainer, "test", 2),
        "last evaluation": (trainer, "test", 10),
    }[where]
    called = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        if trainer.iter == step:
            assert signal.getsignal(number) != handler  # It would end the tests.
            os.kill(os.getpid(), number)
        return called(*arguments)

    monkeypatch.setattr(owner, name, call)
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as status:
        trainer.train()
    assert status.value.code == 128 + number
    assert signal.getsignal(number) is handler
    expected = "model_final.pth" if step == 10 else f"model_000000{step}.pth"
    assert (folder / "output" / "last_checkpoint").read_text() == expected
    rest = start(folder, resume=True)
    assert rest.start_iter == min(step + 1, 10)
    rest.train()
    found = left_behind(folder / "output")
    for part, expected in undisturbed.items():
        assert found[part] == expected, part


def test_a_checkpoint_of_a_signal_is_written_before_a_process_may_leave(folder, monkeypatch):
    trainer, seen = start(folder), []
    monkeypatch.setattr(comm, "synchronize", lambda: seen.append(trainer.checkpointer.saved))
    trainer.stop.number = int(signal.SIGTERM)
    with pytest.raises(SystemExit):
        trainer.train()
    assert seen[-1] == 0


def test_an_evaluation_that_fails_costs_no_training(folder, monkeypatch):
    trainer = start(folder, "SOLVER.CHECKPOINT_PERIOD", 3)

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory for it")

    monkeypatch.setattr(trainer, "test", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        trainer.train()
    assert (folder / "output" / "last_checkpoint").read_text() == "model_0000002.pth"


def test_the_same_request_may_come_twice_but_a_second_one_kills(monkeypatch):
    request = StopRequest()
    sent = []
    monkeypatch.setattr(signal, "signal", lambda *handler: sent.append(handler))
    monkeypatch.setattr(os, "kill", lambda *signalled: sent.append(signalled))
    for number, now in ((signal.SIGINT, 100.0), (signal.SIGTERM, 100.0), (signal.SIGTERM, 101.9)):
        monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda now=now: now))
        request._note(number, None)
    assert (request.number, sent) == (signal.SIGINT, [])
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: 102.1))
    request._note(signal.SIGTERM, None)
    assert sent == [(signal.SIGTERM, signal.SIG_DFL), (os.getpid(), signal.SIGTERM)]


def test_a_thread_may_train_and_leaves_signals_alone():
    before = [signal.getsignal(number) for number in SIGNALS]

    def listen() -> list[Any]:
        with StopRequest().listening():
            return [signal.getsignal(number) for number in SIGNALS]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(listen).result() == before


def test_several_processes_stop_together_and_finish_their_evaluation(monkeypatch):
    request = StopRequest()
    evaluation = StopsEvaluation(request)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    # The other process was told.
    monkeypatch.setattr(comm, "all_gather", lambda number: [number, int(signal.SIGUSR1)])
    assert request.agreed() == signal.SIGUSR1
    request.number = int(signal.SIGTERM)
    evaluation.process([], [])
    monkeypatch.setattr(comm, "get_world_size", lambda: 1)
    with pytest.raises(Stopped, match="SIGTERM"):
        evaluation.process([], [])


# ---- Child processes

PARENT = """
import sys, time, torch
from torch.utils.data import DataLoader
from loupe.child_processes import serve_parent

class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from range(2)
        # PyTorch itself ends a worker that waits, but not one that is busy.
        time.sleep(float(sys.argv[1]))
        while True:
            yield 1

def begin(worker):
    serve_parent()

loader = iter(DataLoader(Endless(), num_workers=2, worker_init_fn=begin, timeout=30))
# One of each worker, so that both have begun.
print(next(loader), next(loader), flush=True)
for line in sys.stdin:
    for _ in range(10):
        next(loader)
    print("data", flush=True)
"""


def wait_for_end(pids: set[int], seconds: float) -> set[int]:
    """Those that still live after so many seconds."""
    end = time.monotonic() + seconds
    while (left := {pid for pid in pids if is_alive(pid)}) and time.monotonic() < end:
        time.sleep(0.1)
    return left


@pytest.fixture
def parent(request):
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(request.param)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell's background jobs are born deaf to SIGINT.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("parent", [3600], indirect=True)
def test_workers_die_with_a_killed_parent(parent):
    workers = {pid for pid in children_of(parent.pid) if is_alive(pid)}
    assert len(workers) >= 2
    parent.kill()
    parent.wait()
    assert wait_for_end(workers, 10) == set()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("parent", [0], indirect=True)
def test_workers_serve_on_when_a_signal_reaches_the_whole_group(parent, number):
    workers = set(children_of(parent.pid))
    for pid in workers:
        os.kill(pid, number)
    time.sleep(0.5)
    parent.stdin.write("\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == "data\n"
    parent.stdin.close()
    assert parent.wait(20) == 0
    assert wait_for_end(workers, 5) == set()


def test_the_state_of_a_run_is_tensors_numbers_and_text_alone(folder):
    start(folder, "SOLVER.MAX_ITER", 2).train()
    content = read_torch(folder / "output" / "model_final.pth")
    assert isinstance(content["trainer"]["step"]["optimizer"]["state"][0]["exp_avg"], torch.Tensor)
