"""Results of an earlier run in the folder of a new one: never lost without a word, never mixed.

A run replaces those of its kind, and says so, unless it goes on with them (`--resume`). It removes
them once its first new prediction is there, so that a mistake in the command costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from loupe.data.sources.files import RESULT_FOLDERS, RESULT_TABLES
from loupe.inference.journal import JOURNAL
from loupe.inference.regions import COCO, REGIONS
from loupe.writing import UNFINISHED, OutputError

_logger = logging.getLogger(__name__)

T = TypeVar("T")
# Of the workers of `--engine ray`; their names are digests.
ROWS = "rows"
RAY_ROWS = f"{ROWS}/{'[0-9a-f]' * 32}.parquet"


class Results(NamedTuple):
    """What one kind of run writes into its folder.

    Attributes:
        tables: Names of its tables; pictures belong to an earlier run only beside one of them.
        others: Names or patterns of other files.
        pictures: Patterns of pictures; each begins with a folder.
    """

    tables: tuple[str, ...]
    others: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()

    def everything(self) -> tuple[str, ...]:
        """All names and patterns."""
        return (*self.tables, *self.others, *self.pictures)

    def top_names(self) -> list[str]:
        """Everything that a run writes directly into its folder."""
        return sorted({Path(one).parts[0] for one in self.everything()})

    def found(self, folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
        """The files that fit."""
        yield from (path for one in patterns for path in folder.glob(one) if path.is_file())


PREDICTED = Results(
    RESULT_TABLES,
    (JOURNAL, REGIONS, COCO, RAY_ROWS),
    tuple(f"{name}/**/{one}" for name in RESULT_FOLDERS for one in ("*.png", f"{UNFINISHED}*")),
)


def check_earlier(folder: Path, results: Results) -> None:
    """Checks that a new run into a folder replaces nothing but results.

    Raises:
        OutputError: It holds pictures that no earlier run has written.
    """
    if not any((folder / table).exists() for table in results.tables):
        for name in sorted({Path(one).parts[0] for one in results.pictures}):
            if any(path.is_file() for path in (folder / name).rglob("*")):
                raise OutputError(
                    f"{folder / name}: holds files, but {folder} has no {results.tables[0]} of an "
                    "earlier run; give another --output"
                )


def has_earlier(folder: Path, results: Results) -> bool:
    """Whether a folder holds results of an earlier run, whole or interrupted."""
    return any(map(_has_content, results.found(folder, results.everything())))


def check_resumable(folder: Path, lines: str) -> None:
    """Checks that `--resume` knows what a folder's results belong to.

    Args:
        folder: Of the results.
        lines: Name or pattern of the files that say what is done.

    Raises:
        OutputError: It holds a table, but no such file.
    """
    has_table = any(map(_has_content, PREDICTED.found(folder, RESULT_TABLES)))
    if has_table and not any(folder.glob(lines)):
        raise OutputError(
            f"{folder}: holds results that --resume cannot go on with, because another command or "
            "engine has written them; give another --output, or leave out --resume to replace them"
        )


def parts_beside(output: Path, own: Path) -> list[Path]:
    """Folders in `--output` that a run does not write to, and whose results it would mix with.

    Args:
        output: Given by the user.
        own: The same, or this process's part of it (`Share.folder`).
    """
    parts = sorted(path for path in output.glob("part-*-of-*") if path.is_dir())
    if own == output:
        return parts
    total = own.name.rpartition("-of-")[2]
    return [output, *(path for path in parts if path.name.rpartition("-of-")[2] != total)]


def _has_content(path: Path) -> bool:
    """Whether there is something to lose: a table's first line names its columns."""
    if path.suffix not in (".csv", ".jsonl"):
        return True
    with path.open("rb") as file:
        return len(list(islice(file, 2))) > 1


def remove_earlier(folder: Path, results: Results) -> None:
    """Removes what an earlier run of one kind has written, whole or interrupted, and says so."""
    if has_earlier(folder, results):
        _logger.warning("%s: the results of an earlier run are replaced", folder)
    # The tables last: without one the pictures would count as somebody else's.
    for patterns in (results.pictures, results.others, results.tables):
        for path in list(results.found(folder, patterns)):
            path.unlink()


def with_first(items: Iterator[T]) -> Iterator[T]:
    """The same items; the first is computed now, so that what cannot begin fails here."""
    return chain(list(islice(items, 1)), items)
