"""No pool of processes outlives a parent that was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from loupe import child_processes
from loupe.evaluation import scoring

ORPHAN_SECONDS = 60

DOCTOR = """
import os, sys, time
from loupe.doctor.examination import _pool
if __name__ == "__main__":
    with _pool(1) as pool:
        pool.submit(os.mkdir, sys.argv[1])
        pool.submit(time.sleep, 3600).result()
"""
SCORING = """
import sys
from loupe.evaluation.scoring import _run
from tests.test_child_processes import make_folder_and_wait
if __name__ == "__main__":
    list(_run([sys.argv[1], sys.argv[1] + "-other"], make_folder_and_wait, print))
"""
# The first of two machines: it waits for the second, which never comes.
TRAINING = """
import sys
from argparse import Namespace
from loupe.trainer.processes import launch
if __name__ == "__main__":
    url = "file://" + sys.argv[1]
    launch(print, Namespace(num_gpus=1, num_machines=2, machine_rank=0, dist_url=url))
"""
# What torchrun does for a run of one process.
TORCHRUN = """
import os, subprocess, sys
told = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
told |= {"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
work = "import sys; from loupe.trainer.processes import launch\\n"
work += "from tests.test_child_processes import make_folder_and_wait\\n"
work += "launch(make_folder_and_wait, sys.argv[1])"
subprocess.run([sys.executable, "-c", work, sys.argv[1]], env=os.environ | told)
"""
# A worker's thread that hands a tensor to a parent that has just been interrupted.
INTERRUPTED = """
import sys
from loupe.child_processes import serve_parent
serve_parent()
try:
    raise {error}("connection reset")
except Exception:
    sys.excepthook(*sys.exc_info())
"""
PROGRAMS = {
    "doctor": DOCTOR,
    "scoring": SCORING,
    "training": TRAINING,
    "torchrun": TORCHRUN,
}


def make_folder_and_wait(folder: str) -> None:
    os.mkdir(folder)
    time.sleep(3600)


def parent_lives() -> bool:
    return child_processes._is_alive()()


def end_at_once(part: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in listed.split()]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_the_processes_of_a_killed_parent_end(program: str, tmp_path: Path):
    sign = tmp_path / "works"
    command = [sys.executable, "-W", "ignore", "-c", program, str(sign)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1]) as parent:
        end = time.monotonic() + 600  # A busy machine takes minutes to import.
        while not sign.exists() and time.monotonic() < end:
            time.sleep(0.1)
        assert sign.exists()
        children = children_of(parent.pid)
        parent.kill()
    assert children
    end = time.monotonic() + ORPHAN_SECONDS
    while any(map(is_alive, children)) and time.monotonic() < end:
        time.sleep(0.1)
    orphans = [child for child in children if is_alive(child)]
    for child in orphans:
        os.kill(child, signal.SIGKILL)
    assert not orphans


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_parent_is_known_however_it_starts_its_children(method: str):
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        assert pool.submit(parent_lives).result()


@pytest.mark.slow
def test_a_killed_process_of_a_scoring_is_one_clear_error():
    with pytest.raises(RuntimeError, match="score again with fewer processes") as caught:
        list(scoring._run(["a", "b"], end_at_once, lambda done: None))
    assert isinstance(caught.value.__cause__, BrokenProcessPool)


@pytest.mark.parametrize(("error", "is_said"), [("ConnectionResetError", 0), ("ValueError", 1)])
def test_a_worker_says_nothing_of_a_parent_that_was_interrupted(error: str, is_said: int):
    program = INTERRUPTED.format(error=error)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.count("Traceback") == is_said
