"""The one way to write a file: whole or not at all, and harmless to whoever opens it.

A file gets its name only once its content is on the disk, so that a process killed at any moment
leaves the old file or the new one, never half of one. Tables and reports hold names of files that
somebody else chose, so cells cannot become formulas and text cannot become markup.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# Of the file that a run locks in its folder.
LOCK = ".loupe.lock"
# What a file is called, with some letters more, until it is whole.
UNFINISHED = ".unfinished-"
# Of file systems that have no locks: two runs there are not told apart.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_held: set[int] = set()
# Spreadsheets take a cell that begins so for a formula.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Commands to a terminal begin with one of these, and a file's name may hold them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class OutputError(ValueError):
    """A folder that results cannot go to: names it, what is wrong and the remedy."""


def unwritable(folder: Path, option: str, error: OSError) -> OutputError:
    """What to raise where a folder that the user gave by an option cannot be written to."""
    reason = error.strerror or error
    return OutputError(f"{folder}: cannot be written to ({reason}); give another {option}")


@contextmanager
def locked_folder(folder: str | Path, option: str) -> Iterator[Path]:
    """Makes a folder and keeps other runs out of it.

    The lock ends with this process, however that ends: processes that it forks do not hold it, so
    loader workers that outlive a killed run by a second do not stop the run that resumes it.

    Args:
        folder: What the run writes to.
        option: Where the user gave it, for the error's remedy.

    Raises:
        OutputError: Another run is writing there, or nothing can be written there.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise unwritable(folder, option, error) from error
    _held.add(handle)
    try:
        _lock(handle, folder, option)
        _remove_unfinished(folder)
        yield folder
    finally:
        if handle in _held:
            _held.remove(handle)
            os.close(handle)


def _lock(handle: int, folder: Path, option: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(
            f"{folder}: another run is writing there; wait for it or give another {option}"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _remove_unfinished(folder: Path) -> None:
    """Removes what a killed run was writing, here and one folder down: it may be gigabytes."""
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    # A folder with a lock of its own is another run's, which may be writing.
    for place in (folder, *(path for path in inside if not (path / LOCK).exists())):
        for left in place.glob(UNFINISHED + "*"):
            left.unlink(missing_ok=True)


def _leave_locks_to_parent() -> None:
    while _held:
        os.close(_held.pop())


# A forked process shares its parent's open files, and a lock lasts until all of them are closed.
os.register_at_fork(after_in_child=_leave_locks_to_parent)


@contextmanager
def replacing(path: str | Path, *, text: bool = False) -> Iterator[IO[Any]]:
    """Opens a file that takes the name `path` when the block ends, and vanishes if it fails.

    The content lies beside `path` under a temporary name until it is on the disk, then takes its
    name in one step (POSIX `rename`). Two processes that write the same path do not mix.

    Args:
        path: The file to write. Its folder is made if it is missing.
        text: UTF-8 text with unchanged line ends instead of bytes.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with replacing(target, text=True) as file:
        ...     _ = file.write("1 2 3")
        >>> target.read_text()
        '1 2 3'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)
    try:
        # Names of files need not be UTF-8: their bytes are written as they are.
        options: dict[str, Any] = (
            {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""} if text else {}
        )
        with os.fdopen(handle, "w" if text else "wb", **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(name)
        if isinstance(error, OSError) and error.errno and error.filename is None:  # A full disk.
            error.filename = str(path)
        raise
    _sync_folder(path.parent)


def _umask() -> int:
    """What a new file may not be; Linux alone lets a process read it without changing it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def _sync_folder(folder: Path) -> None:
    """Puts the new name itself on the disk; file systems that cannot are left alone."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes bytes, whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: str | Path, content: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with replacing(path, text=True) as file:
        file.write(content)


def write_json(path: str | Path, content: Any, *, indent: int | None = 1) -> None:
    """Writes JSON that every reader takes: see `plain`."""
    text = json.dumps(plain(content), indent=indent, ensure_ascii=False, allow_nan=False)
    # What is no UTF-8 in names of files is escaped, since JSON must be UTF-8.
    escaped = _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    write_text(path, escaped + "\n")


def plain(value: Any) -> Any:
    """Turns a value into what JSON knows.

    Numbers that are not finite, which JSON has no word for, become null; NumPy's and PyTorch's
    scalars and arrays become numbers and lists; paths become text.

    Example:
        >>> plain({"f1": float("nan"), "at": Path("a/b"), "box": (1, 2)})
        {'f1': None, 'at': 'a/b', 'box': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def cut_name(name: str, plain: str, longest: int) -> str:
    """The beginning of a name, with a digest that tells it from others that begin alike.

    Args:
        name: As it was given.
        plain: The same without what a file's name must not hold.
        longest: Bytes of `plain` to keep.
    """
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return f"{plain.encode()[:longest].decode(errors='ignore')}-{digest}"


# Bytes of a file's name, less than the 255 of most file systems: writing adds to it.
_LONGEST_STEM = 200


def plain_stem(name: str) -> str:
    """A data set's name or path as that of a file, cut where file systems would refuse it.

    Example:
        >>> plain_stem("sets/casia.csv")
        'sets_casia.csv'
    """
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    if len(plain.encode()) <= _LONGEST_STEM:
        return plain
    return cut_name(name, plain, _LONGEST_STEM)


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a table, its text cells guarded by `guard_cell`; None becomes an empty cell."""
    with replacing(path, text=True) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows([guard_cell(cell) for cell in row] for row in rows)


def guard_cell(cell: object) -> object:
    """Puts a quote before text that a spreadsheet would take for a formula.

    Example:
        >>> guard_cell("=1+1.jpg"), guard_cell("a.jpg"), guard_cell(-0.5), guard_cell("-0.5")
        ("'=1+1.jpg", 'a.jpg', -0.5, '-0.5')
    """
    if isinstance(cell, str) and _FORMULA.match(cell) and not _is_number(cell):
        return "'" + cell
    return cell


def read_cell(cell: str) -> str:
    """Undoes `guard_cell`.

    Example:
        >>> read_cell("'=1+1.jpg"), read_cell("a.jpg"), read_cell("-0.5")
        ('=1+1.jpg', 'a.jpg', '-0.5')
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def printable(text: str) -> str:
    r"""Text that a terminal shows and does not obey; lines and tabs stay.

    Example:
        >>> print(printable("clear\x1b[2J.png"))
        clear\x1b[2J.png
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def keep_logs_printable() -> None:
    """Lets the log show what names of files and messages of libraries hold, and not obey it.

    For whole programs: it concerns each record of `loupe`'s loggers from now on.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "keeps_printable", False):
        return

    def make_printable(*args: Any, **more: Any) -> logging.LogRecord:
        record = make(*args, **more)
        if record.name.split(".")[0] == "loupe":
            record.msg, record.args = printable(record.getMessage()), None
            if record.exc_info:
                # A formatter takes this text in place of the traceback.
                record.exc_text = printable(logging.Formatter().formatException(record.exc_info))
        return record

    make_printable.keeps_printable = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_printable)


def markdown_text(text: object) -> str:
    """Text that stays text in Markdown and in a cell of its tables.

    Example:
        >>> print(markdown_text("<b>"))
        &lt;b&gt;
    """
    shown = printable(str(text).replace("\n", " ").replace("\r", " "))
    escaped = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("\\", "\\\\").replace("|", "\\|")


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table of text on the left and numbers on the right, its cells escaped.

    Args:
        header: Names of the columns.
        rows: Cells as text or numbers; None is left empty.

    Returns:
        Lines that end in a line end.

    Example:
        >>> print(markdown_table(["set", "AUC"], [["casia", 0.8]]), end="")
        | set | AUC |
        |---|---:|
        | casia | 0.8 |
    """
    lines = ["|---" + "|---:" * (len(header) - 1) + "|"]
    for cells in (header, *rows):
        shown = ("" if cell is None else markdown_text(cell) for cell in cells)
        lines.append("| " + " | ".join(shown) + " |")
    lines[0], lines[1] = lines[1], lines[0]
    return "\n".join(lines) + "\n"
