"""Keeps the index of a large data set in a file, and knows when it is out of date.

The file lies in the folder that the environment variable LOUPE_CACHE names (by default
`~/.cache/loupe`), in `index/`. It is taken only if all of this is as it was when it was written:

    * a list file: its size and time of change;
    * a folder with a manifest: the same of the manifest;
    * any other folder: the times of change of it and of all folders below it (which change when a
      file is added, removed or renamed), and size and time of all `.csv` in them;
    * the code of this package, since it decides what a tree means;
    * the path as it was given, and what it means from the current folder.

Not noticed: an image or mask that is overwritten under its name (an index holds no pixels), and a
change that sets the time back.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from loupe.data.sources.coco import CACHE_VARIABLE
from loupe.data.sources.index import (
    DatasetIndex,
    IndexFileError,
    make_index,
    read_about,
    text_arrays,
)
from loupe.data.sources.pairing import DatasetDict

# Smaller sets are listed in less than a second.
SMALLEST_CACHED = 20_000
# What has changed so recently may change again without showing it: clocks of file systems are
# coarse.
SETTLED_NS = 2_000_000_000

_logger = logging.getLogger(__name__)

Lister = Callable[[], Iterable[DatasetDict]]
# Path -> size and time of change in ns; folders have size -1.
Stamps = dict[str, tuple[int, int]]


def cached_index(path: Path, lister: Lister) -> DatasetIndex | list[DatasetDict]:
    """Index of a list file or folder, from its file where that is up to date.

    Several processes may ask at once: one lists, the others wait for it.

    Args:
        path: list file or folder.
        lister: lists its dataset dicts.

    Returns:
        The index; a list of dicts if they hold what an index cannot.
    """
    file = index_file(path)
    index = _open_fresh(file, path)
    if index is not None:
        return index
    with _one_at_a_time(path):
        return _open_fresh(file, path) or _list(file, path, lister)


def index_file(path: Path) -> Path:
    """Where the index of a data set is kept."""
    root = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "loupe")
    key = f"{path}\0{os.path.abspath(path)}".encode("utf-8", "surrogateescape")
    return root / "index" / f"{hashlib.blake2b(key, digest_size=12).hexdigest()}.index"


def _list(file: Path, path: Path, lister: Lister) -> DatasetIndex | list[DatasetDict]:
    start = time.time_ns()
    stamps = _stamp_all(path)
    entries = lister()
    index = make_index(entries)
    if index is None:
        return list(entries)
    del entries
    if len(index) < SMALLEST_CACHED:
        return index
    if stamps != _stamp_again(stamps):
        _logger.warning("%s has changed while it was listed; start again to be sure", path)
        return index
    if max(changed for _, changed in stamps.values()) > start - SETTLED_NS:
        _logger.info("%s has just changed: its index is not kept this time", path)
        return index
    watched = text_arrays("watched", stamps)
    watched["stamps"] = np.array(list(stamps.values()), np.int64).reshape(-1)
    try:
        index.write(file, {"path": str(path), "readers": _readers_digest()}, watched)
        return DatasetIndex.open(file, verify=False)
    except OSError as error:
        _warn_once(str(file.parent), str(error))
        return index


def _open_fresh(file: Path, path: Path) -> DatasetIndex | None:
    """The index in a file; None if there is none, or none of the data set as it is now."""
    try:
        about = read_about(file)
        if about.get("path") != str(path) or about.get("readers") != _readers_digest():
            return None
        index = DatasetIndex.open(file)
        stamps = index.extra("stamps").reshape(-1, 2).tolist()
        known = dict(zip(index.texts("watched"), map(tuple, stamps), strict=True))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, IndexFileError, KeyError, ValueError, TypeError, AttributeError) as error:
        _logger.warning("The index of %s cannot be used and is made anew: %s", path, error)
        return None
    changed = next((name for name, stamp in known.items() if _stamp(name) != stamp), None)
    if changed is not None:
        _logger.info("%s has changed: the index of %s is made anew", changed, path)
        return None
    return index


def _stamp(path: str) -> tuple[int, int] | None:
    """Size and time of change; None if it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return -1 if stat.S_ISDIR(found.st_mode) else found.st_size, found.st_mtime_ns


def _stamp_all(path: Path) -> Stamps:
    """Stamps of everything that the entries of a data set depend on."""
    manifest = path / "manifest.csv"
    if path.is_dir() and not manifest.is_file():
        watched: Iterable[str] = _walk(str(path))
    else:
        watched = [str(manifest if path.is_dir() else path)]
    return {name: _stamp(name) or (0, 0) for name in watched}


def _stamp_again(stamps: Stamps) -> Stamps:
    return {name: _stamp(name) or (0, 0) for name in stamps}


def _walk(folder: str) -> Iterator[str]:
    """A folder, all folders below it, and the lists in them; hidden ones left out."""
    yield folder
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path)
            elif entry.name.lower().endswith(".csv"):
                yield entry.path


@lru_cache(maxsize=1)
def _readers_digest() -> str:
    """Digest of the code that lists data sets."""
    digest = hashlib.blake2b(digest_size=12)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


@cache
def _warn_once(folder: str, error: str) -> None:
    _logger.warning(
        "Indices of data sets cannot be kept in %s (%s): they are made at each start, and workers "
        "that are spawned copy them; set %s to a folder that can be written",
        folder,
        error,
        CACHE_VARIABLE,
    )


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Waits until no other process lists the same data set.

    The lock is on the data set, so that no file is made for it, and ends with the process.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        yield  # Whoever lists it says what is wrong.
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            _logger.debug("%s: no locks on this file system", path)
        yield
    finally:
        os.close(handle)
