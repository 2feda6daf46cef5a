"""A test that would wait for ever fails, with its child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.limited_time import within


def too_long() -> AbstractContextManager[object]:
    return pytest.raises(pytest.fail.Exception, match=r"more than 0\.2 seconds")


def test_waiting_for_a_writer_of_a_pipe_ends(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with too_long(), within(0.2):
        (tmp_path / "pipe").read_text()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_child_that_is_waited_for_is_killed():
    with subprocess.Popen(["sleep", "3600"]) as child, too_long(), within(0.2):
        child.wait()
    assert child.returncode == -signal.SIGKILL


def test_the_limit_outside_holds_again_after_one_inside():
    def limit() -> tuple[object, bool]:
        return signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0] > 1

    with within(3600):
        outside = limit()
        with too_long(), within(0.2):
            time.sleep(3600)
        assert limit() == outside
        assert outside[1]


def test_each_test_has_a_limit_and_threads_leave_it_alone():
    before = signal.getsignal(signal.SIGALRM)
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0

    def work() -> None:
        with within(0.2):
            found.append(signal.getsignal(signal.SIGALRM))

    found: list[object] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
