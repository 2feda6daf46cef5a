"""Images that wait for a worker: bounded, in order of arrival, handed out in batches."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

# Weight of the last image in the mean of seconds.
_NEW = 0.2
_FIRST_GUESS, _LONGEST_WAIT = 1.0, 600


@dataclass(eq=False)
class Job:
    """One image on its way.

    Attributes:
        id: Of the prediction.
        file: Name that the client gave.
        folder: Of its files.
        ended: Done once the store holds the end of it, whatever that is.
        suspect: It was in a batch on which a worker was lost, so it is tried by itself.
    """

    id: str
    file: str
    folder: Path
    ended: Future[None] = field(default_factory=Future)
    suspect: bool = False

    def end(self) -> None:
        """Tells those who wait; a second end changes nothing."""
        with suppress(InvalidStateError):
            self.ended.set_result(None)


class QueueFullError(Exception):
    """There is no place. `retry_after`: seconds after which there probably is one."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class JobQueue:
    """Jobs of all devices.

    Args:
        places: Jobs that may wait.
        devices: Workers that take them.
    """

    def __init__(self, places: int, devices: int = 1) -> None:
        self.places = places
        self._devices = devices
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._seconds = _FIRST_GUESS

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Adds a job at the end.

        Raises:
            QueueFullError: So many wait already.
        """
        with self._changed:
            self._check()
            self._jobs.append(job)
            self._changed.notify()

    def check(self) -> None:
        """Raises QueueFullError if there is no place now."""
        with self._changed:
            self._check()

    def _check(self) -> None:
        if len(self._jobs) >= self.places:
            seconds = math.ceil(len(self._jobs) * self._seconds / self._devices)
            raise QueueFullError(min(max(seconds, 1), _LONGEST_WAIT))

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Puts jobs of a lost worker at the front, whatever waits."""
        with self._changed:
            self._jobs.extendleft(reversed(list(jobs)))
            self._changed.notify_all()

    def take(self, most: int, timeout: float) -> list[Job]:
        """The next jobs, at most so many; a suspect one comes alone. Empty after the timeout."""
        with self._changed:
            if not self._jobs:
                self._changed.wait(timeout)
            taken: list[Job] = []
            while self._jobs and len(taken) < most:
                if self._jobs[0].suspect and taken:
                    break
                taken.append(self._jobs.popleft())
                if taken[-1].suspect:
                    break
            return taken

    def cancel(self, identifier: str) -> Job | None:
        """Takes a job out; None if it does not wait (any more)."""
        with self._changed:
            for job in self._jobs:
                if job.id == identifier:
                    self._jobs.remove(job)
                    return job
        return None

    def drain(self) -> list[Job]:
        """Takes all jobs out."""
        with self._changed:
            jobs = list(self._jobs)
            self._jobs.clear()
            return jobs

    def position(self, identifier: str) -> int | None:
        """How many jobs come before one; None if it does not wait."""
        with self._changed:
            return next((n for n, job in enumerate(self._jobs) if job.id == identifier), None)

    def took(self, seconds: float) -> None:
        """Notes how long a worker took for an image, from which waiting is estimated."""
        self._seconds += _NEW * (seconds - self._seconds)
