"""A data set's entries as columns of one file, which processes map into memory and share.

A list of 1.5 million dicts takes over a gigabyte, and each process that reads it soon owns a copy.
Here a path is a number for its folder and the bytes of its name; an entry becomes a dict when it is
asked for. What goes to a worker is the file's name, not its content.

The file: MAGIC, the header's length (8 bytes), the header (JSON: what the index was made from, and
type, length and place of each array), the arrays. A checksum covers the arrays.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from loupe.data.sources.pairing import DatasetDict, make_dataset_dict

UNLABELLED = -1

MAGIC = b"LOUPEIX1"
_ALIGNMENT = 64
# Paths are split at their last slash, since few folders hold many files.
_PATHS = ("file_name", "mask_file_name", "image_id")
# Few different values each.
_CODES = ("technique", "source", "mask_rule")
_KEYS = {*_PATHS, *_CODES, "label", "wholly_forged"}
_NEEDED = {"file_name", "mask_file_name", "image_id", "label", "technique", "source"}

Header = dict[str, Any]


class IndexFileError(ValueError):
    """A file that is no index, or a damaged one."""


class DatasetIndex(Sequence[DatasetDict]):
    """Dataset dicts, in the order in which they were listed, each made when it is asked for."""

    def __init__(
        self, arrays: dict[str, np.ndarray], file: Path | None = None, check: int | None = None
    ) -> None:
        """Takes columns, the file that they are mapped from, if any, and the checksum in it."""
        self._arrays = arrays
        self._file = file
        self._check = check

    @classmethod
    def open(cls, file: Path, *, verify: bool = True) -> DatasetIndex:
        """Maps a file that `write` has written.

        Args:
            file: path of it.
            verify: read all of it once and compare its checksum.

        Raises:
            IndexFileError: it is no index, or a damaged one.
            OSError: it cannot be read.
        """
        # Both of one opened file: under its name another may come to lie meanwhile.
        with open(file, "rb") as stream:
            header = _read_header(stream)
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        start = header["start"]
        if len(content) != start + header["bytes"]:
            raise IndexFileError(f"{file}: {len(content)} bytes, not {start + header['bytes']}")
        if verify and zlib.crc32(memoryview(content)[start:]) != header["checksum"]:
            raise IndexFileError(f"{file}: the checksum does not fit")
        arrays = {
            name: np.frombuffer(content, kind, count, start + place)
            for name, (kind, count, place) in header["arrays"].items()
        }
        return cls(arrays, file, header["checksum"])

    def write(self, file: Path, about: Header, extra: dict[str, np.ndarray] | None = None) -> None:
        """Writes the columns, whole or not at all.

        Args:
            file: path to write; its folder is made.
            about: kept in the header.
            extra: more arrays to keep with them.

        Raises:
            OSError: it cannot be written.
        """
        places, position, checksum = {}, 0, 0
        blocks = []
        for name, values in (self._arrays | (extra or {})).items():
            block = values.tobytes()
            block += bytes(-len(block) % _ALIGNMENT)
            places[name] = (values.dtype.str, len(values), position)
            position += len(block)
            checksum = zlib.crc32(block, checksum)
            blocks.append(block)
        header = {"about": about, "arrays": places, "bytes": position, "checksum": checksum}
        text = json.dumps(header).encode()
        text += b" " * (-(len(MAGIC) + 8 + len(text)) % _ALIGNMENT)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Not `tempfile`, whose files nobody else may read: the cache may be shared.
        unfinished = file.with_name(f"{file.name}.{os.getpid()}-{secrets.token_hex(4)}.unfinished")
        try:
            with open(unfinished, "xb") as stream:
                stream.write(MAGIC + len(text).to_bytes(8, "little") + text)
                stream.writelines(blocks)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(unfinished, file)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def extra(self, name: str) -> np.ndarray:
        """An array that was written with the columns."""
        return self._arrays[name]

    def texts(self, name: str) -> Iterator[str]:
        """Texts that were written with the columns, see `text_arrays`."""
        return (self._text(name, row) for row in range(len(self._arrays[f"{name}.ends"]) - 1))

    @property
    def labels(self) -> np.ndarray:
        """(N,) int8: 1 forged, 0 authentic, UNLABELLED."""
        return self._arrays["label"]

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(values.nbytes for values in self._arrays.values())

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> DatasetDict: ...

    @overload
    def __getitem__(self, index: slice) -> list[DatasetDict]: ...

    def __getitem__(self, index: int | slice) -> DatasetDict | list[DatasetDict]:
        """The dataset dict at a place, a new one each time, or a list of them."""
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"entry {index} of {len(self)}")
        label = int(self.labels[row])
        entry = make_dataset_dict(
            self._path("file_name", row),
            self._path("image_id", row),
            label=None if label == UNLABELLED else label,
            mask_file_name=self._path("mask_file_name", row),
            technique=self._code("technique", row),
            source=self._code("source", row),
            wholly_forged=bool(self._arrays["wholly_forged"][row]),
        )
        rule = self._code("mask_rule", row)
        return entry | {"mask_rule": rule} if rule else entry

    def __getstate__(self) -> dict[str, Any]:
        """The file's name where there is a file, so that workers map it, too."""
        if self._file is None:
            return {"arrays": self._arrays}
        return {"file": self._file, "check": self._check}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Maps the file again.

        Raises:
            IndexFileError: it has been replaced meanwhile.
        """
        if "arrays" in state:
            self.__init__(state["arrays"])
            return
        opened = DatasetIndex.open(state["file"], verify=False)
        if opened._check != state["check"]:
            raise IndexFileError(f"{state['file']}: the data set has changed; start again")
        self.__init__(opened._arrays, state["file"], state["check"])

    def _path(self, name: str, row: int) -> str | None:
        folder = int(self._arrays[f"{name}.folder"][row])
        if folder < 0:
            return None
        return self._text(f"{name}.folders", folder) + self._text(f"{name}.names", row)

    def _code(self, name: str, row: int) -> str:
        return self._text(f"{name}.values", int(self._arrays[name][row]))

    def _text(self, name: str, row: int) -> str:
        start, end = self._arrays[f"{name}.ends"][row : row + 2]
        return str(self._arrays[name][start:end].data, "utf-8", "surrogatepass")


def make_index(entries: Iterable[DatasetDict]) -> DatasetIndex | None:
    """Columns of dataset dicts, each looked at once; None if they hold what columns cannot."""
    texts = {name: _Texts() for name in _PATHS}
    folders = {name: _Table() for name in _PATHS}
    values = {name: _Table() for name in _CODES}
    rows = {name: array("i") for name in (*_PATHS, *_CODES)}
    labels, whole = array("b"), array("b")
    for entry in entries:
        if not entry.keys() <= _KEYS or not entry.keys() >= _NEEDED:
            return None
        for name in _PATHS:
            path = entry[name]
            if path is None:
                rows[name].append(-1)
                texts[name].append("")
                continue
            if not isinstance(path, str):
                return None
            cut = path.rfind("/") + 1
            rows[name].append(folders[name][path[:cut]])
            texts[name].append(path[cut:])
        for name in _CODES:
            value = entry.get(name, "")
            if not isinstance(value, str):
                return None
            rows[name].append(values[name][value])
        label = entry["label"]
        labels.append(UNLABELLED if label is None else label)
        whole.append(entry.get("wholly_forged", False))
    arrays = {"label": np.array(labels, np.int8), "wholly_forged": np.array(whole, np.int8)}
    for name in _PATHS:
        arrays[f"{name}.folder"] = np.array(rows[name], np.int32)
        arrays |= text_arrays(f"{name}.folders", folders[name])
        arrays |= texts[name].arrays(f"{name}.names")
    for name in _CODES:
        arrays[name] = np.array(rows[name], np.int32)
        arrays |= text_arrays(f"{name}.values", values[name])
    return DatasetIndex(arrays)


def text_arrays(name: str, texts: Iterable[str]) -> dict[str, np.ndarray]:
    """Texts as two arrays: their bytes, and where each ends."""
    return _Texts(texts).arrays(name)


def read_about(file: Path) -> Header:
    """What was said about an index when it was written.

    Raises:
        IndexFileError: it is no index.
        OSError: it cannot be read.
    """
    with open(file, "rb") as stream:
        return _read_header(stream)["about"]


class _Table(dict[str, int]):
    """Numbers of the texts that have been asked for, in turn."""

    def __missing__(self, text: str) -> int:
        number = self[text] = len(self)
        return number


class _Texts:
    """Many texts in one run of bytes."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        ends = np.array(self._ends, np.int64)
        return {name: np.frombuffer(self._bytes, np.uint8), f"{name}.ends": ends}


def _read_header(stream: BinaryIO) -> Header:
    """The header of a file that has just been opened."""
    start = stream.read(len(MAGIC) + 8)
    length = int.from_bytes(start[len(MAGIC) :], "little")
    if start[: len(MAGIC)] != MAGIC or length > os.fstat(stream.fileno()).st_size:
        raise IndexFileError(f"{stream.name}: it is no index")
    try:
        header = json.loads(stream.read(length))
        header["start"] = len(start) + length
        known = {"about", "arrays", "bytes", "checksum"} <= header.keys()
    except (ValueError, TypeError) as error:
        raise IndexFileError(f"{stream.name}: the header is damaged ({error})") from None
    if not known:
        raise IndexFileError(f"{stream.name}: the header is incomplete")
    return header
