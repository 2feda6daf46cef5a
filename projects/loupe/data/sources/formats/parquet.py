"""Parquet files with the columns `image` (or `path`), `mask`, `label`, `technique`, `source`.

Listed are files, not pixels: a table that embeds images must be unpacked first
(`datasets/extract_parquet.py`), since everything that reads images reads files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from pyarrow.parquet import ParquetFile

from loupe.data.sources.entries import (
    DatasetDict,
    DatasetError,
    Listing,
    Problem,
    make_dataset_dict,
    parse_label,
)
from loupe.data.sources.files import local_path
from loupe.data.sources.formats.lists import NO_MASK

COLUMNS = ("image", "path", "mask", "label", "technique", "source")
# What a file may unpack to, beside a hundred times its own size: images and names that differ do
# not shrink to less, a bomb does.
_UNPACKED_BYTES = 64 << 20
_UNPACKED_FACTOR = 100
_ROWS = 1_000_000
_ROWS_PER_BYTE = 8
_METADATA_BYTES = 64 << 20


def read_parquet(path: Path) -> Listing:
    """Lists a parquet file whose columns hold paths, relative to it or absolute.

    The image is the column `image` (or, without it, `path`), the mask `mask`: none = authentic,
    unless `label` is 1. `technique` and `source` are taken if they are there.

    Raises:
        DatasetError: it is no parquet or too large, a column is missing, or pixels are embedded.
    """
    entries, problems = [], []
    for number, row in enumerate(parquet_rows(path)):
        embedded = [key for key in ("image", "mask") if image_bytes(row.get(key)) is not None]
        if embedded:
            raise DatasetError(
                f"{path}: the column {embedded[0]!r} holds images, not their paths; unpack it with "
                "datasets/extract_parquet.py and load the folder"
            )
        try:
            entries.append(_entry(path.parent, row))
        except ValueError as error:
            remedy = "give paths, and 1 (forged), 0 (authentic) or nothing (unlabelled)"
            problems.append(Problem(f"row {number}", str(error), remedy))
    return Listing(entries, problems)


def _entry(folder: Path, row: dict[str, Any]) -> DatasetDict:
    image, mask = row.get("image") or row.get("path"), row.get("mask")
    if not isinstance(image, str) or not isinstance(mask, str | None):
        raise ValueError(f"image is {image!r:.60} and mask is {mask!r:.60}")
    has_mask = mask not in NO_MASK
    image = local_path(folder, image)
    return make_dataset_dict(
        folder / image,
        image,
        label=parquet_label(row, has_mask),
        mask_file_name=folder / local_path(folder, str(mask)) if has_mask else None,
        technique=str(row.get("technique") or ""),
        source=str(row.get("source") or ""),
    )


def parquet_rows(path: Path, batch_size: int = 64) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file, a few in memory at a time.

    Raises:
        DatasetError: the file is no parquet, a column is missing, or it unpacks to too much.
    """
    limits = {
        "thrift_string_size_limit": _METADATA_BYTES,
        "thrift_container_size_limit": _METADATA_BYTES,
    }
    try:
        with ParquetFile(path, **limits) as file:
            columns = file.schema_arrow.names
            if not {"image", "path"} & set(columns):
                raise DatasetError(
                    f"{path}: the columns are {', '.join(columns)}; there must be image or path, "
                    "and there may be mask, label, technique, source"
                )
            _check_size(path, file)
            wanted = [column for column in COLUMNS if column in columns]
            for batch in file.iter_batches(batch_size, columns=wanted):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise DatasetError(f"{path}: is no parquet file ({error}); copy it again") from None


def _check_size(path: Path, file: ParquetFile) -> None:
    """Refuses, by the metadata alone, what unpacks to far more than it is."""
    metadata, size = file.metadata, path.stat().st_size
    unpacked = sum(
        metadata.row_group(group).column(column).total_uncompressed_size
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )
    if (
        unpacked > _UNPACKED_BYTES + _UNPACKED_FACTOR * size
        or metadata.num_rows > _ROWS + _ROWS_PER_BYTE * size
    ):
        raise DatasetError(
            f"{path}: {size} bytes unpack to {unpacked} in {metadata.num_rows} rows; "
            "a list of images does not shrink so much: make it anew"
        )


def image_bytes(cell: Any) -> bytes | None:
    """The file that a cell embeds, as bytes or as Hugging Face's `{"bytes", "path"}`; or None."""
    if isinstance(cell, dict):
        cell = cell.get("bytes")
    return cell if isinstance(cell, bytes) and cell else None


def parquet_label(row: dict[str, Any], has_mask: bool) -> int | None:
    """Label of a row: its column's, else 1 with a mask; without either column it is unknown.

    Raises:
        ValueError: the label is neither 0, 1 nor empty.
    """
    label = parse_label(row.get("label"))
    if label is None and (has_mask or ("mask" in row and "label" not in row)):
        return int(has_mask)
    return label
