"""Image files below a folder: which there are, what is left out, and names for their results."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from loupe.data.sources.entries import DatasetError, names

# `loupe.data.images.decoding` reads all of these, some where Pillow has a plugin for them.
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".tif", ".tiff", ".bmp"),
        *(".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpf", ".jpx"),
        *(".avif", ".heic", ".heif"),
    }
)
# Folder of what is made once from data sets and kept.
CACHE_VARIABLE = "LOUPE_CACHE"
# What `loupe predict` writes.
RESULT_TABLES = ("predictions.csv", "predictions.unfinished.csv")
RESULT_FOLDERS = ("maps", "masks", "overlays")
# First bytes of files that are images, whatever they are called.
_MAGIC = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0"),
    *(b"MM\0+", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
)
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
# Longest name of a file, in bytes, less what a suffix may add.
_LONGEST_NAME = 240

_logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """The files below a folder; all paths are relative to it.

    Attributes:
        images: image files.
        others: files that are none, by their ending.
        special: what is no file to read: pipes, devices, loops of links, folders without access.
        results: folders that an earlier run has written; not looked into.
        folders: all that were looked into.
    """

    images: list[str]
    others: list[str]
    special: list[str]
    results: list[str]
    folders: list[str]

    def left_out(self) -> str:
        """What is left out, for a message; "" if there is nothing.

        Example:
            >>> Found([], ["a.txt", "b.txt", "c"], ["pipe.png"], [], []).left_out()
            '3 files left out: .txt 2, without ending 1; not a file to read: pipe.png'
        """
        parts = []
        if self.others:
            endings = Counter(os.path.splitext(path)[1].lower() for path in self.others)
            kinds = [f"{end or 'without ending'} {n}" for end, n in endings.most_common()]
            parts.append(f"{len(self.others)} files left out: {names(kinds, 12)}")
        if self.special:
            parts.append(f"not a file to read: {names(self.special)}")
        if self.results:
            parts.append(f"results of an earlier run left out: {names(self.results)}")
        return "; ".join(parts)


def list_images(folder: str | Path) -> list[str]:
    """Paths of all image files under a folder, relative to it, sorted; hidden ones left out.

    Says in the log what else is left out.

    Raises:
        DatasetError: there is no such folder.
    """
    found = find_files(folder)
    if left_out := found.left_out():
        _logger.warning("%s: %s", folder, left_out)
    return found.images


def find_files(folder: str | Path) -> Found:
    """Looks through a folder and all below it; opens only files without ending.

    A file with the ending of an image is one. So is a file without ending that begins like one.

    Raises:
        DatasetError: there is no such folder.
    """
    folder = str(folder)
    if not os.path.isdir(folder):
        raise DatasetError(f"{folder}: no such folder; check the path")
    found = Found([], [], [], [], [])
    _walk(folder, "", frozenset([_identity(folder)]), found)
    for paths in found:
        paths.sort()
    return found


def local_path(folder: Path, path: str) -> str:
    """A path that a list in a folder names, with the separators of this machine.

    Windows' separators are taken for ours, unless a file is called so.

    Raises:
        ValueError: it begins with the letter of a drive.
    """
    if "\\" not in path:
        return path
    if path[1:3] == ":\\":
        raise ValueError(f"{path} is on another machine (write it relative to the list)")
    return path if os.path.exists(folder / path) else path.replace("\\", "/")


def cache_folder() -> Path:
    """Where indices and drawn masks of data sets are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "loupe")


def result_names(paths: Sequence[str]) -> dict[str, str]:
    """A name for the results of each file: its path without ending, where that tells it apart.

    No two names are equal, and none is longer than a file system takes.

    Args:
        paths: different paths.

    Example:
        >>> result_names(["a.jpg", "b/c.png", "b/c.jpg", "b/c.jpg.png"])
        {'a.jpg': 'a', 'b/c.png': 'b/c.png', 'b/c.jpg': 'b/c.jpg', 'b/c.jpg.png': 'b/c.jpg.png'}
    """
    whole: set[str] = set()
    while True:
        given = {path: path if path in whole else os.path.splitext(path)[0] for path in paths}
        counts = Counter(given.values())
        # A stem that is taken gives way to the whole path, which no other file has.
        taken = {path for path, name in given.items() if counts[name] > 1} - whole
        if not taken:
            return {path: _shortened(path, name) for path, name in given.items()}
        whole |= taken


def _shortened(path: str, name: str) -> str:
    folder, last = os.path.split(name)
    if len(os.fsencode(last)) <= _LONGEST_NAME:
        return name
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()
    kept = os.fsencode(last)[: _LONGEST_NAME - 17].decode("utf-8", "ignore")
    return os.path.join(folder, f"{kept}-{digest}")


def _walk(root: str, prefix: str, above: frozenset[tuple[int, int]], found: Found) -> None:
    """Adds what lies in a folder; `above` are that folder and those that it lies in."""
    folder = os.path.join(root, prefix)
    has_results = os.path.isdir(os.path.join(folder, RESULT_FOLDERS[0])) and any(
        os.path.isfile(os.path.join(folder, table)) for table in RESULT_TABLES
    )
    try:
        # os.scandir: listing 1.5 million files must not call stat on each.
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = prefix + entry.name
                if has_results and entry.name in RESULT_FOLDERS:
                    found.results.append(path)
                    continue
                try:
                    _sort_in(root, path, entry, above, found)
                except OSError as error:
                    found.special.append(f"{path} ({error.strerror})")
    except OSError as error:
        found.special.append(f"{prefix or root} ({error.strerror})")


def _sort_in(
    root: str,
    path: str,
    entry: os.DirEntry[str],
    above: frozenset[tuple[int, int]],
    found: Found,
) -> None:
    if entry.is_dir():
        here = _identity(entry.path)
        if here in above:
            found.special.append(f"{path} (a link to a folder above it)")
        else:
            found.folders.append(path)
            _walk(root, f"{path}/", above | {here}, found)
    elif not entry.is_file() and os.path.exists(entry.path):
        found.special.append(path)
    elif _is_image(entry):
        found.images.append(path)
    else:
        found.others.append(path)


def _is_image(entry: os.DirEntry[str]) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix or not entry.is_file():
        # A link that leads nowhere is listed: whoever reads it says that the file does not exist.
        return suffix in IMAGE_SUFFIXES
    with open(entry.path, "rb") as file:
        start = file.read(16)
    is_webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    is_heif = start[4:8] == b"ftyp" and start[8:12] in _BRANDS
    return start.startswith(_MAGIC) or is_webp or is_heif


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
