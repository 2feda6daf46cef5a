"""Lists of images as JSON or text, of IMDL-BenCo, ForensicHub and MVSS-Net.

Paths are relative to the list, or absolute.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loupe.data.sources.entries import (
    DatasetDict,
    DatasetError,
    Listing,
    Problem,
    make_dataset_dict,
    parse_label,
)
from loupe.data.sources.files import local_path

NO_MASK = ("Negative", "None", "none", "", None)
_JSON_ROW = '[image, mask or "Negative"] or {"path", "mask", "label"}'


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        DatasetError: it is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON ({error}); correct the file") from None


def read_json_list(path: Path, rows: Any) -> Listing:
    """Lists `[[image, mask], ...]` (IMDL-BenCo) or `[{"path", "mask", "label"}]` (ForensicHub).

    Args:
        path: the file.
        rows: its content.

    Raises:
        DatasetError: it is no list.
    """
    if not isinstance(rows, list):
        raise DatasetError(
            f"{path}: the JSON must be a list of {_JSON_ROW}; it is a {type(rows).__name__}"
        )
    numbered = ((f"entry {number}", row, _json_cells(row)) for number, row in enumerate(rows))
    return _read(path, numbered, f"write {_JSON_ROW}, the label 1, 0 or null")


def read_text_list(path: Path) -> Listing:
    """Lists lines `image mask label` of MVSS-Net (mask `None` for an authentic image)."""
    lines = path.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines()
    numbered = (
        (f"line {number}", line, _text_cells(line))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )
    return _read(path, numbered, "write: image, mask or None, 0 or 1")


def read_collection(path: Path, content: Any) -> list[tuple[str, Path]] | None:
    """Parts (name, path) of an IMDL-BenCo list of data sets; None if the content is none.

    Known: `[["ManiDataset" | "JsonDataset", path], ...]` for training, `{name: path}` for tests.
    """
    if isinstance(content, dict) and all(isinstance(value, str) for value in content.values()):
        return [(name, path.parent / part) for name, part in content.items()]
    if isinstance(content, list) and content and all(_is_part(row) for row in content):
        return [(Path(part).stem, path.parent / part) for _, part in content]
    return None


def _is_part(row: Any) -> bool:
    return (
        isinstance(row, list)
        and len(row) == 2
        and row[0] in ("ManiDataset", "JsonDataset")
        and isinstance(row[1], str)
    )


def _json_cells(row: Any) -> list[Any] | None:
    """Image, mask and label of an entry of a JSON list."""
    if isinstance(row, dict) and "path" in row:
        return [row["path"], row.get("mask"), row.get("label")]
    return [*row, None] if isinstance(row, list) and len(row) == 2 else None


def _text_cells(line: str) -> list[Any] | None:
    words = line.rsplit(maxsplit=2)
    return words if len(words) == 3 else None


def _read(path: Path, rows: Iterable[tuple[str, Any, list[Any] | None]], remedy: str) -> Listing:
    entries, problems = [], []
    for place, row, cells in rows:
        try:
            if cells is None:
                raise ValueError(f"it is {str(row)!r:.80}")
            entries.append(_entry(path.parent, *cells))
        except ValueError as error:
            problems.append(Problem(place, str(error), remedy))
    return Listing(entries, problems)


def _entry(folder: Path, image: Any, mask: Any, label: Any) -> DatasetDict:
    if not isinstance(image, str) or not isinstance(mask, str | None) or not image:
        raise ValueError(f"image is {image!r:.60} and mask is {mask!r:.60}")
    if "\0" in image + (mask or ""):
        raise ValueError(f"image is {image!r:.60}")
    has_mask = mask not in NO_MASK
    image = local_path(folder, image)
    known = parse_label(label)
    return make_dataset_dict(
        folder / image,
        image,
        label=int(has_mask) if known is None else known,
        mask_file_name=folder / local_path(folder, str(mask)) if has_mask else None,
    )
