"""Finds each image's saved prediction.

A prediction belongs to the image of the same stem. Where stems repeat, the folders above and the
suffix decide; what stays ambiguous is refused by name.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import takewhile

from loupe.evaluation.map_files import PredictionError
from loupe.evaluation.predictions import (
    Name,
    PredictionSet,
    SavedPrediction,
    split_name,
    without_suffix,
)


class Matcher:
    """Finds each image's prediction by stem, and by folders and suffix where stems repeat."""

    def __init__(self, predictions: PredictionSet) -> None:
        """Indexes the predictions."""
        self._by_stem: dict[str, list[SavedPrediction]] = defaultdict(list)
        for entry in predictions.entries:
            # A map may be named after the whole image ("a.jpg.npz") or after its stem, which may
            # itself end like a suffix; so it is found under both.
            for stem in {entry.name[-1], without_suffix(entry.name)[-1]}:
                self._by_stem[stem].append(entry)

    def find(self, file_name: str) -> SavedPrediction | None:
        """The prediction of an image file; None without one.

        Raises:
            PredictionError: several predictions fit equally well.
        """
        name = split_name(file_name)
        candidates = self._by_stem.get(without_suffix(name)[-1], [])
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        agreement = [_agreement(name, entry.name) for entry in candidates]
        best = [c for c, a in zip(candidates, agreement, strict=True) if a == max(agreement)]
        if len(best) > 1:
            names = ["/".join(entry.name) for entry in best]
            raise PredictionError(
                f"{file_name}: the predictions {names} fit equally well; "
                "save predictions in the same folders as the images"
            )
        return best[0]


def _agreement(image: Name, saved: Name) -> tuple[int, bool]:
    """How many folders agree, from the last one upwards, and whether the suffix does."""
    folders = zip(reversed(image[:-1]), reversed(saved[:-1]), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], folders)), (
        image[-1] == saved[-1]
    )


def match_predictions(
    file_names: list[str], predictions: PredictionSet
) -> tuple[list[SavedPrediction | None], list[str]]:
    """Each image's prediction, and the names of predictions that no image has.

    Raises:
        PredictionError: a prediction fits two images, or an image has several.
    """
    matcher = Matcher(predictions)
    found = [matcher.find(name) for name in file_names]
    owners: dict[Name, str] = {}
    for name, entry in zip(file_names, found, strict=True):
        if entry is None:
            continue
        if entry.name in owners:
            raise PredictionError(
                f"the prediction {'/'.join(entry.name)} fits two images: {owners[entry.name]} and "
                f"{name}; save predictions in the same folders as the images"
            )
        owners[entry.name] = name
    unused = ["/".join(entry.name) for entry in predictions.entries if entry.name not in owners]
    return found, unused
