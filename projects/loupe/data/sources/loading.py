"""A folder in a known format, or a list file, becomes dataset dicts. No image is opened.

Known formats (the first that fits is taken):
    * list files: `.csv` manifest, `.json` and `.txt` lists of `loupe.data.sources.readers`,
      COCO `.json`, `.parquet`;
    * a folder with a `manifest.csv`;
    * DDL split: `real/`, `fake/`, `masks/` (or `mask/`);
    * `Tp/`, `Gt/` and perhaps `Au/`;
    * the other folders of `loupe.data.sources.readers`;
    * a plain folder of images: unlabelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from loupe.data.sources import readers
from loupe.data.sources.coco import is_coco, read_coco
from loupe.data.sources.manifest import read_manifest
from loupe.data.sources.pairing import DatasetDict, DatasetError, names, read_unpaired
from loupe.data.sources.parquet import read_parquet


class FolderFormat(NamedTuple):
    """How a folder is recognised and read.

    Attributes:
        name: for messages.
        matches: whether a folder has this format, from the folders in it.
        read: folder -> dataset dicts.
    """

    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], list[DatasetDict]]


def load_path(path: str | Path) -> list[DatasetDict]:
    """Dataset dicts of a folder in a known format, or of a list file.

    Raises:
        DatasetError: nothing is there, there are no images, or pairs do not fit.
    """
    path = Path(path)
    if path.is_file():
        entries = _read_list_file(path)
    elif path.is_dir():
        entries = detect_format(path).read(path)
    else:
        raise DatasetError(f"{path}: no such file or folder; check the path")
    if not entries:
        raise DatasetError(f"{path}: there are no images in it; check the path")
    _check_unique(path, entries)
    return entries


def detect_format(folder: Path) -> FolderFormat:
    """The first of the known formats that a folder fits.

    Raises:
        DatasetError: the folder holds splits, of which one must be named.
    """
    splits = [split for split in ("train", "valid", "test") if (folder / split).is_dir()]
    if len(splits) > 1:
        raise DatasetError(
            f"{folder}: holds the splits {', '.join(splits)}; name one, as {folder / splits[0]}"
        )
    return next(known for known in FOLDER_FORMATS if known.matches(folder))


def _read_json(path: Path) -> list[DatasetDict]:
    """COCO, a list of images, or a list of data sets that are joined."""
    content = readers.read_json(path)
    if is_coco(content):
        return read_coco(path, content)
    parts = readers.read_collection(path)
    if parts is None:
        return readers.read_json_list(path)
    return [
        entry | {"image_id": f"{name}/{entry['image_id']}", "source": entry["source"] or name}
        for name, part in parts
        for entry in load_path(part)
    ]


def _read_list_file(path: Path) -> list[DatasetDict]:
    read = {
        ".csv": read_manifest,
        ".json": _read_json,
        ".parquet": read_parquet,
        ".txt": readers.read_text_list,
    }.get(path.suffix.lower())
    if read is None:
        raise DatasetError(f"{path}: a list file must be .csv, .json, .parquet or .txt; convert it")
    return read(path)


def _check_unique(path: Path, entries: list[DatasetDict]) -> None:
    if len({entry["image_id"] for entry in entries}) == len(entries):
        return
    counts = Counter(entry["image_id"] for entry in entries)
    twins = [image_id for image_id, count in counts.items() if count > 1]
    raise DatasetError(
        f"{path}: {len(twins)} images are listed more than once ({names(twins)}); keep one of each"
    )


def _has(*folders: str) -> Callable[[Path], bool]:
    return lambda root: all((root / folder).is_dir() for folder in folders)


FOLDER_FORMATS = (
    FolderFormat(
        "manifest",
        lambda root: (root / "manifest.csv").is_file(),
        lambda root: read_manifest(root / "manifest.csv"),
    ),
    FolderFormat("SID-Set split", _has("real", "tampered"), readers.read_sid_split),
    FolderFormat("DDL split", _has("real", "fake"), readers.read_ddl_split),
    FolderFormat("Tp, Gt, Au", _has("Tp", "Gt"), readers.read_tampered_ground_truth),
    FolderFormat("FakeShield", readers.has_fakeshield_folders, readers.read_fakeshield),
    FolderFormat("images, masks", readers.has_images_and_masks, readers.read_images_and_masks),
    FolderFormat("plain folder", lambda root: True, lambda root: read_unpaired(root, label=None)),
)
