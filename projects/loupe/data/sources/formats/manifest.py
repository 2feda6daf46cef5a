"""The CSV manifest of Loupe: `image,mask,label,technique,source`, read and written.

Paths are relative to the manifest, or absolute. Only the column `image` is needed, further columns
are ignored. Written is UTF-8 with commas. Read is what spreadsheets save, too: UTF-8 or UTF-16 with
a byte order mark, semicolons, tabs or bars between cells, Windows' paths.
"""

from __future__ import annotations

import csv
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from PIL import Image

from loupe.data.images.masks import read_mask
from loupe.data.sources.entries import (
    DatasetDict,
    DatasetError,
    Listing,
    Problem,
    make_dataset_dict,
    names,
    parse_label,
)
from loupe.data.sources.files import local_path
from loupe.writing import guard_cell, read_cell, replacing, write_csv

COLUMNS = ("image", "mask", "label", "technique", "source")
# In the mask's column: every pixel is forged, there is no file.
WHOLLY_FORGED = "*"

_DELIMITERS = ",;\t|"
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
_REMEDY = "give an image file, and 1 (forged), 0 (authentic) or nothing (unlabelled)"

_logger = logging.getLogger(__name__)


class Header(NamedTuple):
    """How a manifest is written.

    Attributes:
        encoding: of its text.
        delimiter: between its cells.
        columns: names of the columns, in small letters.
    """

    encoding: str
    delimiter: str
    columns: list[str]


def read_manifest(path: Path) -> Listing:
    """Lists a CSV of `image,mask,label,technique,source`; a line that cannot be used is a problem.

    An empty mask means authentic, unless the label is 1: then the mask is unknown. An empty label
    means 1 with a mask; without mask and with a label column it is unlabelled.

    Raises:
        DatasetError: the first line does not name the column `image`, or it is no text.
    """
    header = read_header(path)
    further = [column for column in header.columns if column not in COLUMNS]
    if further:
        _logger.warning("%s: columns that are ignored: %s", path, names(further))
    # A column that is missing has a place that no row has.
    places = [header.columns.index(c) if c in header.columns else sys.maxsize for c in COLUMNS]
    entries, problems = [], []
    for line, cells in read_rows(path, header):
        try:
            if len(cells) > len(header.columns):
                raise ValueError("it has more cells than there are columns")
            known = [cells[place].strip() if place < len(cells) else "" for place in places]
            entries.append(_entry(path.parent, known, "label" in header.columns))
        except ValueError as error:
            problems.append(Problem(f"line {line}", str(error), _REMEDY))
    return Listing(entries, problems)


def read_header(path: Path) -> Header:
    """Looks at the first line of a manifest.

    Raises:
        DatasetError: it does not name the column `image`, or it is no text.
    """
    with open(path, "rb") as file:
        start = file.read(4096)
    encoding = next((e for mark, e in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in start:
        raise DatasetError(f"{path}: line 1 is no text in UTF-8 (it has zeros); save it as UTF-8")
    with _opened(path, encoding) as file:
        first = file.readline()
    delimiter = max(_DELIMITERS, key=first.count)
    cells = next(csv.reader([first], delimiter=delimiter), [])
    columns = [cell.strip().lower() for cell in cells]
    if "image" not in columns:
        raise DatasetError(
            f"{path}: line 1 must name the column image and may name the others of "
            f"{','.join(COLUMNS)}; it is {first.strip()!r:.80}"
        )
    return Header(encoding, delimiter, columns)


def read_rows(path: Path, header: Header) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line but the first; empty lines are left out.

    Raises:
        DatasetError: it is no CSV.
    """
    with _opened(path, header.encoding) as file:
        reader = csv.reader(file, delimiter=header.delimiter)
        try:
            next(reader)
            for cells in reader:
                if cells:
                    yield reader.line_num, [read_cell(cell) for cell in cells]
        except (csv.Error, UnicodeError) as error:
            raise DatasetError(
                f"{path}: line {reader.line_num} is no CSV ({error}); save it in UTF-8"
            ) from None


def _opened(path: Path, encoding: str) -> TextIO:
    # Bytes that are no UTF-8 stay, as in the names that Python gets from the file system.
    return open(path, newline="", encoding=encoding, errors="surrogateescape")


def _entry(folder: Path, cells: list[str], has_labels: bool) -> DatasetDict:
    """One dataset dict of the cells of COLUMNS.

    Raises:
        ValueError: they are wrong.
    """
    if not all(map(str.isascii, cells)):
        cells = _decoded(folder, cells)
    image, mask, text, technique, source = cells
    if not image or "\0" in image + mask:
        raise ValueError(f"image is {image!r}")
    image, mask = local_path(folder, image), local_path(folder, mask)
    label = parse_label(text)
    if label is None and (mask or not has_labels):
        label = int(bool(mask))
    is_whole = mask == WHOLLY_FORGED
    return make_dataset_dict(
        folder / image,
        image,
        label=label,
        mask_file_name=folder / mask if mask and not is_whole else None,
        technique=technique,
        source=source,
        wholly_forged=is_whole,
    )


def _decoded(folder: Path, cells: list[str]) -> list[str]:
    """Cells that may hold bytes that are no UTF-8: names of such bytes, or a list in Latin-1.

    Raises:
        ValueError: no file tells which.
    """
    is_utf8 = not any("\udc80" <= letter <= "\udcff" for cell in cells for letter in cell)
    if is_utf8 or os.path.exists(folder / cells[0]):
        return cells
    latin = [os.fsencode(cell).decode("cp1252", "replace") for cell in cells]
    if os.path.exists(folder / latin[0]):
        return latin
    raise ValueError("it is not UTF-8, and read as Latin-1 it names no file (save it as UTF-8)")


def write_manifest(
    entries: Iterable[DatasetDict], folder: Path, name: str = "manifest.csv"
) -> Path:
    """Writes the manifest of a data set into a folder and returns its path.

    Images stay where they are. Masks that need a rule to be read are written into `masks/` as
    0 and 255, since a manifest has no column for rules.

    Raises:
        FileExistsError: the folder has a manifest already.
        UnreadableImageError: a mask that must be written anew cannot be read.
    """
    manifest = folder / name
    if manifest.exists():
        raise FileExistsError(f"{manifest} exists; remove it or choose another --output")
    rows = (
        (
            _path_cell(entry["file_name"], folder),
            _mask_cell(entry, folder, number),
            "" if entry["label"] is None else entry["label"],
            entry["technique"],
            entry["source"],
        )
        for number, entry in enumerate(entries)
    )
    write_csv(manifest, COLUMNS, rows)
    return manifest


def _path_cell(path: str, folder: Path) -> str:
    """A relative path that no spreadsheet takes for a formula."""
    cell = os.path.relpath(path, folder)
    return cell if guard_cell(cell) == cell else os.path.join(os.curdir, cell)


def _mask_cell(entry: DatasetDict, folder: Path, number: int) -> str:
    mask = entry["mask_file_name"]
    if entry.get("wholly_forged"):
        return WHOLLY_FORGED
    if mask is None:
        return ""
    if not entry.get("mask_rule"):
        return _path_cell(mask, folder)
    pixels = read_mask(mask, entry["mask_rule"])
    name = f"masks/{number:07d}_{Path(mask).stem}.png"
    with replacing(folder / name) as file:
        Image.fromarray(np.where(pixels >= 0.5, 255, 0).astype(np.uint8)).save(file, "PNG")
    return name
