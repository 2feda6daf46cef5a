"""Reads data sets from parquet files with the columns `path`, `image`, `mask` (and `label`).

Here the files are looked at, not their pixels: a table that embeds images must be unpacked first
(`datasets/extract_parquet.py`), since everything that reads images reads files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loupe.data.sources.pairing import DatasetDict, DatasetError, make_dataset_dict

_NO_MASK = ("", "None", "none", "Negative")


def read_parquet(path: Path) -> list[DatasetDict]:
    """Dataset dicts of a parquet file whose columns hold paths, relative to it or absolute.

    The image is the column `image` (or, without it, `path`), the mask `mask`: none = authentic,
    unless `label` is 1. `technique` and `source` are taken if they are there.

    Raises:
        DatasetError: pyarrow is not installed, a column is missing, or pixels are embedded.
    """
    entries = []
    for number, row in enumerate(parquet_rows(path)):
        embedded = [key for key in ("image", "mask") if image_bytes(row.get(key)) is not None]
        if embedded:
            raise DatasetError(
                f"{path}: the column {embedded[0]!r} holds images, not their paths; unpack it with "
                "datasets/extract_parquet.py and load the folder"
            )
        image, mask = row.get("image") or row.get("path"), row.get("mask")
        if not isinstance(image, str) or not isinstance(mask, str | None):
            raise DatasetError(
                f"{path}: row {number} has image {image!r} and mask {str(mask)[:60]!r}; "
                "they must be paths"
            )
        has_mask = mask not in (*_NO_MASK, None)
        entries.append(
            make_dataset_dict(
                path.parent / image,
                image,
                label=parquet_label(path, number, row, has_mask),
                mask_file_name=path.parent / mask if has_mask else None,
                technique=row.get("technique") or "",
                source=row.get("source") or "",
            )
        )
    return entries


def parquet_rows(path: Path, batch_size: int = 64) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file, a few in memory at a time.

    Raises:
        DatasetError: pyarrow is not installed, the file is no parquet, or a column is missing.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DatasetError(
            f"{path}: reading parquet needs pyarrow; install it: pip install pyarrow"
        ) from None
    try:
        file = ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise DatasetError(f"{path}: is no parquet file ({error}); copy it again") from None
    with file:
        columns = file.schema_arrow.names
        if not {"image", "path"} & set(columns):
            raise DatasetError(
                f"{path}: the columns are {', '.join(columns)}; there must be image or path, and "
                "there may be mask, label, technique, source"
            )
        for batch in file.iter_batches(batch_size):
            yield from batch.to_pylist()


def image_bytes(cell: Any) -> bytes | None:
    """The file that a cell embeds, as bytes or as Hugging Face's `{"bytes", "path"}`; or None."""
    if isinstance(cell, dict):
        cell = cell.get("bytes")
    return cell if isinstance(cell, bytes) and cell else None


def parquet_label(path: Path, number: int, row: dict[str, Any], has_mask: bool) -> int | None:
    """Label of a row: its column's, else 1 with a mask; without either column it is unknown.

    Raises:
        DatasetError: the label is neither 0, 1 nor empty.
    """
    label = row.get("label")
    if label is None:
        known = has_mask or ("mask" in row and "label" not in row)
        return int(has_mask) if known else None
    if label not in (0, 1):
        raise DatasetError(
            f"{path}: row {number} has label {label!r}; give 1 (forged), 0 (authentic) or nothing"
        )
    return int(label)
