#!/usr/bin/env python3
"""Unpacks parquet files that embed images: writes images, masks and a manifest.csv.

Columns: `image` (bytes, or Hugging Face's {"bytes", "path"}), and perhaps `path` (a name), `mask`,
`label`, `technique`, `source`. Files are written as they are embedded, byte for byte.

Example:
    python datasets/extract_parquet.py train-00000.parquet train-00001.parquet --output mine
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from loupe.data.images.formats import format_of
from loupe.data.sources.entries import DatasetError
from loupe.data.sources.formats.manifest import COLUMNS
from loupe.data.sources.formats.parquet import image_bytes, parquet_label, parquet_rows
from loupe.writing import write_csv


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="parquet files, joined in this order")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    return parser.parse_args(words)


def extract(files: list[Path], folder: Path) -> int:
    """Writes the files and the manifest; returns the number of images.

    Raises:
        DatasetError: a file is no parquet of images.
        FileExistsError: the folder has a manifest.
    """
    manifest = folder / "manifest.csv"
    if manifest.exists():
        raise FileExistsError(f"{manifest} exists; choose another --output")
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    count = 0

    def rows() -> Iterator[tuple[str, str, Any, str, str]]:
        nonlocal count
        for path, number, row in _numbered_rows(files):
            yield _extract_row(path, number, row, folder, count)
            count += 1

    write_csv(manifest, COLUMNS, rows())
    return count


def _numbered_rows(files: list[Path]) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    for path in files:
        for number, row in enumerate(parquet_rows(path)):
            yield path, number, row


def _extract_row(
    path: Path, number: int, row: dict[str, Any], folder: Path, count: int
) -> tuple[str, str, Any, str, str]:
    """Writes one image and its mask, if there is one; returns the manifest's row."""
    image, mask = image_bytes(row.get("image")), image_bytes(row.get("mask"))
    if image is None:
        raise DatasetError(
            f"{path}: row {number} embeds no image in the column 'image'; if the columns hold "
            "paths, the file can be loaded as it is"
        )
    # Numbered, because embedded names need not be unique, nor safe to write to.
    stem = f"{count:07d}_{PurePosixPath(str(_name(row))).stem}".rstrip("_")
    image_name = f"images/{stem}{_suffix(path, number, image)}"
    (folder / image_name).write_bytes(image)
    mask_name = ""
    if mask is not None:
        mask_name = f"masks/{stem}{_suffix(path, number, mask)}"
        (folder / mask_name).write_bytes(mask)
    try:
        label = parquet_label(row, mask is not None)
    except ValueError as error:
        raise DatasetError(f"{path}: row {number}: {error}; give 1, 0 or nothing") from None
    return (
        image_name,
        mask_name,
        "" if label is None else label,
        row.get("technique") or "",
        row.get("source") or "",
    )


def _name(row: dict[str, Any]) -> str:
    inner = row["image"].get("path") if isinstance(row["image"], dict) else None
    return (row.get("path") or inner or "").replace("\\", "/")


def _suffix(path: Path, number: int, data: bytes) -> str:
    kind = format_of(data)
    if not kind:
        raise DatasetError(
            f"{path}: row {number} embeds no image of a known format (it begins with {data[:8]!r})"
        )
    return {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}.get(kind, f".{kind.lower()}")


def main(words: list[str] | None = None) -> None:
    """Unpacks the files."""
    arguments = parse_arguments(words)
    try:
        count = extract(arguments.files, arguments.output)
    except (DatasetError, FileExistsError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{arguments.output / 'manifest.csv'}: {count} images")


if __name__ == "__main__":
    main()
