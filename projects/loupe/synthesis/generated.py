"""Imitates the upsampling layers of image generators.

Such a layer repeats pixels, or puts zeros between them, and then convolves with a small learned
kernel (Odena et al. 2016, "Deconvolution and Checkerboard Artifacts"). Two traces remain: the even
and odd pixels have different gains (a checkerboard), and there is less fine detail than the noise
of a sensor has.
"""

from __future__ import annotations

import cv2
import numpy as np


def regenerate(rng: np.random.Generator, image: np.ndarray, easy: bool = False) -> np.ndarray:
    """The image encoded to a half or a quarter of its side and decoded again, (S, S, 3) uint8.

    Args:
        rng: source of all randomness.
        image: (S, S, 3) uint8.
        easy: no fine detail is put back, and the gains differ clearly.
    """
    size = image.shape[0]
    levels = 2 if rng.random() < 0.3 else 1
    side = -(-size // 2**levels)
    shrunk = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    decoded: np.ndarray = shrunk.astype(np.float32)
    imbalance = 0.04 if easy else rng.exponential(0.015)
    for _ in range(levels):
        grow = _grow_with_zeros if rng.random() < 0.5 else _grow_nearest
        decoded = grow(rng, decoded, imbalance)
    decoded = decoded[:size, :size]
    # Generators with skip connections restore a part of the detail.
    kept = 0.0 if easy else max(0.0, rng.uniform(-0.3, 0.6))
    if kept:
        detail = cv2.subtract(image, cv2.GaussianBlur(image, (0, 0), 1.0), dtype=cv2.CV_32F)
        decoded = cv2.scaleAdd(detail, kept, decoded)
    return cv2.convertScaleAbs(np.maximum(decoded, 0))


def _grow_nearest(rng: np.random.Generator, image: np.ndarray, imbalance: float) -> np.ndarray:
    """Doubles the sides by repeating pixels, then applies a random 3 x 3 kernel."""
    height, width = image.shape[:2]
    grown = cv2.resize(image, (2 * width, 2 * height), interpolation=cv2.INTER_NEAREST)
    kernel = np.outer(*_random_taps(rng, np.array([1.0, rng.uniform(1.0, 2.5), 1.0])))
    kernel += rng.normal(0, imbalance, kernel.shape)
    return cv2.filter2D(grown, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def _grow_with_zeros(rng: np.random.Generator, image: np.ndarray, imbalance: float) -> np.ndarray:
    """Doubles the sides by zeros between pixels, then applies a random 4 x 4 kernel.

    An output pixel sees only the taps of its phase (y, x) in {0, 1} x {0, 1}, so the four phases
    have four gains.
    """
    height, width = image.shape[:2]
    grown = np.zeros((2 * height, 2 * width, 3), np.float32)
    grown[::2, ::2] = image
    kernel = np.outer(*_random_taps(rng, np.array([1.0, 3.0, 3.0, 1.0])))
    for y, x in np.ndindex(2, 2):
        kernel[y::2, x::2] *= (1 + rng.normal(0, imbalance)) / kernel[y::2, x::2].sum()
    return cv2.filter2D(grown, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def _random_taps(rng: np.random.Generator, taps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two random one-dimensional kernels near the given one, for rows and columns."""
    return taps * np.exp(rng.normal(0, 0.12, len(taps))), taps * np.exp(
        rng.normal(0, 0.12, len(taps))
    )
