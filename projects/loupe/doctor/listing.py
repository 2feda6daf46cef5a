"""Lists data sets for examination: what does not pair is reported, and the rest is listed still."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from loupe.data.sources.catalog import list_dataset
from loupe.data.sources.entries import DatasetDict, DatasetError
from loupe.data.sources.synthetic import is_synthetic

SPLITS = ("train", "valid", "val", "validation", "test")


class ListedDataset(NamedTuple):
    """One set to examine.

    Attributes:
        name: short and unique among those examined together.
        entries: dataset dicts.
        problems: what does not pair or cannot be used, one message each.
    """

    name: str
    entries: list[DatasetDict]
    problems: list[str]


def list_datasets(names_or_paths: list[str]) -> list[ListedDataset]:
    """Lists sets; a folder with several splits is one set for each.

    Raises:
        DatasetError: there is no such set, or nothing of it can be listed.
    """
    if len(set(names_or_paths)) < len(names_or_paths):
        raise DatasetError("a data set is given twice; give each once")
    places = [place for given in names_or_paths for place in _splits(given)]
    shorts = _short_names(places)
    return [_list(short, place) for short, place in zip(shorts, places, strict=True)]


def _list(name: str, place: str) -> ListedDataset:
    if is_synthetic(place):
        raise DatasetError(f"{place}: is made when it is read and has no files to examine")
    listing = list_dataset(place)
    if not listing.entries:
        listing.strict(place)
    return ListedDataset(name, listing.entries, [str(problem) for problem in listing.problems])


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
