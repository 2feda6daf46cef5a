"""A test that would wait for ever fails."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
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
                os.kill(child, signal.SIGKILL)
        pytest.fail(f"it has taken more than {seconds} seconds")

    handler = signal.signal(signal.SIGALRM, fail)
    timer = signal.getitimer(signal.ITIMER_REAL)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, SECONDS_MORE)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def _children() -> list[int]:
    """Child processes of this one; none where there is no /proc."""
    words = []
    for listed in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # Threads end.
            words += listed.read_text().split()
    return list(map(int, words))
