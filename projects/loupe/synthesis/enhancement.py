"""Local enhancements, each (S, S, 3) uint8 to the same; a forger applies one to a region."""

from __future__ import annotations

import cv2
import numpy as np

from loupe.synthesis.processing import add_noise, change_tone, draw_jpeg, sharpen


def enhance(rng: np.random.Generator, image: np.ndarray, easy: bool) -> np.ndarray:
    """One enhancement; easy ones blur or resample."""
    return ENHANCEMENTS[rng.integers(2 if easy else len(ENHANCEMENTS))](rng, image)


def blur(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Gaussian blur of 0.8 to 2 pixels."""
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.8, 2.0))


def resample(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Shrunk to 40 to 70 per cent and enlarged again."""
    size = image.shape[0]
    small = max(8, round(size * rng.uniform(0.4, 0.7)))
    small_image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
    return cv2.resize(small_image, (size, size), interpolation=cv2.INTER_CUBIC)


def recompress(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """JPEG of low quality, its grid anywhere."""
    y, x = (int(value) for value in rng.integers(0, 8, 2))
    padded = cv2.copyMakeBorder(image, y, 0, x, 0, cv2.BORDER_REFLECT)
    return np.ascontiguousarray(draw_jpeg(rng, padded, 25, 65)[y:, x:])


def make_noisy(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """White noise of 3 to 10 grey levels."""
    return add_noise(rng, image, rng.uniform(3.0, 10.0))


def sharpen_strongly(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Unsharp masking with 1 to 2.5 times the detail."""
    return sharpen(image, rng.uniform(1.0, 2.5), 1.2)


def denoise(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Median or bilateral filter."""
    if rng.random() < 0.5:
        return cv2.medianBlur(image, (3, 5)[rng.integers(2)])
    return cv2.bilateralFilter(image, 5, rng.uniform(20, 50), 2.0)


def change_contrast(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Gamma and contrast."""
    return change_tone(rng, image, rng.uniform(0.5, 1.5), 0.02)


def recolour(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Hue turned or saturation changed."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    table = np.tile(np.arange(256, dtype=np.float64)[:, None], (1, 3))
    table[:, 0] = (table[:, 0] + rng.uniform(8, 172)) % 180
    table[:, 1] *= np.exp(rng.uniform(-0.6, 0.6))
    lookup = np.clip(table, 0, 255).astype(np.uint8).reshape(1, 256, 3)
    return cv2.cvtColor(cv2.LUT(hsv, lookup), cv2.COLOR_HSV2RGB)


# The first two are the easy ones.
ENHANCEMENTS = (
    blur,
    resample,
    recompress,
    make_noisy,
    sharpen_strongly,
    denoise,
    change_contrast,
    recolour,
)
