"""Reads the bytes of a regular file, and leaves everything else alone.

A named pipe blocks whoever opens it, a device may have no end, and both may carry an image's name.
So the kind is asked first, and the file is opened without blocking.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from loupe.data.images.errors import ImageFaultError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Windows has no O_NONBLOCK, and no named pipes among its files.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_regular_file(path: str | Path, most_bytes: int) -> bytes:
    """The content of a file of at most `most_bytes` bytes.

    Raises:
        ImageFaultError: There is no such file, it is no regular file, empty, too large or locked.
    """
    try:
        _check_regular(os.stat(path))
        handle = os.open(path, _FLAGS)
        with os.fdopen(handle, "rb") as file:
            # Asked again of what was opened: another file may have taken the name in between.
            size = _check_regular(os.fstat(file.fileno()))
            if size > most_bytes:
                raise ImageFaultError(
                    f"the file has {size} bytes, more than {most_bytes}",
                    "shrink it, or set LOUPE_MAX_IMAGE_BYTES",
                )
            content = file.read(most_bytes + 1)
    except FileNotFoundError:
        what = "a link to nothing" if os.path.islink(path) else "the file does not exist"
        raise ImageFaultError(what, "restore it or drop it from the list") from None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ELOOP:
            raise ImageFaultError("a loop of links", "drop it from the list") from None
        raise ImageFaultError(
            f"the file cannot be opened ({error})", "check its permissions and its disk"
        ) from error
    if not content:
        raise ImageFaultError("the file is empty")
    return content


def _check_regular(status: os.stat_result) -> int:
    """Size in bytes of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "a special file")
        raise ImageFaultError(
            f"{kind}, not a file: it cannot be opened as an image", "drop it from the list"
        )
    return status.st_size
