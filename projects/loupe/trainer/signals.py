"""Ending a run in good order when it is told to."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

# Schedulers send the first or the last, a terminal's Ctrl-C the second.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# A signal that comes again within so many seconds is the same request: a terminal and a launcher
# both send it.
REPETITION = 2.0

logger = logging.getLogger(__name__)


class Stopped(BaseException):  # noqa: N818  (as KeyboardInterrupt: not an error)
    """The run ends early because a signal asked for it.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopRequest:
    """Whether a signal has asked this run to stop.

    Attributes:
        number: The signal's; None = go on.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Notes signals instead of dying of them; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            # Not through `logging`: the signal may have interrupted it while it holds its lock.
            text = f"{signal.Signals(number).name}: saving after this step. Send it again to die.\n"
            os.write(2, text.encode())
        elif time.monotonic() - self._since > REPETITION:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def agreed(self) -> int | None:
        """The signal that any process of the run has received; all must ask together."""
        if comm.get_world_size() == 1:
            return self.number
        return next((number for number in comm.all_gather(self.number) if number), None)


class StopsEvaluation(DatasetEvaluator):
    """Ends an evaluation between two batches if the run has to stop.

    It rides along as a further evaluator. Several processes finish the evaluation: those that were
    not told would wait for the others.
    """

    def __init__(self, request: StopRequest) -> None:
        self.request = request

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Raises `Stopped` if a signal has come."""
        if self.request.number is not None and comm.get_world_size() == 1:
            raise Stopped(self.request.number)

    def evaluate(self) -> None:
        """Gives no metrics."""
