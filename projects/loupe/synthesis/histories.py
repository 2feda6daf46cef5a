"""The processing of an image before and after the forgery.

Before: the host is a window of a photograph, either unchanged, with the traces of its own camera
and JPEG, or taken again by a simulated camera. After: the finished image is rescaled, filtered and
compressed. Forged and authentic images are processed alike, so that they differ in the forgery
alone.
"""

from __future__ import annotations

import cv2
import numpy as np

from loupe.structures import Photographs
from loupe.synthesis.camera import (
    SMOOTH,
    draw_camera,
    sample_scene,
    take_photograph,
    turn_over,
)
from loupe.synthesis.processing import draw_jpeg, filter_whole, sharpen

_AS_IS = 0.5  # Fraction of the hosts that are unchanged windows.
_GRID = 8  # Side of the blocks of JPEG.
# Fractions of the finished images that are blurred, sharpened, made noisy, toned, stored as JPEG.
_POST_STEPS = np.array([0.08, 0.06, 0.08, 0.08, 0.5])

# Images that are shared (sent, or put on a page): the factor of shrinking, the fraction that is
# shrunk (before all other processing), the fraction stored as JPEG (after it), and its qualities.
_SHRUNK = (0.6, 1.0)
_SHRINKS, _STORES = 0.5, 0.75
SHARED_QUALITIES = (60, 98)


def take_host(
    rng: np.random.Generator,
    photographs: Photographs,
    size: int,
    difficulty: float,
    uncropped: float = 0.0,
) -> tuple[np.ndarray, int]:
    """The image before the forgery, (size, size, 3) uint8, and the index of its photograph.

    Args:
        rng: source of all randomness.
        photographs: (H, W, 3) uint8.
        size: side of the image.
        difficulty: fraction of hosts drawn from the whole range of cameras; the rest have a camera
            in which forgeries leave strong traces.
        uncropped: fraction of hosts whose JPEG blocks start at the image's corner, as those of most
            files do: half are unchanged windows, half are stored as JPEG.
    """
    index = int(rng.integers(len(photographs)))
    photograph = photographs[index]
    if uncropped and rng.random() < uncropped:
        return _take_uncropped(rng, photograph, size, difficulty), index
    if rng.random() < _AS_IS * difficulty and min(photograph.shape[:2]) >= size:
        return take_as_is(rng, photograph, size, aligned=bool(rng.random() < 0.5)), index
    return take_photograph(rng, photograph, size, draw_camera(rng, difficulty)), index


def _take_uncropped(
    rng: np.random.Generator, photograph: np.ndarray, size: int, difficulty: float
) -> np.ndarray:
    if rng.random() < _AS_IS and min(photograph.shape[:2]) >= size:
        return take_as_is(rng, photograph, size, aligned=True)
    camera = draw_camera(rng, difficulty)._replace(quality=None)
    return draw_jpeg(rng, take_photograph(rng, photograph, size, camera), 60, 98)


def take_as_is(
    rng: np.random.Generator, photograph: np.ndarray, size: int, aligned: bool
) -> np.ndarray:
    """A window at the photograph's own scale, never resampled; flipped or turned if not aligned.

    Args:
        rng: source of all randomness.
        photograph: (H, W, 3) uint8, no smaller than the window.
        size: the window's side.
        aligned: whether the window starts where a block of the photograph's JPEG starts.
    """
    top, left = (int(rng.integers(length - size + 1)) for length in photograph.shape[:2])
    if aligned:
        top, left = top // _GRID * _GRID, left // _GRID * _GRID
    window = photograph[top : top + size, left : left + size]
    return window.copy() if aligned else turn_over(rng, window)


def take_donor(
    rng: np.random.Generator,
    photographs: Photographs,
    size: int,
    host_index: int,
    easy: bool,
) -> np.ndarray:
    """The image that a splice is cut from, of another photograph: (size, size, 3) uint8.

    The donor is an unchanged window, one resampled by 0.5 to 2 times, or one that another camera
    takes. Some are rotated by up to 40 degrees, denoised or sharpened. An easy donor is smooth.
    """
    index = int(rng.integers(max(1, len(photographs) - 1)))
    photograph = photographs[(host_index + 1 + index) % len(photographs)]
    if easy:
        return take_photograph(rng, photograph, size, SMOOTH)
    kind = rng.random()
    if kind < 0.25 and min(photograph.shape[:2]) >= size:
        donor = take_as_is(rng, photograph, size, aligned=False)
    elif kind < 0.6:
        donor = sample_scene(rng, photograph, size, (0.5, 2.0))
    else:
        donor = take_photograph(rng, photograph, size, draw_camera(rng))
    if rng.random() < 0.35:
        donor = _rotate(rng, donor)
    return _retouch(rng, donor) if rng.random() < 0.2 else donor


def _rotate(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    size = image.shape[0]
    matrix = cv2.getRotationMatrix2D((size / 2, size / 2), rng.uniform(-40, 40), 1.0)
    method = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(2)]
    return cv2.warpAffine(image, matrix, (size, size), flags=method, borderMode=cv2.BORDER_REFLECT)


def _retouch(rng: np.random.Generator, donor: np.ndarray) -> np.ndarray:
    """Denoises by a median or a bilateral filter, or sharpens."""
    kind = rng.integers(3)
    if kind == 0:
        return cv2.medianBlur(donor, 3)
    if kind == 1:
        return cv2.bilateralFilter(donor, 5, rng.uniform(10, 30), 2.0)
    return sharpen(donor, rng.uniform(0.5, 1.5))


def draw_sharing(rng: np.random.Generator) -> tuple[float, bool]:
    """How an image is shared: its scale, and whether it is stored as JPEG; at least one of both."""
    kind = rng.random()
    return float(rng.uniform(*_SHRUNK)) if kind < _SHRINKS else 1.0, kind >= 1 - _STORES


def post_process(
    rng: np.random.Generator,
    image: np.ndarray,
    mask: np.ndarray,
    size: int,
    difficulty: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Rescales to `size`, filters, compresses: the same for forged and authentic images.

    The mask follows the rescaling. `difficulty` scales the fractions of the other steps.
    """
    if image.shape[0] != size:
        shrinks = image.shape[0] > size
        method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        image = cv2.resize(image, (size, size), interpolation=method)
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        soft = cv2.resize(mask.astype(np.float32), (size, size), interpolation=method)
        mask = soft >= 0.5
    *filters, is_stored = rng.random(5) < difficulty * _POST_STEPS
    image = filter_whole(rng, image, filters)
    if is_stored:
        # The lowest quality is itself drawn, so that low ones are rare, as in published data sets.
        image = draw_jpeg(rng, image, int(rng.integers(60, 91)), 100)
    return image, mask
