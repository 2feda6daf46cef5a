"""Which data sets there are: those with names, folders, lists. The way in to all of them.

    load_dataset("casia_v1")  ->  catalog  ->  formats/*.py  ->  pairing, files  ->  entries

The root of the named ones is the folder in the environment variable DETECTRON2_DATASETS, by
default `datasets`.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from loupe.data.images.masks import read_mask
from loupe.data.sources.entries import (
    DatasetDict,
    DatasetError,
    Listing,
    Problem,
    join,
    make_dataset_dict,
    parse_label,
)
from loupe.data.sources.formats.coco import is_coco, read_coco
from loupe.data.sources.formats.folders import detect_format
from loupe.data.sources.formats.lists import (
    read_collection,
    read_json,
    read_json_list,
    read_text_list,
)
from loupe.data.sources.formats.manifest import read_manifest
from loupe.data.sources.formats.parquet import read_parquet
from loupe.data.sources.formats.published import PUBLISHED
from loupe.data.sources.index import DatasetIndex, cached_index, make_index
from loupe.data.sources.synthetic import is_synthetic, list_synthetic

ROOT_VARIABLE = "DETECTRON2_DATASETS"


def dataset_root() -> Path:
    """Folder of the named data sets."""
    return Path(os.environ.get(ROOT_VARIABLE, "datasets"))


def load_dataset(name_or_path: str | Path) -> list[DatasetDict]:
    """Dataset dicts of a named set, a synthetic one, a folder in a known format or a list file.

    Raises:
        DatasetError: there is no such set, or its files do not fit.
    """
    return list_dataset(str(name_or_path)).strict(name_or_path)


def list_dataset(name_or_path: str) -> Listing:
    """The same, with the images that can be listed where something does not fit.

    Raises:
        DatasetError: there is no such set, or nothing of it can be listed.
    """
    if is_synthetic(name_or_path):
        return Listing(list_synthetic(name_or_path))
    if name_or_path in PUBLISHED:
        return _list_named(name_or_path, dataset_root())
    if name_or_path in DatasetCatalog.list():
        return Listing(_adopted(name_or_path, DatasetCatalog.get(name_or_path)))
    if os.path.exists(name_or_path):
        return list_path(Path(name_or_path))
    raise DatasetError(
        f"{name_or_path!r} is neither a data set's name nor an existing path; "
        f"names: {', '.join(PUBLISHED)}, synthetic://train?size=256&seed=0&count=1000"
    )


def list_path(path: Path) -> Listing:
    """Lists a list file or a folder; an image that is listed twice counts once.

    Raises:
        DatasetError: nothing is there, or it has no known format.
    """
    if path.is_file():
        listing = _list_file(path)
    elif (path / "manifest.csv").is_file():
        listing = read_manifest(path / "manifest.csv")
    elif path.is_dir():
        listing = detect_format(path).read(path)
    else:
        raise DatasetError(f"{path}: no such file or folder; check the path")
    return _without_twins(listing)


def load_index(name_or_path: str) -> DatasetIndex | list[DatasetDict]:
    """What `load_dataset` lists, in columns that processes share; kept in a file if it is large.

    A JSON file is listed anew each time, since it may name other sets. A set that another program
    has registered is a list if its dicts hold what columns cannot.

    Raises:
        DatasetError: there is no such set, or its files do not fit.
    """
    path = Path(name_or_path)
    if name_or_path in PUBLISHED:
        path = _path_of(name_or_path, dataset_root())
    elif (
        name_or_path in DatasetCatalog.list()
        or is_synthetic(name_or_path)
        or not path.exists()
        or path.suffix.lower() == ".json"
    ):
        entries = load_dataset(name_or_path)
        return make_index(entries) or entries
    return cached_index(path, partial(load_dataset, name_or_path))


def load_named(name: str, root: str | Path) -> list[DatasetDict]:
    """Dataset dicts of a named set below a root.

    Raises:
        DatasetError: its files are missing or do not fit.
    """
    return _list_named(name, root).strict(_path_of(name, root))


def register_forgery_datasets(root: str | Path | None = None) -> None:
    """Makes the named sets known to Detectron2. May be called again; reads no file.

    Args:
        root: folder of the sets; None = the environment's.
    """
    for name, dataset in PUBLISHED.items():
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        folder = dataset_root() if root is None else Path(root)
        DatasetCatalog.register(name, partial(load_named, name, folder))
        MetadataCatalog.get(name).set(
            evaluator_type="forgery", dataset_path=str(folder / dataset.path)
        )


def _list_named(name: str, root: str | Path) -> Listing:
    read = PUBLISHED[name].read or list_path
    return read(_path_of(name, root))


def _path_of(name: str, root: str | Path) -> Path:
    dataset = PUBLISHED[name]
    path = Path(root) / dataset.path
    if not path.exists():
        raise DatasetError(
            f"{name}: {path} does not exist; put there: {dataset.tree}, "
            f"or set {ROOT_VARIABLE} to the folder that holds {dataset.path}"
        )
    return path


def _list_file(path: Path) -> Listing:
    read = {
        ".csv": read_manifest,
        ".json": _list_json,
        ".parquet": read_parquet,
        ".txt": read_text_list,
    }.get(path.suffix.lower())
    if read is None:
        raise DatasetError(f"{path}: a list file must be .csv, .json, .parquet or .txt; convert it")
    return read(path)


def _list_json(path: Path) -> Listing:
    """COCO, a list of images, or a list of data sets that are joined."""
    content = read_json(path)
    if is_coco(content):
        return read_coco(path, content)
    parts = read_collection(path, content)
    if parts is None:
        return read_json_list(path, content)
    return join(_renamed(name, list_path(part)) for name, part in parts)


def _renamed(name: str, listing: Listing) -> Listing:
    """A data set as a part of another."""
    entries = [
        entry | {"image_id": f"{name}/{entry['image_id']}", "source": entry["source"] or name}
        for entry in listing.entries
    ]
    problems = [problem._replace(item=f"{name}: {problem.item}") for problem in listing.problems]
    return Listing(entries, problems)


def _without_twins(listing: Listing) -> Listing:
    entries = listing.entries
    if len({entry["image_id"] for entry in entries}) == len(entries):
        return listing
    counts = Counter(entry["image_id"] for entry in entries)
    first = {entry["image_id"]: entry for entry in reversed(entries)}
    twins = [
        Problem(image_id, "listed more than once", "keep one of each")
        for image_id, count in counts.items()
        if count > 1
    ]
    return Listing([first[image_id] for image_id in counts], [*listing.problems, *twins])


def _adopted(name: str, entries: list[dict[str, Any]]) -> list[DatasetDict]:
    """Dicts that another program has registered, with what Loupe needs.

    A mask of Detectron2 (`sem_seg_file_name`) is read as every mask of ours, and decides the label
    where there is none.

    Raises:
        DatasetError: neither a label nor a mask is there, or nothing says where the image is.
        UnreadableImageError: a mask that decides a label cannot be read.
    """
    adopted = []
    for number, entry in enumerate(entries):
        mask = entry.get("mask_file_name", entry.get("sem_seg_file_name"))
        if "file_name" not in entry or (mask is None and "label" not in entry):
            raise DatasetError(
                f"{name}: entry {number} has the keys {', '.join(map(str, entry))}; it needs "
                "file_name, and label (1 forged, 0 authentic, None) or mask_file_name"
            )
        try:
            if "label" in entry or mask is None:
                label = parse_label(entry["label"])
            else:
                label = int(read_mask(mask).max() >= 0.5)
        except ValueError as error:
            raise DatasetError(f"{name}: entry {number}: {error}; correct it") from error
        needed = make_dataset_dict(
            entry["file_name"],
            str(entry.get("image_id", entry["file_name"])),
            label=label,
            mask_file_name=mask,
            technique=str(entry.get("technique", "")),
            source=str(entry.get("source", "")),
        )
        adopted.append({**entry, **needed})
    return adopted
