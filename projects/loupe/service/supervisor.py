"""Starts the worker of a device, feeds it, and starts it anew when it is lost.

A worker is lost when it ends (a decoder crashed, the memory was full) or takes too long for an
image. Images of its batch are then tried one by one, and the one on which a second worker is lost
fails; the others never notice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from loupe.service.logs import log
from loupe.service.metrics import Metrics
from loupe.service.queue import Job, JobQueue
from loupe.service.store import State, Store
from loupe.service.worker import (
    SERVER_FAULT,
    UNPROCESSABLE,
    Build,
    Ended,
    Failed,
    Ready,
    serve_jobs,
)

# Starts without success after which the service gives up.
_MOST_STARTS = 3
_START_SECONDS = 600.0
_LOOK = 0.2


class Supervisor(threading.Thread):
    """The thread behind one device.

    Args:
        device: Name of the device.
        build: Makes its predictor, in the worker.
        queue: Where jobs come from.
        store: Where their ends go to.
        metrics: Counts.
        batch: Jobs that are sent at once.
        max_seconds: For one image.
        give_up: Called with the reason when the worker cannot be started.
    """

    def __init__(
        self,
        device: str,
        build: Build,
        queue: JobQueue,
        store: Store,
        metrics: Metrics,
        *,
        batch: int,
        max_seconds: float,
        give_up: Callable[[str], None],
    ) -> None:
        super().__init__(name=f"supervisor of {device}", daemon=True)
        self.device = device
        self.model: dict[str, Any] = {}
        self.ready = False
        self.busy: dict[str, Job] = {}
        self._build, self._queue, self._store, self._metrics = build, queue, store, metrics
        self._batch, self._max_seconds, self._give_up = batch, max_seconds, give_up
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._starts = 0
        self._stopping = threading.Event()

    def run(self) -> None:
        """Serves until `stop`."""
        while not self._stopping.is_set():
            if (self._connection is None or self._is_dead()) and not self._start_worker():
                continue
            jobs = self._queue.take(self._batch, _LOOK)
            if jobs:
                self._serve(jobs)
        self._end_worker()

    def stop(self) -> None:
        """Ends the worker once its batch is done."""
        self._stopping.set()

    def kill(self) -> None:
        """Ends the worker at once; what it had is lost."""
        self._stopping.set()
        if self._process is not None:
            self._process.kill()

    def _is_dead(self) -> bool:
        return self._process is None or not self._process.is_alive()

    def _start_worker(self) -> bool:
        """Starts a worker and waits for it; False if it cannot start."""
        self.ready = False
        self._end_worker()
        if self._starts >= _MOST_STARTS:
            self._fatal(f"the worker of {self.device} did not start in {_MOST_STARTS} attempts")
            return False
        self._starts += 1
        context = get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(
            target=serve_jobs, args=(child, self._build), name=f"loupe {self.device}"
        )
        self._process.start()
        child.close()
        deadline = time.monotonic() + _START_SECONDS
        while not self._stopping.is_set() and time.monotonic() < deadline:
            message = self._receive(_LOOK)
            if isinstance(message, Failed):
                self._fatal(message.error)
                return False
            if isinstance(message, Ready):
                self.model, self.ready, self._starts = message.model, True, 0
                log("worker is ready", device=self.device, process=self._process.pid)
                return True
            if self._is_dead():
                return False
        # Left alive it would look like a worker that is ready, and health would say "starting".
        self._end_worker(kill=True)
        if not self._stopping.is_set():
            log("worker starts too slowly", level="error", device=self.device)
        return False

    def _fatal(self, reason: str) -> None:
        self._stopping.set()
        log("worker cannot start", level="error", device=self.device, error=reason)
        self._give_up(reason)

    def _serve(self, jobs: list[Job]) -> None:
        assert self._connection is not None
        self.busy = {job.id: job for job in jobs}
        self._store.start(self.busy)
        deadline = time.monotonic() + self._max_seconds * len(jobs)
        with suppress(OSError):  # It died while it was idle: seen below.
            self._connection.send([(job.id, job.file, job.folder) for job in jobs])
        while self.busy:
            message = self._receive(_LOOK)
            if isinstance(message, Ended):
                self._end(self.busy.pop(message.id), message)
            elif self._is_dead():
                self._lose("the worker ended on it; it may need more memory than there is")
            elif time.monotonic() > deadline:
                self._lose(f"it took longer than {self._max_seconds:g} s; shrink it", UNPROCESSABLE)

    def _receive(self, seconds: float) -> object:
        """The next message; None if there is none in time, or never again."""
        assert self._connection is not None
        try:
            return self._connection.recv() if self._connection.poll(seconds) else None
        except (EOFError, OSError):
            if self._process is not None:
                self._process.join(seconds)
            return None

    def _end(self, job: Job, message: Ended) -> None:
        if message.error:
            self._store.fail(job.id, message.status, message.error)
        else:
            self._store.finish(job.id, message.result)
        self._queue.took(message.seconds)
        verdict = message.result.get("verdict") or "none"
        self._metrics.predicted(verdict if not message.error else "failed", message.seconds)
        log(
            "image ended",
            level="info" if message.status < SERVER_FAULT else "error",
            id=job.id,
            status=message.status,
            seconds=round(message.seconds, 3),
            error=message.error,
        )
        job.end()

    def _lose(self, reason: str, status: int = SERVER_FAULT) -> None:
        """Ends the worker and deals with the jobs that it had."""
        jobs, self.busy = list(self.busy.values()), {}
        self._end_worker(kill=True)
        self._metrics.lost_workers.inc()
        log("worker is lost", level="error", device=self.device, error=reason, images=len(jobs))
        if self._stopping.is_set():
            for job in jobs:
                interrupt(self._store, job)
        elif len(jobs) == 1 and (jobs[0].suspect or status == UNPROCESSABLE):
            message = Ended(jobs[0].id, 0.0, status, f"{jobs[0].file}: {reason}", {})
            self._end(jobs[0], message)
        else:
            for job in jobs:
                job.suspect = True
            self._queue.put_back(jobs)

    def _end_worker(self, *, kill: bool = False) -> None:
        """Ends the process, if there is one."""
        self.ready = False
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            if kill:
                self._process.kill()
            self._process.join(5)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
        self._connection = self._process = None


def interrupt(store: Store, job: Job) -> None:
    """Hands a job back to its client: the service stops."""
    store.fail(
        job.id, 503, f"{job.file}: the service stops; send it again later", State.INTERRUPTED
    )
    job.end()
