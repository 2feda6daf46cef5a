"""Training examples of an explainer: which region it sees, what it is told, what it must say.

The verdict is the detector's, so the question states it and the explanation follows it. Regions
also go with images that are authentic or called so: from the mask's presence nothing can be read
(in the released data only forged images have one).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from loupe.data.explanations.truth import claims_of, write_claims
from loupe.explanation.prompts import question_of
from loupe.explanation.region_features import jittered
from loupe.synthesis.regions import draw_shape
from loupe.vocabulary import Claims

# Of forged images: verdict, whether a region is shown, and how often.
_OF_FORGED = (
    ("forged", True, 0.72),
    ("forged", False, 0.04),
    ("undecided", True, 0.14),
    ("authentic", True, 0.05),
    ("authentic", False, 0.05),
)
_OF_AUTHENTIC = (
    ("authentic", False, 0.4),
    ("authentic", True, 0.4),
    ("undecided", True, 0.2),
)


class Example(NamedTuple):
    """One example.

    Attributes:
        region: (H, W) bool that is shown; None = the whole image.
        question: To the explainer.
        explanation: What it must say.
        claims: The same as words.
    """

    region: np.ndarray | None
    question: str
    explanation: str
    claims: Claims


def draw_example(
    rng: np.random.Generator,
    image: np.ndarray,
    mask: np.ndarray,
    technique: str,
    jitter: float,
    *,
    tell: bool = False,
) -> Example:
    """Draws what is asked of an image whose truth is known.

    Args:
        rng: Source of randomness.
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool; empty = the image is authentic.
        technique: How it was forged.
        jitter: Fraction of the regions that are changed as a detector's are; claims stay true.
        tell: Whether the question tells what was measured of the region that is shown; claims of
            it are then those.
    """
    forged = bool(mask.any())
    verdict, shown = _draw_case(rng, _OF_FORGED if forged else _OF_AUTHENTIC)
    if not shown:
        return example_of(rng, None, Claims(verdict))
    truth = mask if forged else _random_region(rng, mask.shape)
    # Nothing was done to an authentic image, so that no technique can be named.
    region = jittered(truth, rng) if rng.random() < jitter else truth
    technique = technique if forged else ""
    claims = claims_of(image, region if tell else truth, verdict, technique)
    told = claims_of(image, region, "undecided") if tell else None
    return example_of(rng, region, claims, told)


def example_of(
    rng: np.random.Generator,
    region: np.ndarray | None,
    claims: Claims,
    told: Claims | None = None,
) -> Example:
    """An example that claims what is given, in a wording that is drawn."""
    question = question_of(claims.verdict, region is not None, told)
    return Example(region, question, write_claims(claims, rng), claims)


def _draw_case(
    rng: np.random.Generator, cases: tuple[tuple[str, bool, float], ...]
) -> tuple[str, bool]:
    index = rng.choice(len(cases), p=[case[2] for case in cases])
    return cases[index][0], cases[index][1]


def _random_region(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A drawn shape as forgeries have, stretched to the image: (H, W) bool."""
    import cv2

    square = draw_shape(rng, 256, 0.015, 0.35).astype(np.uint8)
    return cv2.resize(square, size[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
