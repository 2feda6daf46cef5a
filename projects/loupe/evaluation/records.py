"""The measures of all images of a set, gathered in one place, and the same as columns."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

from loupe.evaluation.measures import Columns, ImageMeasures


class RecordTable:
    """`ImageMeasures` of n images, 8 bytes for each field, and the images' names.

    Attributes:
        image_ids: n identifiers, each once.
        techniques: n names, "" where unknown.
        sources: n names, "" where unknown.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self.image_ids: list[str] = []
        self.techniques: list[str] = []
        self.sources: list[str] = []
        self._numbers = array("d")
        self._known: set[str] = set()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._known

    def append(
        self, image_id: str, measures: ImageMeasures, technique: str = "", source: str = ""
    ) -> None:
        """Adds an image; one that is there already is left out (its numbers are the same)."""
        if image_id in self._known:
            return
        self._known.add(image_id)
        self.image_ids.append(image_id)
        self.techniques.append(technique)
        self.sources.append(source)
        self._numbers.extend(measures)

    def extend(self, other: RecordTable) -> None:
        """Adds another table's images, each identifier once."""
        names = zip(other.image_ids, other.techniques, other.sources, strict=True)
        for row, (image_id, technique, source) in zip(other.matrix(), names, strict=True):
            self.append(image_id, ImageMeasures(*row), technique, source)

    def matrix(self) -> np.ndarray:
        """(n, fields of ImageMeasures) float64, in the order in which images were added."""
        numbers = np.frombuffer(self._numbers.tobytes(), dtype=np.float64)
        return numbers.reshape(-1, len(ImageMeasures._fields))

    def columns(self, rows: np.ndarray | None = None) -> Columns:
        """The numbers by name, in the order of the identifiers (so it never matters who was first).

        Args:
            rows: (n,) bool, in the table's own order, to take only some images.
        """
        order = np.argsort(np.array(self.image_ids, dtype=object), kind="stable")
        if rows is not None:
            order = order[rows[order]]
        return Columns(*self.matrix()[order].T)


def columns_of(measures: Iterable[ImageMeasures]) -> Columns:
    """Columns of measures that need no names."""
    return Columns(*np.array(list(measures), dtype=np.float64).T)
