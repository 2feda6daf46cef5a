"""Several processes on gloo compute what one process computes."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from loupe.trainer import launch
from loupe.trainer.processes import process_group
from loupe.trainer.signals import SIGNALS
from tests.trainer.toy import end_badly, leave_in_turn, refuse_a_file, train_and_save

ROOT = Path(__file__).parents[2]

# Far more than a test takes, on a busy machine too. A process that would wait for ever ends then,
# and says where; the test's own limit is twice as long.
MOST_SECONDS = 600

# No draws, so that one process and two see the same numbers.
DETERMINISTIC = ["MODEL.SEGMENTER.CONDITION_JITTER", 0.0, "SOLVER.MAX_ITER", 2]

STAGE1 = """
MODEL:
  DEVICE: cpu
  FREEZE: []
  PERCEPTION_ENCODER:
    {NAME: vit_pe_core_tiny_patch16_384, DEPTH: 1, EMBED_DIM: 32, NUM_HEADS: 2}
  SEGMENTER: {ENABLED: False}
INPUT: {SIZE: 64}
SOLVER: {MAX_ITER: 2, IMS_PER_BATCH: 2, BASE_LR: 0.001, WARMUP_FRACTION: 0.0, ACCUMULATION_STEPS: 2}
DATALOADER: {NUM_WORKERS: 0}
SEED: 1
"""


def free_port() -> int:
    """A port that nobody uses right now."""
    return torch.distributed.TCPStore("127.0.0.1", 0, is_master=True).port


def start_processes(
    work: Callable[[Namespace], None], processes: int, folder: Path, **more: object
) -> None:
    """Runs a function in some processes of one group; each gets the folder and `more`."""
    # They meet in a file: a port that is free now may be taken when they have started.
    with tempfile.TemporaryDirectory() as place:
        arguments = Namespace(
            num_gpus=processes,
            num_machines=1,
            machine_rank=0,
            dist_url=f"file://{place}/store",
            folder=str(folder),
            **more,
        )
        if processes == 1:  # It is this one.
            work(arguments)
        else:
            launch(partial(within_time, work), arguments)


def within_time(work: Callable[[Namespace], None], arguments: Namespace) -> None:
    """Entry point of a process that fails where it would hang."""
    faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
    work(arguments)


def start(folder: Path, processes: int, *options: object, poisoned_rank: int = -1) -> None:
    """Trains the toy in some processes."""
    more = {"options": [*DETERMINISTIC, *options], "poisoned_rank": poisoned_rank}
    start_processes(train_and_save, processes, folder, **more)


def assert_close(first: dict, second: dict) -> None:
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.slow
def test_two_processes_of_one_image_equal_one_process_of_two(folder):
    options = ("SOLVER.ACCUMULATION_STEPS", 3)
    start(folder, 1, *options)
    start(folder, 2, *options)
    one, first, second = (
        torch.load(folder / name) for name in ("rank0of1.pth", "rank0of2.pth", "rank1of2.pth")
    )
    assert_close(first["model"], one["model"])
    assert_close(second["model"], first["model"])
    # One exchange per step, though a step has three micro-batches.
    assert first["exchanges"] == 2


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_all_with_its_images(folder):
    start(folder, 2, poisoned_rank=1)
    messages = [(folder / f"error{rank}.txt").read_text() for rank in range(2)]
    assert messages[0] == messages[1]
    assert "process 1: " in messages[0]
    assert "process 0: " not in messages[0]


@pytest.mark.slow
def test_no_process_leaves_while_another_still_works(tmp_path):
    start_processes(leave_in_turn, 2, tmp_path)
    left, done = (float((tmp_path / name).read_text()) for name in ("left0.txt", "done1.txt"))
    assert left >= done


@pytest.mark.slow
def test_an_error_of_one_process_comes_out_as_that_of_a_run_alone(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        start_processes(refuse_a_file, 2, tmp_path)
    assert str(raised.value) == f"[Errno 2] nothing of this name: '{tmp_path}'"
    assert "in refuse_a_file" in str(raised.value.__cause__)


@pytest.mark.slow
def test_a_process_whose_work_is_done_cannot_abort_while_its_interpreter_ends(tmp_path):
    start_processes(end_badly, 2, tmp_path)
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["in order, to the end"] * 2


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_process_passes_signals_on_and_ends_with_their_status(number, monkeypatch):
    # A shell's background jobs are born deaf to SIGINT.
    hear = partial(signal.signal, number, signal.SIG_DFL)
    sleeper = subprocess.Popen(["sleep", "3600"], preexec_fn=hear)
    before = signal.getsignal(number)

    class Context:
        def pids(self) -> list[int]:
            return [sleeper.pid]

        def join(self) -> bool:
            os.kill(os.getpid(), number)
            # Python runs its handler before the next line; the child ends of what it is sent.
            code = sleeper.wait(300)
            raise ProcessExitedException("ended", error_index=0, error_pid=0, exit_code=code)

    monkeypatch.setattr("torch.multiprocessing.start_processes", lambda *_, **__: Context())
    try:
        with pytest.raises(SystemExit) as status:
            launch(print, Namespace(num_gpus=2, num_machines=1))
    finally:
        sleeper.kill()
    assert status.value.code == 128 + number
    assert sleeper.returncode == -number
    assert signal.getsignal(number) is before


def test_a_process_that_fails_by_itself_is_an_error_not_a_signal(monkeypatch):
    class Context:
        def pids(self) -> list[int]:
            return []

        def join(self) -> bool:
            raise ProcessExitedException("ended", error_index=0, error_pid=0, exit_code=1)

    monkeypatch.setattr("torch.multiprocessing.start_processes", lambda *_, **__: Context())
    with pytest.raises(ProcessExitedException):
        launch(print, Namespace(num_gpus=2, num_machines=1))


def test_more_processes_than_devices_are_an_error_before_they_meet(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.set_device", lambda number: None)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: pytest.fail("met"))
    group = process_group(rank=0, local_rank=0, world_size=2, local_size=2, url="file:///none")
    with pytest.raises(ValueError, match="2 processes on a machine with 1 CUDA devices"), group:
        pass


def test_processes_that_cannot_meet_are_an_error_in_one_line():
    arguments = Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="foo")
    with pytest.raises(ValueError, match="of 2 cannot meet the others at foo: .*--dist-url") as one:
        launch(print, arguments)
    assert "\n" not in str(one.value)


def test_more_processes_than_images_in_a_batch_are_an_error(folder, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="multiple of the number of processes, 3"):
        start(folder, 1)


def run_tool(command: list[str], folder: Path, output: str) -> None:
    data = str(folder / "manifest.csv")
    command = [*command, "tools/train_net.py", "--config-file", str(folder / "stage1.yaml")]
    command += ["DATASETS.TRAIN", f"('{data}',)", "DATASETS.TEST", f"('{data}',)"]
    command += ["OUTPUT_DIR", str(folder / output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_the_tool_under_torchrun_trains_and_evaluates_as_in_one_process(folder):
    (folder / "stage1.yaml").write_text(STAGE1)
    run_tool([sys.executable], folder, "one")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    run_tool([*torchrun, "--master-port", str(free_port())], folder, "two")
    one, two = (torch.load(folder / run / "model_final.pth")["model"] for run in ("one", "two"))
    assert_close(one, two)
    results = [
        json.loads(next((folder / run / "inference").glob("*.json")).read_text())
        for run in ("one", "two")
    ]
    for name in ("image/AUC", "image/Brier", "pixel/F1-pooled", "pixel/AUC-pooled"):
        values = [result[name]["value"] for result in results]
        assert values[0] == pytest.approx(values[1], abs=1e-5), name
