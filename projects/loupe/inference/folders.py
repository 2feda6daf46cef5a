"""What to predict and where to write it: inputs of a command, and the folder of its results."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loupe.data.sources.files import RESULT_TABLES, list_images, result_names
from loupe.inference.earlier import Results, check_earlier, check_resumable
from loupe.inference.journal import JOURNAL
from loupe.writing import LOCK, OutputError, locked_folder

TABLE, UNFINISHED_TABLE = RESULT_TABLES


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
    output: str | Path,
    inputs: Sequence[str | Path] = (),
    *,
    results: Results | None = None,
    resume: bool = False,
) -> Iterator[Path]:
    """Checks and locks the folder of a run's results, before anything costly is done.

    Nothing is removed here: `remove_earlier` does it once there is something new.

    Args:
        output: The folder.
        inputs: What is read; `output` must not lie in one of them, or its results would be
            predicted by the next run.
        results: What the run writes, if a second run would lose or mix it.
        resume: The run goes on with them, if it can.

    Raises:
        OutputError: It lies in an input, is a link, cannot be written to, is used by another run,
            or holds pictures that no earlier run has written.
    """
    folder = Path(output)
    _refuse_links(folder, () if results is None else results.top_names())
    _refuse_inside(folder, inputs)
    with locked_folder(folder, "--output"):
        if resume:
            check_resumable(folder, JOURNAL)
        elif results is not None:
            check_earlier(folder, results)
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


def _refuse_links(folder: Path, names: Sequence[str]) -> None:
    for path in (folder / name for name in ("", LOCK, *names)):
        if path.is_symlink():
            raise OutputError(
                f"{path}: is a link to {os.readlink(path)}, and writing would follow it; give the "
                "place itself as --output, or remove the link"
            )
