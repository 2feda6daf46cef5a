"""From a score to a verdict that means something: calibration, operating point, abstention.

A `VerdictRule` is fitted on validation photographs and forgeries (`research.detector.calibrate`)
and stored in the file of weights. H W pixels.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

AUTHENTIC, FORGED, UNDECIDED = "authentic", "forged", "undecided"
# Key of the rule among the metadata of a file of weights.
METADATA_KEY = "verdict"
# Size in pixels at which the size term is zero.
REFERENCE_PIXELS = 512 * 512
# A score of exactly 0 or 1 has no finite logit.
_SMALLEST = 1e-6


class Verdict(NamedTuple):
    """What is said of an image.

    Attributes:
        probability: calibrated, that the image is forged.
        word: AUTHENTIC, FORGED or UNDECIDED.
        reasons: why it is undecided, in words; empty otherwise.
    """

    probability: float
    word: str
    reasons: tuple[str, ...] = ()


class TileRule(NamedTuple):
    """How the scores of the views of one large image become a probability.

    The calibrated logit is

        overview * o + highest * max(w) + median * median(w) + doubling * log2(n) + offset

    of the logits o of the overview and w of n windows, each calibrated by the `VerdictRule` for its
    size. The highest of n windows rises by chance with n, which `doubling` takes back; a scene that
    raises all windows alike raises their median, which a forged part does not.

    Attributes:
        overview, highest, median, doubling, offset: as above.
        forged_from: as in `VerdictRule`, for cut images.
        authentic_below: likewise.
        statement: the operating point in words, and what it was fitted on.
    """

    overview: float
    highest: float
    median: float
    doubling: float
    offset: float
    forged_from: float
    authentic_below: float
    statement: str

    def logit(self, overview: float, windows: Sequence[float]) -> float:
        """The calibrated logit of an image.

        Args:
            overview: calibrated logit of the shrunk image.
            windows: those of the windows, at least one.
        """
        return sum(a * b for a, b in zip(self[:5], tile_features(overview, windows), strict=True))


def tile_features(overview: float, windows: Sequence[float]) -> tuple[float, ...]:
    """What the numbers of a `TileRule` are multiplied by, in their order."""
    middle = statistics.median(windows)
    return overview, max(windows), middle, math.log2(len(windows)), 1.0


class VerdictRule(NamedTuple):
    """How scores of one set of weights become verdicts.

    The calibrated logit is slope * logit(score) + offset + size_slope * log2(pixels / 512^2): Platt
    scaling with a term for the number of pixels that the network sees, because the
    highest score found by chance rises with that number.

    Attributes:
        slope: of the score's logit.
        offset: added to it.
        size_slope: added for each doubling of the network image's pixels.
        forged_from: an image with at least this calibrated probability is called forged.
        authentic_below: one with less than this is called authentic; between, it is undecided.
        smallest_side: an image with a smaller side, in pixels, is undecided.
        flattest: an image of which a larger fraction of pixels equals its right neighbour is
            no photograph, and undecided.
        statement: the operating point in words, and what it was fitted on.
        tiles: for images that are also cut into windows; None = not fitted, and the verdict on
            them is that of the shrunk image.
    """

    slope: float
    offset: float
    size_slope: float
    forged_from: float
    authentic_below: float
    smallest_side: int
    flattest: float
    statement: str
    tiles: TileRule | None = None

    def logit(self, score: float, pixels: int) -> float:
        """Calibrated logit of a score, of a network image of so many pixels."""
        score = min(max(score, _SMALLEST), 1 - _SMALLEST)
        logit = self.slope * math.log(score / (1 - score)) + self.offset
        return logit + self.size_slope * math.log2(pixels / REFERENCE_PIXELS)

    def probability(self, score: float, pixels: int) -> float:
        """Calibrated probability of a score, of a network image of so many pixels."""
        return 1 / (1 + math.exp(-self.logit(score, pixels)))

    def judge(
        self,
        score: float,
        seen: np.ndarray,
        smaller_side: int,
        windows: Sequence[float] = (),
        window_pixels: int = REFERENCE_PIXELS,
    ) -> Verdict:
        """The verdict on an image.

        Args:
            score: of the network.
            seen: (H, W, 3) uint8, what the network saw of the image, without padding.
            smaller_side: of the image itself, in pixels.
            windows: scores of the network for windows of the image, if it was cut.
            window_pixels: of one window.
        """
        band: VerdictRule | TileRule = self
        logit = self.logit(score, seen.shape[0] * seen.shape[1])
        if windows and self.tiles is not None:
            band = self.tiles
            logit = band.logit(logit, [self.logit(one, window_pixels) for one in windows])
        probability = 1 / (1 + math.exp(-logit))
        reasons = self._reasons(probability, seen, smaller_side, band)
        if reasons:
            return Verdict(probability, UNDECIDED, reasons)
        return Verdict(probability, FORGED if probability >= band.forged_from else AUTHENTIC)

    def _reasons(
        self,
        probability: float,
        seen: np.ndarray,
        smaller_side: int,
        band: VerdictRule | TileRule,
    ) -> tuple[str, ...]:
        reasons = []
        if smaller_side < self.smallest_side:
            reasons.append(
                f"too small: a side of {smaller_side} pixels, needed {self.smallest_side}"
            )
        flat = flat_fraction(seen)
        if flat > self.flattest:
            reasons.append(f"no photograph: {flat:.0%} of its pixels equal their neighbour")
        if band.authentic_below <= probability < band.forged_from:
            reasons.append(
                f"the traces do not decide: a probability of {probability:.2f} lies between "
                f"{band.authentic_below:.2f} and {band.forged_from:.2f}"
            )
        return tuple(reasons)

    def as_metadata(self) -> dict[str, str]:
        """What a file of weights stores."""
        values = self._asdict()
        if self.tiles is None:
            del values["tiles"]
        else:
            values["tiles"] = self.tiles._asdict()
        return {METADATA_KEY: json.dumps(values, sort_keys=True)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> VerdictRule:
        """The rule of its fields, those of `tiles` in a mapping of their own.

        Raises:
            TypeError: a field is missing or unknown.
        """
        tiles = values.get("tiles")
        rule = cls(**{key: value for key, value in values.items() if key != "tiles"})
        return rule._replace(tiles=None if tiles is None else TileRule(**tiles))


def rule_of(metadata: Mapping[str, str]) -> VerdictRule | None:
    """The rule that a file of weights stores; None if it has none.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    if METADATA_KEY not in metadata:
        return None
    try:
        return VerdictRule.of(json.loads(metadata[METADATA_KEY]))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"the verdict rule in the file of weights is not readable ({error}); publish the "
            "weights anew with this version"
        ) from error


def flat_fraction(image: np.ndarray) -> float:
    """Fraction of pixels of (H, W, 3) that equal their right neighbour in all channels.

    Cameras leave noise everywhere but in clipped parts; drawings are flat nearly everywhere.
    """
    if image.shape[1] < 2:
        return 0.0
    return float((image[:, 1:] == image[:, :-1]).all(axis=2).mean())
