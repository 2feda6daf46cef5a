"""Processes divide the cores of a machine, and their threads sleep while they wait."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from loupe import threads
from loupe.trainer.processes import launch

WRITTEN = "threads.{}"


@pytest.fixture
def unchosen(monkeypatch):
    for name in (*threads.CHOICES, *threads.WAITING, "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write_threads(arguments: Namespace) -> None:
    count = torch.get_num_threads()
    (arguments.folder / WRITTEN.format(os.getpid())).write_text(f"{count} {threads.use_threads()}")


def test_processes_of_a_run_divide_the_cores(unchosen, tmp_path):
    arguments = Namespace(num_gpus=2, num_machines=1, machine_rank=0, folder=tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        arguments.dist_url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    launch(write_threads, arguments)
    assert [path.read_text() for path in tmp_path.glob(WRITTEN.format("*"))] == ["1 1", "1 1"]
    assert threads.CHOICES[0] not in os.environ


def test_one_process_uses_all_cores_unless_the_user_chose(unchosen, monkeypatch):
    assert threads.use_threads() == 2
    assert threads.use_threads(3) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.use_threads() == 3  # As PyTorch was: it has read the variable at its start.
    with threads.divided_cores(5):
        assert os.environ["OMP_NUM_THREADS"] == "2"


def test_waiting_threads_sleep_unless_the_user_chose(unchosen, monkeypatch):
    threads.sleep_while_waiting()
    assert os.environ["GOMP_SPINCOUNT"] == threads.WAITING["GOMP_SPINCOUNT"]
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    threads.sleep_while_waiting()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_commands_say_how_to_wait_before_pytorch_is_imported():
    code = "import os, sys; from loupe.__main__ import main; main(['info', '--no-such']);"
    code += "print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    environment = {key: value for key, value in os.environ.items() if key not in threads.WAITING}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.split() == ["False", threads.WAITING["GOMP_SPINCOUNT"]]


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
    ],
)
def test_a_containers_share_of_time_limits_the_cores(
    tmp_path: Path, monkeypatch, files: dict[str, str], quota: float | None
):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads._container_quota(tmp_path) == quota
    monkeypatch.setattr(threads, "_GROUPS", tmp_path)
    cores = len(os.sched_getaffinity(0))
    assert threads.usable_cores() == (cores if quota is None else min(cores, int(quota)))
