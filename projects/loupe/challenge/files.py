"""The files of a submission: a folder or a .zip that somebody else made.

Sizes are declared before anything is read, names must stay inside, links are not followed.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath


class BadArchiveError(ValueError):
    """A .zip that cannot be read."""


class TooLargeError(ValueError):
    """A file that is larger than its content can be."""


class Files:
    """The files of a folder or a .zip, by their relative names.

    Attributes:
        names: sorted, with "/" between folders.
        unsafe: names of links, of special files, and those that lead outside; they are not read.
    """

    def __init__(self, path: str | Path) -> None:
        """Lists them.

        Raises:
            FileNotFoundError: there is nothing.
            BadArchiveError: the .zip cannot be read.
        """
        self.path = Path(path)
        self._archive = None
        if self.path.is_dir():
            found = _list_folder(self.path)
        elif self.path.is_file():
            try:
                self._archive = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
                raise BadArchiveError(str(error)) from error
            found = _list_archive(self._archive)
        else:
            raise FileNotFoundError(f"{path}: no such folder or .zip; check the path")
        self.names = sorted(name for name, safe in found if safe)
        self.unsafe = sorted(name for name, safe in found if not safe)

    def read(self, name: str, limit: int) -> bytes:
        """Content of one file.

        Raises:
            BadArchiveError: its part of the .zip is damaged, or the file cannot be read.
            TooLargeError: it has more bytes than `limit`; nothing was read.
        """
        try:
            if self._archive is None:
                size = (self.path / name).stat().st_size
            else:
                size = self._archive.getinfo(name).file_size
            if size > limit:
                raise TooLargeError(f"{size} bytes, at most {limit} are needed")
            if self._archive is None:
                return (self.path / name).read_bytes()
            # zipfile reads no more of a member than it declares.
            return self._archive.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise BadArchiveError(f"{name}: {error}") from error
        except (NotImplementedError, RuntimeError) as error:  # An unknown method, a password.
            raise BadArchiveError(f"{name}: {error}") from error


def _list_folder(folder: Path) -> list[tuple[str, bool]]:
    found = []
    for file in folder.rglob("*"):
        safe = file.is_file() and not file.is_symlink()
        if safe or file.is_symlink() or not file.is_dir():
            found.append((file.relative_to(folder).as_posix(), safe))
    return found


def _list_archive(archive: zipfile.ZipFile) -> list[tuple[str, bool]]:
    found = []
    for entry in archive.infolist():
        path = PurePosixPath(entry.filename)
        outside = path.is_absolute() or ".." in path.parts or not path.parts
        link = stat.S_ISLNK(entry.external_attr >> 16)
        if outside or link or not entry.is_dir():
            found.append((entry.filename, not outside and not link))
    return found
