"""Operations that cameras, editors and forgers share: noise, sharpening, tone, JPEG.

All take and give (H, W, 3) uint8 RGB, and draw from the generator they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

_FIELD_SIDE = 1024
JPEG_420 = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
JPEG_444 = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444


@lru_cache(maxsize=1)
def _noise_field() -> np.ndarray:
    rng = np.random.default_rng(0)
    field = rng.standard_normal((_FIELD_SIDE, _FIELD_SIDE, 3), dtype=np.float32)
    field.setflags(write=False)
    return field


def white_noise(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> np.ndarray:
    """Standard normal noise, (height, width[, channels]) float32, 1 or 3 channels, read-only.

    The noise is a window of one fixed field, because drawing the numbers would cost more than all
    other steps together. The window starts at one of hundreds of thousands of places, and forged
    and authentic images use the same field.
    """
    if max(height, width) > _FIELD_SIDE - 64:
        shape = (height, width) if channels == 1 else (height, width, channels)
        return rng.standard_normal(shape, dtype=np.float32)
    y = rng.integers(_FIELD_SIDE - height + 1)
    x = rng.integers(_FIELD_SIDE - width + 1)
    window = _noise_field()[y : y + height, x : x + width]
    return window if channels == 3 else np.ascontiguousarray(window[..., rng.integers(3)])


def add_noise(rng: np.random.Generator, image: np.ndarray, sigma: float) -> np.ndarray:
    """Adds white noise; `sigma` is its standard deviation in grey levels."""
    noise = white_noise(rng, *image.shape[:2]) * np.float32(sigma)
    return cv2.add(image, noise, dtype=cv2.CV_8U)


def sharpen(image: np.ndarray, amount: float, sigma: float = 1.0) -> np.ndarray:
    """Unsharp masking, image + amount (image - blurred image); a negative amount softens."""
    soft = cv2.GaussianBlur(image, (0, 0), sigma)
    return cv2.addWeighted(image, 1 + amount, soft, -amount, 0)


def save_jpeg(image: np.ndarray, quality: int, chroma: int = JPEG_420) -> np.ndarray:
    """The image after JPEG compression with libjpeg's quantisation tables.

    Args:
        image: (H, W, 3) uint8 RGB.
        quality: 1 to 100, scales the tables of Annex K of the JPEG standard.
        chroma: JPEG_420 halves the colour planes in both directions, as OpenCV does by default;
            JPEG_444 keeps them.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, chroma]
    pixels = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)
    return cv2.cvtColor(encode_and_decode(".jpg", pixels, options), cv2.COLOR_BGR2RGB)


def encode_and_decode(ending: str, pixels: np.ndarray, options: Sequence[int]) -> np.ndarray:
    """Pixels after one compression by OpenCV, in OpenCV's order of channels."""
    _, data = cv2.imencode(ending, pixels, options)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None, ending
    return decoded


def draw_jpeg(rng: np.random.Generator, image: np.ndarray, low: int, high: int) -> np.ndarray:
    """JPEG of a random quality from low to high, 65% of them with halved colour planes."""
    chroma = JPEG_420 if rng.random() < 0.65 else JPEG_444
    return save_jpeg(image, int(rng.integers(low, high + 1)), chroma)


def change_tone(
    rng: np.random.Generator, image: np.ndarray, strength: float, colour: float
) -> np.ndarray:
    """Gamma, contrast and white balance: v -> gain (offset + contrast v ** gamma), v in [0, 1].

    Args:
        rng: source of all randomness.
        image: (H, W, 3) uint8.
        strength: of gamma and contrast; 0 = none, 1 = strong.
        colour: standard deviation of the channels' gains.
    """
    gamma = np.exp(strength * rng.uniform(-0.35, 0.35))
    contrast = 1 - strength * rng.uniform(0.0, 0.3)
    offset = rng.uniform(0, 1 - contrast)
    gains = np.exp(rng.normal(0, colour, 3))
    levels = np.linspace(0, 1, 256)[:, None] ** gamma
    curves = np.clip((offset + contrast * levels) * gains, 0, 1)
    return cv2.LUT(image, np.round(255 * curves).astype(np.uint8).reshape(1, 256, 3))


def match_colour(image: np.ndarray, wanted: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Colour transfer of Reinhard et al. (2001): mean and deviation in CIE Lab, in the region.

    Args:
        image: (H, W, 3) uint8, to be changed.
        wanted: (H, W, 3) uint8, has the mean and deviation to be reached.
        region: (H, W) bool; both are measured inside.
    """
    inside = region.astype(np.uint8)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    mean, deviation = cv2.meanStdDev(lab, mask=inside)
    aim, aim_deviation = cv2.meanStdDev(cv2.cvtColor(wanted, cv2.COLOR_RGB2LAB), mask=inside)
    gain = np.clip(aim_deviation / np.maximum(deviation, 1.0), 0.6, 1.7)
    levels = (np.arange(256)[:, None] - mean.T) * gain.T + aim.T
    table = np.clip(levels + 0.5, 0, 255).astype(np.uint8).reshape(1, 256, 3)
    return cv2.cvtColor(cv2.LUT(lab, table), cv2.COLOR_LAB2RGB)


def filter_whole(
    rng: np.random.Generator, image: np.ndarray, filters: Sequence[bool]
) -> np.ndarray:
    """What an editor does to the finished image.

    Args:
        rng: Draws the strengths.
        image: (H, W, 3) uint8.
        filters: Whether to blur, to sharpen, to add noise and to change the tone, in this order.
    """
    blurs, sharpens, is_noisy, is_toned = filters
    if blurs:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.7))
    if sharpens:
        image = sharpen(image, rng.uniform(0.2, 0.8))
    if is_noisy:
        image = add_noise(rng, image, rng.uniform(0.5, 2.0))
    if is_toned:
        image = change_tone(rng, image, 0.6, 0.02)
    return image
