"""Forgeries on views: windows of photographs as they circulate, cut out, shrunk or stored again.

A *view* is a window of a photograph at some scale, perhaps stored as JPEG once more. Host and
donors are views, and the finished image is shrunk, filtered and stored again (`pass_on`). A forged
image and its authentic twin have the same host, the same processing and the same random numbers
for both, so that they differ in the forgery alone.
"""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from loupe.structures import Photographs
from loupe.synthesis.camera import draw_camera, take_photograph, turn_over
from loupe.synthesis.drawings import draw_interface
from loupe.synthesis.processing import (
    draw_jpeg,
    filter_whole,
    sharpen,
)

# Luma and chroma, 64 steps each.
Tables = tuple[tuple[int, ...], tuple[int, ...]]

# Colour at half resolution has blocks of 8 samples, which are 16 pixels.
_GRID = 16
# Fractions of the hosts at native scale, taken by a simulated camera, drawn; the rest is shrunk.
_NATIVE, _SIMULATED, _DRAWN = 0.42, 0.08, 0.02
_SHRUNK = (1.25, 5.0)
# Fraction of the shrunk views that show the largest possible square of the photograph.
_WHOLE = 0.35
_MOST_SHRUNK = 12.0
# OpenCV resamples without antialiasing (except INTER_AREA), Pillow with it.
_OPENCV = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
_PILLOW = (
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.HAMMING,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)
_QUALITIES = (60, 98)
_TRIALS = 24
# Donors are larger than the image, because they are scaled and turned before they are pasted.
_DONOR_SIDE = 1.4
# Fractions of the finished images that are shrunk, stored as JPEG, and of those stored twice.
_POST_SHRINKS, _POST_STORES, _POST_STORES_TWICE = 0.22, 0.62, 0.1
# Fractions blurred, sharpened, made noisy, toned.
_POST_FILTERS = np.array([0.04, 0.06, 0.04, 0.06])


def take_view(
    rng: np.random.Generator, photographs: Photographs, size: int
) -> tuple[np.ndarray, int]:
    """A view to forge, (size, size, 3) uint8, and the index of its photograph (0 if drawn)."""
    kind = rng.random()
    if kind < _DRAWN:
        return store_sometimes(rng, draw_interface(rng, size), 0.3, photographs), 0
    if kind < _DRAWN + _SIMULATED:
        index = int(rng.integers(len(photographs)))
        return take_photograph(rng, photographs[index], size, draw_camera(rng)), index
    native = kind < _DRAWN + _SIMULATED + _NATIVE
    index = _choose(rng, photographs, size if native else 2 * size)
    photograph = photographs[index]
    room = min(photograph.shape[:2]) / size
    if room < 1:  # No photograph is large enough.
        return take_photograph(rng, photograph, size, draw_camera(rng)), index
    if native or room < _SHRUNK[0]:
        window = _cut(rng, photograph, size)
        return store_sometimes(rng, window, 0.25, photographs), index
    return store_sometimes(rng, _shrink_window(rng, photograph, size), 0.55, photographs), index


class Donors:
    """Donors: each access draws a new view of the photograph."""

    def __init__(self, rng: np.random.Generator, photographs: Photographs, size: int) -> None:
        """Takes the source of randomness and the photographs; `size` is that of the image."""
        self._rng, self._photographs = rng, photographs
        self._side = round(_DONOR_SIDE * size)

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self._photographs)

    def __getitem__(self, index: int) -> np.ndarray:
        """(S, S, 3) uint8; S is at most the shorter side of the photograph."""
        photograph = self._photographs[index]
        side = min(self._side, *photograph.shape[:2])
        room = min(photograph.shape[:2]) / side
        if room >= _SHRUNK[0] and self._rng.random() < 0.55:
            view = _shrink_window(self._rng, photograph, side)
        else:
            view = _cut(self._rng, photograph, side)
        return store_sometimes(self._rng, view, 0.4, self._photographs)


def _choose(rng: np.random.Generator, photographs: Photographs, side: int) -> int:
    """Index of a random photograph with both sides of at least `side` pixels.

    If 24 draws find none, the largest of those drawn.
    """
    best, largest = 0, -1
    for _ in range(_TRIALS):
        index = int(rng.integers(len(photographs)))
        reach = min(photographs[index].shape[:2])
        if reach >= side:
            return index
        if reach > largest:
            best, largest = index, reach
    return best


def _cut(rng: np.random.Generator, photograph: np.ndarray, size: int) -> np.ndarray:
    """A window at native scale, mostly on the grid of the photograph's own JPEG."""
    top, left = (int(rng.integers(length - size + 1)) for length in photograph.shape[:2])
    if rng.random() < 0.65:
        top, left = top // _GRID * _GRID, left // _GRID * _GRID
        return photograph[top : top + size, left : left + size].copy()
    return turn_over(rng, photograph[top : top + size, left : left + size])


def _shrink_window(rng: np.random.Generator, photograph: np.ndarray, size: int) -> np.ndarray:
    """A window shrunk to (size, size, 3), perhaps sharpened and flipped."""
    room = min(photograph.shape[:2]) / size
    factor = np.exp(rng.uniform(np.log(_SHRUNK[0]), np.log(min(room, _SHRUNK[1]))))
    if rng.random() < _WHOLE:
        factor = min(room, _MOST_SHRUNK)
    side = min(round(size * factor), *photograph.shape[:2])
    top, left = (int(rng.integers(length - side + 1)) for length in photograph.shape[:2])
    image = resample(rng, photograph[top : top + side, left : left + side], size)
    if rng.random() < 0.15:
        image = sharpen(image, rng.uniform(0.2, 1.0))
    return turn_over(rng, image)


def resample(rng: np.random.Generator, image: np.ndarray, size: int) -> np.ndarray:
    """A square image at another size, (size, size, 3), by one of nine filters."""
    number = int(rng.integers(len(_OPENCV) + len(_PILLOW)))
    if number < len(_OPENCV):
        return cv2.resize(image, (size, size), interpolation=_OPENCV[number])
    method = _PILLOW[number - len(_OPENCV)]
    return np.asarray(Image.fromarray(image).resize((size, size), method))


def store_sometimes(
    rng: np.random.Generator,
    image: np.ndarray,
    fraction: float,
    photographs: Photographs = (),
) -> np.ndarray:
    """Stores that fraction of images as JPEG, a quarter of them with a camera's own tables.

    40% of the stored images get a block grid that does not start at their corner: they are
    padded by reflection, stored, and cut back to their own pixels.
    """
    if rng.random() >= fraction:
        return image
    moved = rng.random() < 0.4
    y, x = (int(value) for value in rng.integers(0, 8, 2)) if moved else (0, 0)
    if moved:
        image = np.pad(image, ((y, 8 - y), (x, 8 - x), (0, 0)), mode="reflect")
    tables = getattr(photographs, "tables", ())
    if tables and rng.random() < 0.25:
        image = _save_with(image, tables[int(rng.integers(len(tables)))], rng.random() < 0.6)
    else:
        image = draw_jpeg(rng, image, *_QUALITIES)
    if moved:
        image = np.ascontiguousarray(image[y : image.shape[0] - 8 + y, x : image.shape[1] - 8 + x])
    return image


def _save_with(image: np.ndarray, tables: Tables, halved: bool) -> np.ndarray:
    """The image after a JPEG with given tables; `halved` = colour at half resolution."""
    file = io.BytesIO()
    Image.fromarray(image).save(
        file, "JPEG", qtables=[list(table) for table in tables], subsampling=2 if halved else 0
    )
    return np.asarray(Image.open(file).convert("RGB"))


def draw_scale(rng: np.random.Generator) -> float:
    """The factor that shrinks the finished image: 1 in 78% of cases, else 0.5 to 0.95."""
    return float(rng.uniform(0.5, 0.95)) if rng.random() < _POST_SHRINKS else 1.0


def pass_on(
    rng: np.random.Generator,
    image: np.ndarray,
    mask: np.ndarray,
    size: int,
    photographs: Photographs = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Shrinks to `size`, filters and stores the finished image; the mask follows."""
    if image.shape[0] != size:
        image = resample(rng, image, size)
        soft = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
        mask = soft >= 0.5
    image = filter_whole(rng, image, list(rng.random(4) < _POST_FILTERS))
    if rng.random() < _POST_STORES:
        image = store_sometimes(rng, image, 1.0, photographs)
        if rng.random() < _POST_STORES_TWICE:
            image = draw_jpeg(rng, image, *_QUALITIES)
    return image, mask
