"""How many threads a process computes with, and what they do while they wait.

Several processes on one machine share its cores. With the defaults of PyTorch each of them starts
one thread for each core, and threads that wait for the others spin instead of sleeping: on two
cores, two such processes take five times as long as one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Variables by which a user, torchrun or a scheduler chooses the number of threads.
CHOICES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# How long a thread spins before it sleeps: rounds in GNU's OpenMP (about 20 us; by default
# milliseconds), milliseconds in LLVM's and Intel's (by default 200).
WAITING = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "0"}

_GROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that this process may use: of its affinity and of its container's share of time."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS and Windows
        cores = os.cpu_count() or 1
    quota = _container_quota(_GROUPS)
    return cores if quota is None else max(1, min(cores, int(quota)))


def _container_quota(groups: Path) -> float | None:
    """Cores' worth of time that the control group allows; None = no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = " ".join((groups / name).read_text() for name in names).split()
        except OSError:  # The other version of control groups, or none.
            continue
        return int(words[0]) / int(words[1]) if words[0].isdecimal() else None
    return None


def sleep_while_waiting() -> None:
    """Makes waiting threads sleep soon; of effect in processes that have not imported PyTorch yet.

    What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in WAITING.items():
            os.environ.setdefault(name, value)


@contextmanager
def divided_cores(processes: int) -> Iterator[None]:
    """While processes are started: each of them gets an equal part of the usable cores.

    What the user has chosen stays.
    """
    sleep_while_waiting()
    if any(os.environ.get(name) for name in CHOICES):
        yield
        return
    # Read by OpenMP when the new process loads it, and by `use_threads` there.
    os.environ[CHOICES[0]] = str(max(1, usable_cores() // processes))
    try:
        yield
    finally:
        del os.environ[CHOICES[0]]


def use_threads(count: int = 0) -> int:
    """Sets the number of threads of PyTorch and OpenCV in this process.

    Args:
        count: The number asked for; 0 = that of CHOICES, else all usable cores.

    Returns:
        The number.
    """
    import cv2
    import torch

    if not count and not any(os.environ.get(name) for name in CHOICES):
        count = usable_cores()
    if count:
        torch.set_num_threads(count)
    cv2.setNumThreads(torch.get_num_threads())
    return torch.get_num_threads()
