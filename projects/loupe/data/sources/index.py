"""A data set's entries as columns of an Arrow file, which processes map into memory and share.

A list of 1.5 million dicts takes over a gigabyte, and each process that reads it soon owns a copy.
Here an entry becomes a dict when it is asked for. What goes to a worker is the file's name.

The file (an Arrow stream and its CRC-32) lies in `index/` of `files.cache_folder()`. It is taken
only if all of this is as it was when it was written:

    * a list file, or a folder with a manifest: size and time of change of the list;
    * any other folder: the times of change of it and of all folders below (which change when a file
      is added, removed or renamed), and size and time of all `.csv` in them;
    * the code of this package, since it decides what a tree means;
    * the path as it was given, and what it means from the current folder.

Not noticed: an image or mask that is overwritten under its name (an index holds no pixels), and a
change that sets the time back.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import mmap
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loupe.data.sources.entries import DatasetDict, make_dataset_dict
from loupe.data.sources.files import CACHE_VARIABLE, cache_folder, find_files
from loupe.writing import replacing

UNLABELLED = -1
# Smaller sets are listed in less than a second.
SMALLEST_CACHED = 20_000
# What has changed so recently may change again without showing it: file systems' clocks are coarse.
SETTLED_NS = 2_000_000_000

_ROWS_AT_ONCE = 1 << 16
# Split at their last slash, since few folders hold many files.
_PATHS = ("file_name", "mask_file_name", "image_id")
# Few different values each.
_CODES = ("technique", "source", "mask_rule")
_NEEDED = {*_PATHS, "label", "technique", "source"}
_KEYS = {*_NEEDED, "mask_rule", "wholly_forged"}

_logger = logging.getLogger(__name__)

# Path -> size and time of change in ns; folders have size -1.


class DatasetIndex:
    """Dataset dicts, in the order in which they were listed, each made when it is asked for.

    Attributes:
        labels: (N,) int8: 1 forged, 0 authentic, UNLABELLED.
    """

    def __init__(self, batch: pa.RecordBatch, file: Path | None = None, check: int = 0) -> None:
        """Takes columns, and the file that they are mapped from with its checksum, if any."""
        self._batch, self._file, self._check = batch, file, check
        self._columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        self.labels: np.ndarray = self._columns["label"].to_numpy()

    @classmethod
    def open(cls, file: Path, *, verify: bool = True) -> DatasetIndex:
        """Maps a file that `write` has written.

        Args:
            file: path of it.
            verify: read all of it once and compare its checksum.

        Raises:
            ValueError: it is no index, or a damaged one.
            OSError: it cannot be read.
        """
        with open(file, "rb") as stream:
            content = pa.py_buffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        body, tail = content.slice(0, max(0, content.size - 4)), content.slice(content.size - 4)
        check = int.from_bytes(tail.to_pybytes(), "little")
        if verify and zlib.crc32(body) != check:
            raise ValueError(f"{file}: the checksum does not fit")
        return cls(pa.ipc.open_stream(body).read_next_batch(), file, check)

    def write(self, file: Path, about: dict[str, Any]) -> None:
        """Writes the columns, whole or not at all; `about` is kept with them."""
        batch = self._batch.replace_schema_metadata({"about": json.dumps(about)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        body = sink.getvalue()
        with replacing(file) as stream:
            stream.write(body)
            stream.write(zlib.crc32(body).to_bytes(4, "little"))

    @property
    def about(self) -> dict[str, Any]:
        """What was said about the index when it was written."""
        return json.loads((self._batch.schema.metadata or {})[b"about"])

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return self._batch.nbytes

    def __len__(self) -> int:
        """Number of entries."""
        return self._batch.num_rows

    def __getitem__(self, index: int) -> DatasetDict:
        """The dataset dict at a place, a new one each time."""
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"entry {index} of {len(self)}")
        label = int(self.labels[row])
        entry = make_dataset_dict(
            self._path("file_name", row) or "",
            self._path("image_id", row) or "",
            label=None if label == UNLABELLED else label,
            mask_file_name=self._path("mask_file_name", row),
            technique=self._text("technique", row) or "",
            source=self._text("source", row) or "",
            wholly_forged=self._columns["wholly_forged"][row].as_py(),
        )
        rule = self._text("mask_rule", row)
        return entry | {"mask_rule": rule} if rule else entry

    def __reduce__(self) -> tuple[Callable[..., DatasetIndex], tuple[Any, ...]]:
        """The file's name where there is a file, so that workers map it, too."""
        if self._file is None:
            return DatasetIndex, (self._batch,)
        return _reopen, (self._file, self._check)

    def _path(self, name: str, row: int) -> str | None:
        folder = self._text(f"{name}.folder", row)
        return None if folder is None else folder + (self._text(name, row) or "")

    def _text(self, name: str, row: int) -> str | None:
        value = self._columns[name][row].as_py()
        return None if value is None else value.decode("utf-8", "surrogatepass")


def _reopen(file: Path, check: int) -> DatasetIndex:
    index = DatasetIndex.open(file, verify=False)
    if index._check != check:
        raise ValueError(f"{file}: the data set has changed; start again")
    return index


def labels_of(entries: DatasetIndex | Sequence[DatasetDict]) -> np.ndarray:
    """(N,) int8: 1 forged, 0 authentic, UNLABELLED."""
    if isinstance(entries, DatasetIndex):
        return entries.labels
    known = [UNLABELLED if one["label"] is None else one["label"] for one in entries]
    return np.array(known, np.int8)


def make_index(entries: Sequence[DatasetDict]) -> DatasetIndex | None:
    """Columns of dataset dicts; None if they hold what columns cannot."""
    if not all(map(_fits, entries)):
        return None
    columns = {
        "label": pa.array(labels_of(entries), pa.int8()),
        "wholly_forged": pa.array([bool(e.get("wholly_forged")) for e in entries], pa.bool_()),
    }
    for name in _PATHS:
        folders = _texts(e[name] and e[name][: e[name].rfind("/") + 1] for e in entries)
        columns[f"{name}.folder"] = folders.dictionary_encode()
        columns[name] = _texts(e[name] and e[name][e[name].rfind("/") + 1 :] for e in entries)
    for name in _CODES:
        columns[name] = _texts(e.get(name, "") for e in entries).dictionary_encode()
    return DatasetIndex(pa.RecordBatch.from_pydict(columns))


def _fits(entry: DatasetDict) -> bool:
    if not _NEEDED <= entry.keys() <= _KEYS:
        return False
    texts = [entry["mask_file_name"] or "", entry.get("mask_rule", "")]
    texts += [entry[name] for name in ("file_name", "image_id", "technique", "source")]
    return all(isinstance(text, str) for text in texts)


def _texts(values: Iterator[str | None]) -> pa.Array:
    # As bytes, since names need not be UTF-8; in parts, since their list takes more than they do.
    parts = [pa.array([], pa.large_binary())]
    while part := list(islice(values, _ROWS_AT_ONCE)):
        encoded = [None if v is None else v.encode("utf-8", "surrogatepass") for v in part]
        parts.append(pa.array(encoded, pa.large_binary()))
    return pa.concat_arrays(parts)


def cached_index(
    path: Path, lister: Callable[[], list[DatasetDict]]
) -> DatasetIndex | list[DatasetDict]:
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
    key = f"{path}\0{os.path.abspath(path)}".encode("utf-8", "surrogateescape")
    return cache_folder() / "index" / f"{hashlib.blake2b(key, digest_size=12).hexdigest()}.arrow"


def _list(
    file: Path, path: Path, lister: Callable[[], list[DatasetDict]]
) -> DatasetIndex | list[DatasetDict]:
    start, stamps = time.time_ns(), {name: _stamp(name) for name in _watched(path)}
    entries = lister()
    index = make_index(entries)
    if index is None or len(index) < SMALLEST_CACHED:
        return entries if index is None else index
    del entries
    if stamps != {name: _stamp(name) for name in stamps}:
        _logger.warning("%s has changed while it was listed; start again to be sure", path)
        return index
    if max(changed for _, changed in stamps.values()) > start - SETTLED_NS:
        _logger.info("%s has just changed: its index is not kept this time", path)
        return index
    try:
        index.write(file, {"path": str(path), "readers": _readers_digest(), "stamps": stamps})
        return DatasetIndex.open(file, verify=False)
    except OSError as error:
        _warn_once(str(file.parent), str(error))
        return index


def _open_fresh(file: Path, path: Path) -> DatasetIndex | None:
    """The index in a file; None if there is none, or none of the data set as it is now."""
    try:
        index = DatasetIndex.open(file)
        about = index.about
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, StopIteration) as error:
        _logger.warning("The index of %s cannot be used and is made anew: %s", path, error)
        return None
    if about["path"] != str(path) or about["readers"] != _readers_digest():
        return None
    changed = next((name for name, was in about["stamps"].items() if _stamp(name) != was), None)
    if changed is not None:
        _logger.info("%s has changed: the index of %s is made anew", changed, path)
        return None
    return index


def _stamp(path: str) -> list[int]:
    """Size and time of change; zeros if it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return [0, 0]
    return [-1 if stat.S_ISDIR(found.st_mode) else found.st_size, found.st_mtime_ns]


def _watched(path: Path) -> Iterator[str]:
    """Everything that the entries of a data set depend on."""
    manifest = path / "manifest.csv"
    if not path.is_dir() or manifest.is_file():
        yield str(manifest if path.is_dir() else path)
        return
    found = find_files(path)
    yield str(path)
    tables = (name for name in found.others if name.lower().endswith(".csv"))
    yield from (os.path.join(path, name) for name in (*found.folders, *tables))


@cache
def _readers_digest() -> str:
    """Digest of the code that lists data sets."""
    digest = hashlib.blake2b(digest_size=12)
    for source in sorted(Path(__file__).parent.rglob("*.py")):
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
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # Some network file systems have no locks.
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
