"""A pool of photographs in one file of pixels, as `datasets/photograph_pool.py` packs it.

Pixels are mapped into memory, so that a window of a photograph of 20 megapixels costs what the
window costs, and processes share what one of them has read.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from loupe.data.sources.entries import DatasetError

# Luma and chroma, 64 steps each, row by row.
Tables = tuple[tuple[int, ...], tuple[int, ...]]
_COLUMNS = {"offset", "height", "width"}


class PhotographPool:
    """Photographs of a pool, each (H, W, 3) uint8 RGB and read-only.

    Args:
        path: the list, SPLIT.csv; pixels lie beside it in SPLIT.pixels, and quantisation tables of
            cameras, where there are any, in tables.json.

    Attributes:
        tables: quantisation tables of cameras.

    Raises:
        DatasetError: the pixels are not there or too few.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self._places = [
            tuple(int(row[key]) for key in ("offset", "height", "width")) for row in rows
        ]
        pixels = path.with_suffix(".pixels")
        needed = max((start + 3 * h * w for start, h, w in self._places), default=0)
        found = pixels.stat().st_size if pixels.is_file() else 0
        if not needed or found < needed:
            raise DatasetError(
                f"{pixels}: {found} bytes, the list names {needed}; pack the pool anew with "
                "datasets/photograph_pool.py"
            )
        self._pixels = np.memmap(pixels, np.uint8, "r")
        self.tables: tuple[Tables, ...] = ()
        tables = path.with_name("tables.json")
        if tables.is_file():
            pairs = json.loads(tables.read_text(encoding="utf-8"))
            self.tables = tuple((tuple(luma), tuple(chroma)) for luma, chroma in pairs)

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self._places)

    def __getitem__(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, read-only; nothing is read before it is used."""
        start, height, width = self._places[index]
        pixels = self._pixels[start : start + 3 * height * width]
        return np.asarray(pixels).reshape(height, width, 3)


def is_pool(path: Path) -> bool:
    """Whether a file is the list of a pool."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    with path.open(newline="", encoding="utf-8") as file:
        return set(next(csv.reader(file), ())) >= _COLUMNS
