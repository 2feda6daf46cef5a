"""Child processes: they end when their parent ends, and tell it their errors in their own words."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import parent_process
from types import TracebackType
from typing import NamedTuple, NoReturn

# Seconds between two looks at the parent.
PERIOD = 1.0


def follow_parent() -> None:
    """Ends this process soon after its parent has died, however that died.

    Without it the workers of a killed process wait for work for ever, each with its memory.
    """
    threading.Thread(target=_end_after, args=(_is_alive(),), daemon=True).start()


def serve_parent() -> None:
    """Also leaves signals to the parent: for workers, called first thing in each.

    Ctrl-C and schedulers signal all processes of a run at once. The parent ends its step and saves,
    and needs its workers for that; then it ends them itself.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _except_lost_connections
    if not hasattr(signal, "sigtimedwait"):  # macOS: SIGTERM ends the worker, whoever sent it.
        follow_parent()
        return
    # The parent ends its workers by SIGTERM, so the sender has to be asked for.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = parent_process()
    arguments = (_is_alive(), None if parent is None else parent.pid)
    threading.Thread(target=_end_when_told, args=arguments, daemon=True).start()


def _except_lost_connections(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Says nothing where the parent ended in the middle of taking a batch: it has said why.

    The thread that hands tensors over would print this otherwise, behind the parent's last line.
    """
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _is_alive() -> Callable[[], bool]:
    """Says whether the parent of now still lives, each time it is asked."""
    parent = parent_process()
    if parent is None or parent.pid is None:  # Not started by Python: torchrun's, say.
        first = os.getppid()
        return lambda: os.getppid() == first
    # Under a fork server the parent is another process than the one that forked this one.
    if os.getppid() != parent.pid:
        return parent.is_alive
    return lambda: os.getppid() == parent.pid


def _end_after(is_alive: Callable[[], bool]) -> None:
    while is_alive():
        time.sleep(PERIOD)
    os._exit(1)


def _end_when_told(is_alive: Callable[[], bool], parent: int | None) -> None:
    while is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, PERIOD)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)


class _ChildError(Exception):
    """Where in a child process an error comes from: its traceback."""


class Failure(NamedTuple):
    """An error on its way from a child process to its parent.

    Attributes:
        error: The error, pickled.
        trace: Its traceback.
    """

    error: bytes
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Keeps an error that is being handled, or its words: not every error can be pickled."""
        try:
            content = pickle.dumps(error)
            pickle.loads(content)
        except Exception:
            content = pickle.dumps(ValueError(str(error)))
        return cls(content, traceback.format_exc())

    def raise_again(self) -> NoReturn:
        """Raises the error in the parent; what caused it is the child's traceback."""
        raise pickle.loads(self.error) from _ChildError(self.trace)
