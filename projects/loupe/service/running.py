"""Store, queue and workers of a running service: accepting, cancelling, stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from loupe.data.images.errors import ImageFaultError, TooLargeError
from loupe.data.images.files import read_regular_file
from loupe.data.images.formats import format_of, inspect
from loupe.data.images.limits import LIMITS, Limits
from loupe.service.logs import log
from loupe.service.metrics import Metrics
from loupe.service.queue import Job, JobQueue
from loupe.service.settings import Settings
from loupe.service.store import UPLOAD, State, Store
from loupe.service.supervisor import Supervisor, interrupt
from loupe.service.worker import Build

CLIENT_LEFT = 499
_LOOK = 0.05
# Uploads that are inspected at the same time: each is in memory meanwhile.
_INSPECTED = 2
_LONGEST_NAME = 200
_EXPIRE_SECONDS = 600.0


class RefusedError(Exception):
    """An upload that is not accepted: HTTP status and the reader's sentence."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status


class Device(NamedTuple):
    """A device and what makes its predictor, in its worker."""

    name: str
    build: Build


class RunningService:
    """Everything behind the API.

    Args:
        settings: Limits and places.
        devices: One worker for each.
        give_up: Called with the reason when a worker cannot be started.

    Raises:
        StoreError: The folder cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        devices: Sequence[Device],
        give_up: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.settings = settings
        self.store = Store(settings.store)
        self.queue = JobQueue(settings.queue, len(devices))
        self.metrics = Metrics(lambda: len(self.queue), lambda: self.ready_workers)
        self.stopping = False
        self._jobs: dict[str, Job] = {}
        self._inspecting = threading.BoundedSemaphore(_INSPECTED)
        self._ended = threading.Event()
        self._finishing = threading.Thread(target=self._finish, name="finishing")
        self.supervisors = [
            Supervisor(
                device.name,
                device.build,
                self.queue,
                self.store,
                self.metrics,
                batch=settings.batch,
                max_seconds=settings.max_seconds,
                give_up=give_up,
            )
            for device in devices
        ]

    @property
    def ready_workers(self) -> int:
        """Workers that take images."""
        return sum(supervisor.ready for supervisor in self.supervisors)

    @property
    def model(self) -> dict[str, Any]:
        """Facts of the model; empty until a worker is ready."""
        return next((one.model for one in self.supervisors if one.model), {})

    def start(self) -> None:
        """Marks what an earlier service left, and starts the workers."""
        marked = self.store.recover()
        log("service starts", store=self.settings.store, interrupted=marked)
        for supervisor in self.supervisors:
            supervisor.start()
        if self.settings.keep_days:
            threading.Thread(target=self._expire, daemon=True).start()

    def begin_stop(self) -> None:
        """Accepts nothing more; what was accepted has `stop_seconds`, the rest is handed back."""
        if not self.stopping:
            self.stopping = True
            self._finishing.start()

    def stop(self) -> None:
        """Returns when everything has ended."""
        self.begin_stop()
        self._finishing.join()
        self.store.close()

    def _finish(self) -> None:
        deadline = time.monotonic() + self.settings.stop_seconds
        while self._jobs and time.monotonic() < deadline and self.ready_workers:
            time.sleep(_LOOK)
        left = self.queue.drain()
        for job in left:
            interrupt(self.store, job)
        for supervisor in self.supervisors:
            supervisor.kill() if self._jobs else supervisor.stop()
        for supervisor in self.supervisors:
            supervisor.join()
        left += self._jobs.values()
        for job in self._jobs.copy().values():
            interrupt(self.store, job)
        self._ended.set()
        log("service stops", handed_back=len(left))

    def accept(self, name: str, write: Callable[[Path], None]) -> Job:
        """Takes an image in, after looking at its header.

        Args:
            name: That the client gave.
            write: Writes the upload to a path.

        Raises:
            RefusedError: It is no image, too large, or the service stops.
            QueueFullError: There is no place.
        """
        if self.stopping:
            raise RefusedError(503, "the service stops; send it again later")
        self.queue.check()
        identifier = self.store.new_id()
        folder = self.store.folder(identifier)
        job = Job(identifier, plain_name(name), folder)
        folder.mkdir()
        try:
            write(folder / UPLOAD)
            with self._inspecting:
                self._inspect(job)
            self.store.add(identifier, job.file)
            self._jobs[identifier] = job
            job.ended.add_done_callback(partial(self._forget, identifier))
            self.queue.put(job)
        except BaseException:
            self._jobs.pop(identifier, None)
            self.store.remove(identifier)
            raise
        return job

    def _inspect(self, job: Job) -> None:
        limits = Limits(min(self.settings.max_pixels, LIMITS.pixels), LIMITS.bytes)
        status = 422
        try:
            content = read_regular_file(job.folder / UPLOAD, limits.bytes)
            if not format_of(content):
                status = 415
            inspect(content, limits)
        except TooLargeError as fault:
            raise RefusedError(413, f"{job.file}: {fault.problem}; {fault.remedy}") from None
        except ImageFaultError as fault:
            raise RefusedError(status, f"{job.file}: {fault.problem}; {fault.remedy}") from None
        except Exception as error:  # Pillow's readers of headers raise whatever they like.
            how = " ".join(str(error).split()) or type(error).__name__
            raise RefusedError(status, f"{job.file}: the file is damaged ({how})") from None

    def job(self, identifier: str) -> Job | None:
        """A job that has not ended."""
        return self._jobs.get(identifier)

    def cancel(self, identifier: str, *, remove: bool = False) -> None:
        """Ends a prediction that nobody waits for: at once if it waits, unseen if it runs.

        Args:
            identifier: Of the prediction.
            remove: Also removes its row and its files.
        """
        job = self._jobs.get(identifier)
        sentence = "cancelled by the client"
        self.store.fail(identifier, CLIENT_LEFT, sentence, State.CANCELLED)
        waiting = self.queue.cancel(identifier)
        if remove:
            self.store.remove(identifier)
        if waiting is not None:
            waiting.end()
        elif remove and job is not None:
            # A worker has it and writes into the folder.
            job.ended.add_done_callback(lambda _: self.store.remove(identifier))

    def _forget(self, identifier: str, _: object) -> None:
        self._jobs.pop(identifier, None)

    def _expire(self) -> None:
        while True:
            removed = self.store.expire(self.settings.keep_days)
            if removed:
                log("old predictions removed", count=removed)
            if self._ended.wait(_EXPIRE_SECONDS):
                return


def plain_name(name: str) -> str:
    r"""A client's name of a file as one line of text without folders.

    Example:
        >>> plain_name("../../etc/passwd"), plain_name("C:\\photos\\a.jpg"), plain_name("")
        ('passwd', 'a.jpg', 'image')
    """
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(letter if letter.isprintable() else "?" for letter in last)
    return printable[:_LONGEST_NAME].strip() or "image"
