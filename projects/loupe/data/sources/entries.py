"""What a data set consists of: one dict for each image, and what is wrong with the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DatasetDict = dict[str, Any]

# What a list may write for a label: 1 = forged, 0 = authentic, None = unlabelled.
_LABELS: dict[str | float | None, int | None] = {
    None: None,
    "": None,
    "0": 0,
    "0.0": 0,
    "1": 1,
    "1.0": 1,
    0: 0,
    1: 1,
}


class DatasetError(ValueError):
    """A folder or list file that is no data set: names the place, what is wrong and the remedy."""


class Problem(NamedTuple):
    """One thing in a data set that cannot be used.

    Attributes:
        item: the file, or the line of a list.
        fault: what is wrong with it.
        remedy: what to do.
    """

    item: str
    fault: str
    remedy: str

    def __str__(self) -> str:
        """For a report that names the data set and the remedy elsewhere."""
        return f"{self.item}: {self.fault}"


class Listing(NamedTuple):
    """The images of a data set, and what could not be listed.

    Attributes:
        entries: dataset dicts.
        problems: files and lines that are left out, or whose mask cannot be told.
    """

    entries: list[DatasetDict]
    problems: Sequence[Problem] = ()

    def strict(self, place: str | Path) -> list[DatasetDict]:
        """The entries, if all is well.

        Raises:
            DatasetError: there is a problem, or no image. Names all items of the first fault.
        """
        if self.problems:
            fault, remedy = self.problems[0].fault, self.problems[0].remedy
            items = [problem.item for problem in self.problems if problem.fault == fault]
            rest = len(self.problems) - len(items)
            more = f" ({rest} other problems: tools/doctor.py lists them)" if rest else ""
            raise DatasetError(f"{place}: {names(items)}: {fault}; {remedy}{more}")
        if not self.entries:
            raise DatasetError(f"{place}: there are no images in it; check the path")
        return self.entries


def join(listings: Iterable[Listing]) -> Listing:
    """One listing of several, in turn."""
    listings = list(listings)
    return Listing(
        [entry for listing in listings for entry in listing.entries],
        [problem for listing in listings for problem in listing.problems],
    )


def make_dataset_dict(
    file_name: str | Path,
    image_id: str,
    *,
    label: int | None,
    mask_file_name: str | Path | None = None,
    technique: str = "",
    source: str = "",
    wholly_forged: bool = False,
) -> DatasetDict:
    """One entry of a data set, as every part of Loupe expects it; files are not opened.

    Args:
        file_name: the image file.
        image_id: unique in the data set, and the same whenever it is listed.
        label: 1 = forged, 0 = authentic, None = unlabelled.
        mask_file_name: the mask file; None = authentic, or the mask is not known.
        technique: how it was forged, where the data set says so.
        source: where it comes from, where the data set says so.
        wholly_forged: every pixel is forged, so that no mask file is needed.
    """
    entry = {
        "file_name": str(file_name),
        "mask_file_name": None if mask_file_name is None else str(mask_file_name),
        "label": label,
        "image_id": image_id,
        "technique": technique,
        "source": source,
    }
    return entry | {"wholly_forged": True} if wholly_forged else entry


def parse_label(value: Any) -> int | None:
    """A label as lists write it: 1 (forged), 0 (authentic), nothing (unlabelled).

    Raises:
        ValueError: it is none of these.

    Example:
        >>> parse_label("1"), parse_label(0.0), parse_label("")
        (1, 0, None)
    """
    key = value.strip() if isinstance(value, str) else value
    if not isinstance(key, str | int | float | None) or key not in _LABELS:
        raise ValueError(f"the label is {value!r:.60}")
    return _LABELS[key]


def names(items: Iterable[str], limit: int = 5) -> str:
    """The first names of a list, for a message."""
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
