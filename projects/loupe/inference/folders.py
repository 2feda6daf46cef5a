"""What to predict and where to write it: inputs of a command, and the folder of its results."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loupe.data.sources.files import RESULT_FOLDERS, RESULT_TABLES, list_images, result_names
from loupe.inference.journal import JOURNAL
from loupe.inference.regions import COCO, REGIONS
from loupe.writing import LOCK, UNFINISHED, OutputError, locked_folder

# What a run writes into its folder.
TABLE, UNFINISHED_TABLE = RESULT_TABLES
PICTURES = RESULT_FOLDERS
# Beside the tables, of the same run.
_OTHERS = (JOURNAL, REGIONS, COCO)


def find_images(inputs: str | Path | Sequence[str | Path]) -> dict[str, str]:
    """Finds what to predict, and under which name to write it.

    Args:
        inputs: Images, folders (searched with their subfolders) and patterns such as `*.jpg`.

    Returns:
        File -> name of its results, relative to the output folders and without their ending. Below
        one folder it is the path there; of several inputs, the path below the folder of all.
        Files that differ in their ending alone keep it, so no two names are equal.

    Raises:
        DatasetError: There is no such file or folder.
        ValueError: An input holds no image.
    """
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    places = [place for one in inputs for place in _expanded(str(one))]
    files: dict[str, None] = {}
    roots = []
    for place in places:
        if os.path.isdir(place):
            found = list_images(place)
            if not found:
                raise ValueError(
                    f"{place}: there are no image files in it; give an image or its folder"
                )
            files |= dict.fromkeys(os.path.join(place, name) for name in found)
            roots.append(os.path.abspath(place))
        else:
            files[place] = None
            roots.append(os.path.dirname(os.path.abspath(place)))
    # One file may be named twice, by itself and by its folder.
    unique = {os.path.abspath(file): file for file in reversed(files)}
    root = os.path.commonpath(roots)
    below = {os.path.relpath(path, root): file for path, file in unique.items()}
    names = result_names(list(reversed(below)))
    return {below[path]: name for path, name in names.items()}


def _expanded(place: str) -> list[str]:
    """The files of a pattern that the shell has left alone."""
    if os.path.lexists(place) or not glob.has_magic(place):
        if not os.path.lexists(place):
            raise ValueError(f"{place}: there is no such file or folder; check the path")
        return [place]
    found = sorted(glob.glob(place, recursive=True))
    if not found:
        raise ValueError(f"{place}: no file fits the pattern; check it")
    return found


@contextmanager
def output_folder(
    output: str | Path, inputs: Sequence[str | Path] = (), *, empty: bool = True
) -> Iterator[Path]:
    """Checks, locks and empties the folder of a run's results, before anything costly is done.

    Args:
        output: The folder.
        inputs: What is read; `output` must not lie in one of them, or its results would be
            predicted by the next run.
        empty: Remove pictures and tables of earlier predictions, so that they cannot stand beside
            new ones.

    Raises:
        OutputError: It lies in an input, is a link, cannot be written to, is used by another run,
            or holds pictures that no earlier run has written.
    """
    folder = Path(output)
    _refuse_links(folder)
    _refuse_inside(folder, inputs)
    with locked_folder(folder, "--output"):
        if empty:
            _remove_earlier(folder)
        yield folder


def _refuse_inside(folder: Path, inputs: Sequence[str | Path]) -> None:
    place = Path(os.path.realpath(folder))
    for one in inputs:
        read = Path(os.path.realpath(one))
        if read.is_dir() and (read == place or read in place.parents):
            raise OutputError(
                f"{folder}: lies in {one}, which is read, so that results would be predicted as "
                "images; give an --output outside"
            )


def _refuse_links(folder: Path) -> None:
    names = ("", TABLE, UNFINISHED_TABLE, LOCK, *_OTHERS, *PICTURES)
    for path in (folder / name for name in names):
        if path.is_symlink():
            raise OutputError(
                f"{path}: is a link to {os.readlink(path)}, and writing would follow it; give the "
                "place itself as --output, or remove the link"
            )


def _remove_earlier(folder: Path) -> None:
    """Removes what an earlier run has written, whole or interrupted."""
    tables = [folder / TABLE, folder / UNFINISHED_TABLE]
    pictures = [path for name in PICTURES for path in (folder / name).rglob("*") if path.is_file()]
    if pictures and not any(table.exists() for table in tables):
        raise OutputError(
            f"{pictures[0].parent}: holds files, but {folder} has no {TABLE} of an earlier run; "
            "give another --output"
        )
    for path in pictures:
        if path.suffix == ".png" or path.name.startswith(UNFINISHED):
            path.unlink()
    for table in (*tables, *(folder / name for name in _OTHERS)):
        table.unlink(missing_ok=True)
