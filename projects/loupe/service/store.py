"""Predictions on the disk: a row of SQLite and a folder of files for each.

    store/
        predictions.sqlite
        files/ID/upload          the image as it came
        files/ID/map.png, ...    what the worker wrote (see outcome.py)

A row is added after its upload is written and is finished after its files are, so a process that is
killed at any moment leaves no finished row without files. `recover` deals with all that is left.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

# Names in a prediction's folder: the image as it came, and what outcome.py makes.
UPLOAD = "upload"
PICTURES = ("map.png", "mask.png", "preview.jpg", "preview_map.png")
_ID = re.compile(r"[0-9a-f]{32}")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS predictions (
    id TEXT PRIMARY KEY,
    file TEXT NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    finished REAL,
    status INTEGER,
    error TEXT NOT NULL DEFAULT '',
    result TEXT NOT NULL DEFAULT '{}'
)
"""
_COLUMNS = "id, file, state, created, finished, status, error, result"


class State(str, Enum):
    """Where a prediction is on its way."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


UNFINISHED = (State.QUEUED, State.RUNNING)


class Record(NamedTuple):
    """One row.

    Attributes:
        id: 32 hexadecimal digits, drawn at random: who does not know it cannot guess it.
        file: Name that the client gave.
        state: See `State`.
        created, finished: Seconds since 1970; `finished` None = not yet.
        status: HTTP status that says the end to a client; None = not yet.
        error: Why there is no prediction; "" otherwise.
        result: What the worker told (outcome.py); empty before.
    """

    id: str
    file: str
    state: State
    created: float
    finished: float | None
    status: int | None
    error: str
    result: dict[str, Any]


class StoreError(ValueError):
    """A folder that cannot be a store: names it, the fault and the remedy."""


class Store:
    """The one owner of a store's folder; many threads may use it.

    Args:
        folder: Made if it is missing.

    Raises:
        StoreError: Another service has it, or it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.files = folder / "files"
        try:
            self.files.mkdir(parents=True, exist_ok=True)
            self._owner = FileLock(folder / ".lock", timeout=0, thread_local=False)
            self._owner.acquire()
            self._rows = sqlite3.connect(folder / "predictions.sqlite", check_same_thread=False)
            # Readers do not wait, and a killed process leaves the last whole transaction.
            self._rows.execute("PRAGMA journal_mode=WAL")
            self._rows.execute(_SCHEMA)
        except Timeout:
            raise StoreError(
                f"{folder}: another service uses it; stop that or give another --store"
            ) from None
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"{folder}: cannot be a store ({error}); give another --store"
            ) from error
        self._lock = threading.Lock()

    def close(self) -> None:
        """Lets another service have the folder."""
        with self._lock:
            self._rows.close()
        self._owner.release()

    @staticmethod
    def new_id() -> str:
        """An identifier that no other prediction has and nobody can guess."""
        return secrets.token_hex(16)

    def folder(self, identifier: str) -> Path:
        """The folder of a prediction's files.

        Raises:
            KeyError: It is no identifier, but perhaps a path.
        """
        if not _ID.fullmatch(identifier):
            raise KeyError(identifier)
        return self.files / identifier

    def add(self, identifier: str, file: str) -> None:
        """Adds a queued prediction, whose upload is on the disk."""
        self._write(
            "INSERT INTO predictions (id, file, state, created) VALUES (?, ?, ?, ?)",
            (identifier, file, State.QUEUED, time.time()),
        )

    def start(self, identifiers: Iterable[str]) -> None:
        """Marks predictions that a worker has."""
        for identifier in identifiers:
            self._write(
                "UPDATE predictions SET state = ? WHERE id = ? AND state = ?",
                (State.RUNNING, identifier, State.QUEUED),
            )

    def finish(self, identifier: str, result: dict[str, Any]) -> None:
        """Keeps what a worker has found; a cancelled prediction stays cancelled."""
        self._end(identifier, State.DONE, 200, "", result)

    def fail(self, identifier: str, status: int, error: str, state: State = State.FAILED) -> None:
        """Keeps why there is no prediction."""
        self._end(identifier, state, status, error, {})

    def _end(
        self, identifier: str, state: State, status: int, error: str, result: dict[str, Any]
    ) -> None:
        self._write(
            "UPDATE predictions SET state = ?, finished = ?, status = ?, error = ?, result = ?"
            " WHERE id = ? AND state IN (?, ?)",
            (state, time.time(), status, error, json.dumps(result), identifier, *UNFINISHED),
        )

    def get(self, identifier: str) -> Record | None:
        """A prediction's row; None if there is none."""
        with self._lock:
            row = self._rows.execute(
                f"SELECT {_COLUMNS} FROM predictions WHERE id = ?", (identifier,)
            ).fetchone()
        if row is None:
            return None
        identifier, file, state, created, finished, status, error, result = row
        return Record(
            identifier, file, State(state), created, finished, status, error, json.loads(result)
        )

    def remove(self, identifier: str) -> None:
        """Removes a prediction and its files."""
        self._write("DELETE FROM predictions WHERE id = ?", (identifier,))
        shutil.rmtree(self.folder(identifier), ignore_errors=True)

    def recover(self) -> int:
        """Marks what an earlier service left unfinished, and removes files that have no row.

        Returns:
            Number of predictions that were marked.
        """
        marked = self._write(
            "UPDATE predictions SET state = ?, finished = ?, status = 503, error = ?"
            " WHERE state IN (?, ?)",
            (
                State.INTERRUPTED,
                time.time(),
                "the service stopped before it came to this image; send it again",
                *UNFINISHED,
            ),
        )
        with self._lock:
            known = {row[0] for row in self._rows.execute("SELECT id FROM predictions")}
        for folder in self.files.iterdir():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        for left in self.files.glob("*/.unfinished-*"):
            left.unlink(missing_ok=True)
        return marked

    def expire(self, days: float) -> int:
        """Removes finished predictions older than so many days; returns how many."""
        with self._lock:
            rows = self._rows.execute(
                "SELECT id FROM predictions WHERE finished < ?", (time.time() - 86_400 * days,)
            ).fetchall()
        for (identifier,) in rows:
            self.remove(identifier)
        return len(rows)

    def _write(self, statement: str, values: tuple[object, ...]) -> int:
        with self._lock, self._rows:
            return self._rows.execute(statement, values).rowcount
