"""A test that would wait for ever fails.

The functions of modules are imported by name, since tests replace those in the modules.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import kill
from pathlib import Path
from signal import ITIMER_REAL, SIGALRM, SIGKILL, getitimer, setitimer, signal
from types import FrameType

import pytest

# Far more than any test takes, on a busy machine too.
MOST_SECONDS = 1200
# What the failure leaves on its way out, such as a pool, may wait for ever as well.
SECONDS_MORE = 30


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fails where the block takes longer; whatever its child processes do, they end before.

    Only the main thread can be interrupted. Blocks may lie in one another.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def fail(number: int, frame: FrameType | None) -> None:
        for child in _children():
            with suppress(ProcessLookupError):
                kill(child, SIGKILL)
        pytest.fail(f"it has taken more than {seconds} seconds")

    handler = signal(SIGALRM, fail)
    timer = getitimer(ITIMER_REAL)
    try:
        setitimer(ITIMER_REAL, seconds, SECONDS_MORE)
        yield
    finally:
        setitimer(ITIMER_REAL, *timer)
        signal(SIGALRM, handler)


def _children() -> list[int]:
    """Child processes of this one; none where there is no /proc."""
    words = []
    for listed in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # Threads end.
            words += listed.read_text().split()
    return list(map(int, words))
