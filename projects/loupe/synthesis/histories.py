"""What images went through before and after the forgery.

Before: the host is a window of a photograph, either as it is, with the traces of its own camera and
JPEG, or as a simulated camera takes it. After: the finished image is rescaled, filtered and
compressed. Forged and authentic images have the same histories, so only the forgery tells them
apart.
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

_AS_IS_SHARE = 0.5
_GRID = 8  # Side of the blocks of JPEG.
# How often a finished image is blurred, sharpened, made noisy, toned, stored as JPEG.
_POST_SHARES = np.array([0.08, 0.06, 0.08, 0.08, 0.5])

# What an image goes through that is sent on or put on a page: how far it is shrunk (before all
# other processing), how often that is, how often it is stored as JPEG (after it), and how well.
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
    """The image before the forgery, (size, size, 3) uint8, and its photograph's index.

    Args:
        rng: source of all randomness.
        photographs: (H, W, 3) uint8.
        size: side of the image.
        difficulty: share of hosts of any kind; the others leave strong traces.
        uncropped: share of hosts whose blocks start at the image's corner, as those of most files
            do: windows of the photograph as it is, or stored as JPEG, half and half.
    """
    index = int(rng.integers(len(photographs)))
    photograph = photographs[index]
    if uncropped and rng.random() < uncropped:
        return _take_uncropped(rng, photograph, size, difficulty), index
    if rng.random() < _AS_IS_SHARE * difficulty and min(photograph.shape[:2]) >= size:
        return take_as_is(rng, photograph, size, aligned=bool(rng.random() < 0.5)), index
    return take_photograph(rng, photograph, size, draw_camera(rng, difficulty)), index


def _take_uncropped(
    rng: np.random.Generator, photograph: np.ndarray, size: int, difficulty: float
) -> np.ndarray:
    if rng.random() < _AS_IS_SHARE and min(photograph.shape[:2]) >= size:
        return take_as_is(rng, photograph, size, aligned=True)
    camera = draw_camera(rng, difficulty)._replace(quality=None)
    return draw_jpeg(rng, take_photograph(rng, photograph, size, camera), 60, 98)


def take_as_is(
    rng: np.random.Generator, photograph: np.ndarray, size: int, aligned: bool
) -> np.ndarray:
    """A window at the photograph's own scale, perhaps flipped or turned, but never resampled.

    Args:
        rng: source of all randomness.
        photograph: (H, W, 3) uint8, no smaller than the window.
        size: the window's side.
        aligned: whether the window starts where a block of the photograph's JPEG starts; it is
            not flipped then.
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
    """What a splice is cut from: another photograph with another history, (size, size, 3) uint8.

    The donor is a window as it is, one resampled as an editor does (0.5 to 2 times, any angle), or
    one that another camera takes. Some are denoised or sharpened. An easy donor is smooth.
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
    """Denoised by a median or bilateral filter, or sharpened."""
    kind = rng.integers(3)
    if kind == 0:
        return cv2.medianBlur(donor, 3)
    if kind == 1:
        return cv2.bilateralFilter(donor, 5, rng.uniform(10, 30), 2.0)
    return sharpen(donor, rng.uniform(0.5, 1.5))


def draw_sharing(rng: np.random.Generator) -> tuple[float, bool]:
    """How an image is passed on: its scale and whether it is stored; never neither."""
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

    The mask follows the rescaling. `difficulty` scales how often each of the other steps happens.
    """
    if image.shape[0] != size:
        shrinks = image.shape[0] > size
        method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        image = cv2.resize(image, (size, size), interpolation=method)
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        soft = cv2.resize(mask.astype(np.float32), (size, size), interpolation=method)
        mask = soft >= 0.5
    *filters, is_stored = rng.random(5) < difficulty * _POST_SHARES
    image = filter_whole(rng, image, filters)
    if is_stored:
        # Mostly as good as editors store: published sets of forgeries rarely lie below 80.
        image = draw_jpeg(rng, image, int(rng.integers(60, 91)), 100)
    return image, mask
