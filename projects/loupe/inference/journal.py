"""What a run over a folder has done, so that an interrupted one goes on where it stopped.

The journal lies in the output folder, a line of JSON for each image, written as soon as all of the
image's files are whole. `--resume` takes over a line where

- the settings (weights, configuration, what is written) are those of the journal,
- the image has the size in bytes and the time of change that the line says,
- every file that belongs to the image is there, and
- the image had a prediction; those that failed are tried again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loupe.model_zoo import digest_of
from loupe.writing import plain

JOURNAL = ".loupe.journal.jsonl"


class ResumeError(ValueError):
    """An output folder that a run cannot go on in; the message says why and what to do."""


def settings_digest(config: str, weights: str, writes: Sequence[str]) -> str:
    """What results depend on, besides the images.

    Args:
        config: The whole configuration as text.
        weights: Name of the weights, whose content counts.
        writes: What is written of each image.
    """
    parts = [config, digest_of(weights), *sorted(writes)]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


class Journal:
    """Lines of an earlier run, and the file that this one adds its lines to.

    Args:
        folder: Of the results.
        settings: Of `settings_digest`.
        resume: Take over what an earlier run has done; else start afresh.

    Raises:
        ResumeError: The earlier run had other settings.
    """

    def __init__(self, folder: Path, settings: str, *, resume: bool) -> None:
        self._path = folder / JOURNAL
        # Where each image's last line begins: the lines themselves stay on the disk.
        self._places: dict[str, int] = {}
        if resume and self._path.exists():
            self._read(folder, settings)
        else:
            self._path.write_text(json.dumps({"settings": settings}) + "\n")
        self._lines = self._path.open("rb")
        self._file = self._path.open("ab")

    def _read(self, folder: Path, settings: str) -> None:
        whole = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):  # The last run was stopped while it wrote.
                    break
                entry = json.loads(line)
                if whole == 0 and entry.get("settings") != settings:
                    raise ResumeError(
                        f"{folder}: was written with other weights, settings or options; give the "
                        "same, give another --output, or leave out --resume to start afresh"
                    )
                if "file" in entry:
                    self._places[entry["file"]] = whole
                whole += len(line)
        os.truncate(self._path, whole)

    def __enter__(self) -> Journal:
        """The journal itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes its files."""
        self._file.close()
        self._lines.close()

    def done(self, image: str) -> dict[str, Any] | None:
        """What was noted of an image whose results can be taken over; None = predict it."""
        place = self._places.get(_text(image))
        if place is None:
            return None
        self._lines.seek(place)
        entry = json.loads(self._lines.readline())
        if entry["row"].get("error") or entry["state"] != _state(image):
            return None
        folder = self._path.parent
        return entry if all((folder / name).is_file() for name in entry["files"]) else None

    def others(self, images: Iterable[str]) -> int:
        """Number of images that earlier runs have noted, and that are none of these."""
        return len(self._places.keys() - {_text(image) for image in images})

    def add(self, image: str, row: Mapping[str, Any], regions: Any, files: Sequence[str]) -> None:
        """Notes an image whose files are on the disk."""
        entry = {
            "file": _text(image),
            "state": _state(image),
            "row": dict(row),
            "regions": regions,
            "files": list(files),
        }
        self._file.write(json.dumps(plain(entry)).encode() + b"\n")
        self._file.flush()


def _state(image: str) -> list[int] | None:
    """Size in bytes and time of change in nanoseconds; None where there is no file."""
    try:
        status = os.stat(image)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _text(image: str) -> str:
    """A name as JSON keeps it: bytes that are no text stay lone surrogates."""
    return str(image)
