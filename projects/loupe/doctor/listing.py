"""Lists a data set for examination: what does not pair is reported, and the rest is listed still.

Readers refuse a set with an orphan mask; a doctor that stopped there would miss every other fault.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from loupe.data.sources.catalog import DATASETS, dataset_root, load_dataset
from loupe.data.sources.loading import load_path
from loupe.data.sources.manifest import read_manifest
from loupe.data.sources.pairing import (
    MASK_STEM_ENDINGS,
    DatasetDict,
    DatasetError,
    list_images,
    make_dataset_dict,
    read_unpaired,
)
from loupe.data.sources.readers import read_json_list, read_text_list
from loupe.data.sources.synthetic import is_synthetic

SPLITS = ("train", "valid", "val", "validation", "test")

# Folders of forged images, of their masks, and of authentic images, as the readers know them.
_FOLDERS = (
    ("fake", "masks", "real"),
    ("fake", "mask", "real"),
    ("Tp", "Gt", "Au"),
    ("tampered", "masks", "real"),
    ("images", "masks", None),
    ("image", "mask", None),
    ("images", "mask", None),
)
_LISTS: dict[str, Callable[[Path], list[DatasetDict]]] = {
    ".csv": read_manifest,
    ".json": read_json_list,
    ".txt": read_text_list,
}


class Listing(NamedTuple):
    """One set to examine.

    Attributes:
        name: short and unique among those examined together.
        entries: dataset dicts.
        problems: what does not pair, one message each.
    """

    name: str
    entries: list[DatasetDict]
    problems: list[str]


def list_datasets(names_or_paths: list[str]) -> list[Listing]:
    """Lists sets; a folder with several splits is one set for each.

    Raises:
        DatasetError: there is no such set, or it cannot be listed even in part.
    """
    if len(set(names_or_paths)) < len(names_or_paths):
        raise DatasetError("a data set is given twice; give each once")
    places = [place for given in names_or_paths for place in _splits(given)]
    shorts = _short_names(places)
    return [Listing(short, *_list(place)) for short, place in zip(shorts, places, strict=True)]


def _splits(given: str) -> list[str]:
    folders = [os.path.join(given, split) for split in SPLITS]
    found = [folder for folder in folders if os.path.isdir(folder)]
    is_listed = os.path.isfile(os.path.join(given, "manifest.csv"))
    return found if len(found) > 1 and not is_listed else [given]


def _short_names(places: list[str]) -> list[str]:
    """The last parts of each path, as many as tell the sets apart."""
    parts = [Path(os.path.normpath(place)).parts for place in places]
    parts = [p[:-1] if p[-1] == "manifest.csv" and len(p) > 1 else p for p in parts]
    for count in range(1, max(map(len, parts)) + 1):
        shorts = ["/".join(p[-count:]) for p in parts]
        if len(set(shorts)) == len(shorts):
            return shorts
    return places


def _list(place: str) -> tuple[list[DatasetDict], list[str]]:
    if is_synthetic(place):
        raise DatasetError(f"{place}: is made when it is read and has no files to examine")
    try:
        return load_dataset(place), []
    except DatasetError:
        path = _folder_of(place)
        entries, problems = [], []
        if path.is_dir():
            entries, problems = _pair_what_pairs(path)
        elif path.suffix.lower() in _LISTS:
            entries, problems = _list_once(_LISTS[path.suffix.lower()](path))
        if not entries or not problems:
            raise
        return entries, problems


def _folder_of(place: str) -> Path:
    """Path of a set; a named one that is published in a tree of its own has none to pair in."""
    if place in DATASETS and DATASETS[place].read is load_path:
        return dataset_root() / DATASETS[place].path
    return Path(place)


def _list_once(entries: list[DatasetDict]) -> tuple[list[DatasetDict], list[str]]:
    counts = Counter(entry["image_id"] for entry in entries)
    first = {entry["image_id"]: entry for entry in reversed(entries)}
    twins = [f"{image}: listed {count} times" for image, count in counts.items() if count > 1]
    return [first[image] for image in counts], twins


def _pair_what_pairs(root: Path) -> tuple[list[DatasetDict], list[str]]:
    """Entries and problems of a folder, whatever pairs with what."""
    if (root / "manifest.csv").is_file():
        return _list_once(read_manifest(root / "manifest.csv"))
    entries: list[DatasetDict] = []
    problems: list[str] = []
    folders = [(root / f, root / m, root / a if a else None) for f, m, a in _FOLDERS]
    folders = [pair for pair in folders if pair[0].is_dir() and pair[1].is_dir()][:1]
    folders += [
        (part / "image", part / "mask", None)
        for part in sorted(root.glob("*_Tp"))
        if (part / "image").is_dir() and (part / "mask").is_dir()
    ]
    for forged, masks, authentic in folders:
        if authentic is not None and authentic.is_dir():
            entries += read_unpaired(authentic, label=0)
        # In a folder of both kinds, a mask is what makes an image forged.
        both_kinds = forged.name in ("images", "image") and forged.parent == root
        paired, unpaired = _pair(forged, masks, label_without_mask=0 if both_kinds else 1)
        entries += paired
        problems += unpaired
    for part in sorted(root.glob("*_Au/image")):
        entries += read_unpaired(part, label=0)
    if folders and (root / "full_synthetic").is_dir():
        entries += read_unpaired(root / "full_synthetic", label=1, wholly_forged=True)
    return entries, problems


def _pair(
    forged: Path, masks: Path, *, label_without_mask: int
) -> tuple[list[DatasetDict], list[str]]:
    images, masks_by_stem = _by_stem(forged), _by_stem(masks)
    problems = [
        f"{folder.name}/: share their stem: {', '.join(files)}"
        for folder, stems in ((forged, images), (masks, masks_by_stem))
        for files in stems.values()
        if len(files) > 1
    ]
    entries, used = [], set()
    for stem, files in images.items():
        found = next((stem + end for end in MASK_STEM_ENDINGS if stem + end in masks_by_stem), None)
        used.add(found)
        mask = None if found is None else masks / masks_by_stem[found][0]
        # Which of two images the mask belongs to cannot be known: neither is paired.
        ambiguous = len(files) > 1 or (found is not None and len(masks_by_stem[found]) > 1)
        for image in files:
            entries.append(
                make_dataset_dict(
                    forged / image,
                    f"{forged.name}/{image}",
                    label=1 if mask is not None else label_without_mask,
                    mask_file_name=None if ambiguous else mask,
                )
            )
    problems += [
        f"{masks.name}/{file}: belongs to no image"
        for stem, files in masks_by_stem.items()
        if stem not in used
        for file in files
    ]
    return entries, problems


def _by_stem(folder: Path) -> dict[str, list[str]]:
    stems = defaultdict(list)
    for image in list_images(folder):
        stems[os.path.splitext(image)[0]].append(image)
    return stems
