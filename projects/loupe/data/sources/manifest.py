"""The CSV manifest of Loupe: `image,mask,label,technique,source`, read and written.

Paths are relative to the manifest, or absolute. Only the column `image` is needed.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from loupe.data.images.decoding import read_mask
from loupe.data.sources.pairing import DatasetDict, DatasetError, make_dataset_dict

COLUMNS = ("image", "mask", "label", "technique", "source")
_LABELS = {"": None, "0": 0, "1": 1, "0.0": 0, "1.0": 1}
# In the mask's column: every pixel is forged, there is no file.
_WHOLE = "*"


def read_manifest(path: Path) -> list[DatasetDict]:
    """Reads a CSV of `image,mask,label,technique,source`; paths are relative to the file.

    Only `image` is needed. An empty mask means authentic, unless the label is 1: then the mask is
    unknown. An empty label means 1 with a mask; without mask and with a label column it is
    unlabelled.

    Raises:
        DatasetError: a column or a label is wrong.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        unknown = [column for column in columns if column not in COLUMNS]
        if "image" not in columns or unknown:
            raise DatasetError(
                f"{path}: the first line must name the column image and may name the others of "
                f"{','.join(COLUMNS)}; it is {','.join(columns)!r}"
            )
        return [_manifest_entry(path, row, reader.line_num) for row in reader]


def _manifest_entry(path: Path, row: dict[str, str], line: int) -> DatasetDict:
    image, mask = (row.get("image") or "").strip(), (row.get("mask") or "").strip()
    text = (row.get("label") or "").strip()
    if not image or text not in _LABELS or None in row:
        raise DatasetError(
            f"{path}: line {line}: image is {image!r} and label is {text!r}; "
            "give an image file, and 1 (forged), 0 (authentic) or nothing (unlabelled)"
        )
    label = _LABELS[text]
    if label is None and (mask or "label" not in row):
        label = int(bool(mask))
    return make_dataset_dict(
        path.parent / image,
        image,
        label=label,
        mask_file_name=path.parent / mask if mask and mask != _WHOLE else None,
        technique=(row.get("technique") or "").strip(),
        source=(row.get("source") or "").strip(),
        wholly_forged=mask == _WHOLE,
    )


def write_manifest(entries: Sequence[DatasetDict], folder: Path) -> Path:
    """Writes the manifest of a data set into a folder and returns its path.

    Images stay where they are. Masks that need a rule to be read are written into `masks/` as
    0 and 255, since a manifest has no column for rules.

    Raises:
        FileExistsError: the folder has a manifest already.
        UnreadableImageError: a mask that must be written anew cannot be read.
    """
    manifest = folder / "manifest.csv"
    if manifest.exists():
        raise FileExistsError(f"{manifest} exists; remove it or choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    with open(manifest, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number, entry in enumerate(entries):
            writer.writerow(
                (
                    os.path.relpath(entry["file_name"], folder),
                    _mask_cell(entry, folder, number),
                    "" if entry["label"] is None else entry["label"],
                    entry["technique"],
                    entry["source"],
                )
            )
    return manifest


def _mask_cell(entry: DatasetDict, folder: Path, number: int) -> str:
    mask = entry["mask_file_name"]
    if entry.get("wholly_forged"):
        return _WHOLE
    if mask is None:
        return ""
    if not entry.get("mask_rule"):
        return os.path.relpath(mask, folder)
    pixels = read_mask(mask, entry["mask_rule"])
    name = f"masks/{number:07d}_{Path(mask).stem}.png"
    (folder / "masks").mkdir(exist_ok=True)
    Image.fromarray(np.where(pixels >= 0.5, 255, 0).astype(np.uint8)).save(folder / name)
    return name
