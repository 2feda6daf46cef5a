"""Makes one image, forged or authentic. All randomness comes from the generator given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from loupe.structures import Photographs
from loupe.synthesis import techniques as families
from loupe.synthesis.histories import (
    SHARED_QUALITIES,
    draw_sharing,
    post_process,
    take_host,
)
from loupe.synthesis.processing import add_noise, draw_jpeg
from loupe.synthesis.regions import draw_shape
from loupe.synthesis.seams import LOCAL, PASTED, PLAIN, join
from loupe.synthesis.views import Donors, draw_scale, pass_on, take_view

TECHNIQUES = tuple(families.TECHNIQUES)
# The techniques of a synthetic data set that names none; a clone is a special copy-move.
DEFAULT_TECHNIQUES = tuple(name for name in TECHNIQUES if name != "clone")
AUTHENTIC = "authentic"
# Side of an image in pixels.
SMALLEST = 32

# A forgery must change at least this fraction of its region's pixels, and all of them by this many
# grey levels on average. A weaker change cannot be found, so it is drawn again.
_CHANGED_FRACTION = 0.6
_CHANGED_LEVELS = 1.5
_TRIALS = 8
# The largest and the smallest fraction of an image that is forged.
_MOST, _LEAST = 0.6, 0.008
# Probability that a second region follows the first, and a third the second.
_MORE_REGIONS = 0.2
# These paste foreign content, so the seam may adapt its colours; the others change the host.
_PASTED = ("splice", "copy-move", "clone", "generated")


class SyntheticSample(NamedTuple):
    """One image with its exact truth.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        mask: (S, S) bool, True = forged.
        label: 1 = forged.
        technique: one of TECHNIQUES, or AUTHENTIC.
    """

    image: np.ndarray
    mask: np.ndarray
    label: int
    technique: str


def make_forgery(
    rng: np.random.Generator,
    photographs: Photographs,
    size: int,
    techniques: Sequence[str] = DEFAULT_TECHNIQUES,
    forged: bool | None = None,
    difficulty: float = 1.0,
    uncropped: float = 0.0,
    reshared: float = 0.0,
) -> SyntheticSample:
    """Makes one image, forged or authentic.

    Args:
        rng: source of all randomness.
        photographs: (H, W, 3) uint8 RGB; hosts and donors are windows of them.
        size: side of the image in pixels, at least 32.
        techniques: those to choose from; AUTHENTIC among them counts as one more.
        forged: whether to forge; None = a coin decides.
        difficulty: fraction of the draws (of camera, content, processing) from the whole range; the
            others leave strong traces, for models that must learn something within minutes.
        uncropped: fraction of hosts whose JPEG blocks start at the image's corner (`take_host`).
        reshared: fraction of images that were shrunk, stored as JPEG once more, or both.

    Raises:
        ValueError: a technique is unknown, the size is too small, or there is no photograph.
    """
    unknown = set(techniques) - {*TECHNIQUES, AUTHENTIC}
    if unknown or not techniques:
        raise ValueError(
            f"techniques {sorted(unknown)} are not known; choose from {', '.join(TECHNIQUES)}"
        )
    if size < SMALLEST:
        raise ValueError(f"the size is {size}; images are at least {SMALLEST} pixels wide and high")
    if not len(photographs):
        raise ValueError("there are no photographs to make images of; give at least one")
    forged = bool(rng.random() < 0.5) if forged is None else forged
    technique = str(rng.choice(list(techniques))) if forged else AUTHENTIC
    shrunk, stored = draw_sharing(rng) if reshared and rng.random() < reshared else (1.0, False)
    # Rescaling the finished image is a part of its history: draw it before, to end at `size`.
    rescaled = rng.random() < 0.2 * difficulty
    drawn_size = round(size / shrunk / (rng.uniform(0.75, 1.3) if rescaled else 1.0))
    host, index = take_host(rng, photographs, drawn_size, difficulty, uncropped)
    mask = np.zeros(host.shape[:2], dtype=bool)
    image = host
    if technique != AUTHENTIC:
        image, mask = forge(rng, host, photographs, technique, difficulty, index)
    image, mask = post_process(rng, image, mask, size, difficulty)
    image = draw_jpeg(rng, image, *SHARED_QUALITIES) if stored else image
    return SyntheticSample(image, mask, int(technique != AUTHENTIC), technique)


def make_view(
    seed: tuple[int, ...],
    photographs: Photographs,
    size: int,
    technique: str,
) -> SyntheticSample:
    """Makes one image of a view of a photograph (`loupe.synthesis.views`), forged or authentic.

    Host, forgery and processing draw from random streams of their own, so that the same seed gives
    a forged image and its authentic twin.

    Args:
        seed: of all randomness.
        photographs: (H, W, 3) uint8 RGB; hosts and donors are views of them.
        size: side of the image in pixels, at least 32.
        technique: one of TECHNIQUES, or AUTHENTIC.
    """
    of_host, of_forgery, of_sharing = (np.random.default_rng((*seed, part)) for part in range(3))
    drawn_size = round(size / draw_scale(of_sharing))
    image, index = take_view(of_host, photographs, drawn_size)
    mask = np.zeros(image.shape[:2], dtype=bool)
    if technique != AUTHENTIC:
        donors = Donors(of_forgery, photographs, drawn_size)
        image, mask = forge(of_forgery, image, donors, technique, 1.0, index)
    image, mask = pass_on(of_sharing, image, mask, size, photographs)
    return SyntheticSample(image, mask, int(technique != AUTHENTIC), technique)


def forge(
    rng: np.random.Generator,
    host: np.ndarray,
    photographs: Photographs,
    technique: str,
    difficulty: float = 1.0,
    index: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Forges one region of an image, and sometimes a second and a third.

    Args:
        rng: source of all randomness.
        host: (S, S, 3) uint8.
        photographs: donors are windows of them.
        technique: one of TECHNIQUES.
        difficulty: as in `make_forgery`.
        index: the host's photograph.

    Returns:
        The image, (S, S, 3) uint8, and the forged pixels, (S, S) bool. All other pixels stay as
        they are, except for the outer half of a soft seam (`seams.REACH` pixels at most).
    """
    image, mask = _forge_region(rng, host, photographs, technique, difficulty, index)
    for _ in range(2):
        if rng.random() >= _MORE_REGIONS * difficulty:
            break
        further, region = _forge_region(rng, image, photographs, technique, difficulty, index)
        both = mask | region
        # A second forgery may undo the first.
        if both.mean() > _MOST or not _is_changed(host, further, both):
            break
        image, mask = further, both
    return image, mask


def _forge_region(
    rng: np.random.Generator,
    host: np.ndarray,
    photographs: Photographs,
    technique: str,
    difficulty: float,
    index: int,
) -> tuple[np.ndarray, np.ndarray]:
    for _ in range(_TRIALS):
        easy = bool(rng.random() >= difficulty)
        scene = families.Scene(host, photographs, index, easy)
        content, region = families.TECHNIQUES[technique](rng, scene)
        if not _LEAST <= np.count_nonzero(region) / region.size <= _MOST:
            continue
        shares = PLAIN if easy else PASTED if technique in _PASTED else LOCAL
        image = join(rng, host, content, region, shares)
        if _is_changed(host, image, region):
            return image, region
    # The host is flat (a black sky): noise is the only forgery that always leaves a trace.
    region = draw_shape(rng, host.shape[0])
    noisy = add_noise(rng, host, rng.uniform(6.0, 12.0))
    return np.where(region[..., None], noisy, host), region


def _is_changed(host: np.ndarray, image: np.ndarray, region: np.ndarray) -> bool:
    inside = region.astype(np.uint8)
    difference = cv2.absdiff(image, host)
    equal = np.asarray(cv2.inRange(difference, (0, 0, 0), (0, 0, 0)))
    same = int(np.count_nonzero(equal.astype(bool) & region))
    levels = sum(cv2.mean(difference, mask=inside)[:3]) / 3
    changed = 1 - same / cv2.countNonZero(inside)
    return changed >= _CHANGED_FRACTION and levels >= _CHANGED_LEVELS
