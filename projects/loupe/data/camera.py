"""A camera: what a photograph goes through before it is forged.

Sampling, tone, colour filter array, noise, sharpening and JPEG leave traces that differ from camera
to camera; a forged region breaks those of its host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from loupe.data.augmentation import compress_jpeg


class Camera(NamedTuple):
    """What a photograph went through before it was forged.

    Attributes:
        read_noise: standard deviation of the sensor's noise in the dark, in grey levels.
        shot_noise: variance of the noise per grey level of brightness.
        demosaic: OpenCV's conversion from a colour filter array; None = no such array.
        sharpening: amount of unsharp masking; negative = softening.
        quality: of the JPEG that it was stored as; None = never.
    """

    read_noise: float
    shot_noise: float
    demosaic: int | None
    sharpening: float
    quality: int | None


# No noise, no colour filter array, softened: what an image generator or a heavy filter leaves.
SMOOTH = Camera(0.0, 0.0, None, -0.8, None)


def draw_camera(rng: np.random.Generator, difficulty: float = 1.0) -> Camera:
    """A random camera.

    Args:
        rng: source of all randomness.
        difficulty: share of the cameras of any kind; the others are alike in that all are noisy,
            have a colour filter array and store without loss.
    """
    if rng.random() >= difficulty:
        return Camera(
            read_noise=float(rng.uniform(2.5, 5.0)),
            shot_noise=0.0,
            demosaic=cv2.COLOR_BayerRGGB2RGB,
            sharpening=float(rng.uniform(0.3, 0.8)),
            quality=None,
        )
    bayer = (cv2.COLOR_BayerRGGB2RGB, cv2.COLOR_BayerRGGB2RGB_EA, None)
    return Camera(
        read_noise=float(rng.choice([0.0, rng.uniform(0.3, 2.0), rng.uniform(2.0, 5.0)])),
        shot_noise=float(rng.choice([0.0, rng.uniform(0.0, 0.12)])),
        demosaic=bayer[rng.integers(3)],
        sharpening=float(rng.uniform(-0.6, 1.2)),
        quality=int(rng.integers(60, 99)) if rng.random() < 0.7 else None,
    )


def take_photograph(
    rng: np.random.Generator, photographs: Sequence[np.ndarray], size: int, camera: Camera
) -> np.ndarray:
    """A random window of a random photograph, seen by a camera: (size, size, 3) uint8 RGB."""
    photograph = photographs[rng.integers(len(photographs))]
    full = size + 8  # The JPEG grid then starts anywhere in the final window.
    height, width = photograph.shape[:2]
    side = int(min(height, width, full * np.exp(rng.uniform(np.log(0.6), np.log(1.8)))))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    window = photograph[top : top + side, left : left + side]
    smooth = cv2.INTER_AREA if side > full else (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(2)]
    window = cv2.resize(window, (full, full), interpolation=smooth)
    if rng.random() < 0.5:
        window = cv2.flip(window, 1)
    turn = rng.integers(4)
    window = window if turn == 3 else cv2.rotate(window, int(turn))
    image = _develop(rng, _change_tone(rng, window), camera)
    y, x = rng.integers(0, 9, 2)
    return np.ascontiguousarray(image[y : y + size, x : x + size])


def _change_tone(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Gamma, contrast and white balance, by a table per channel."""
    levels = np.linspace(0, 1, 256)
    gamma, contrast = np.exp(rng.uniform(-0.35, 0.35)), rng.uniform(0.7, 1.0)
    offset = rng.uniform(0, 1 - contrast)
    gains = np.exp(rng.normal(0, 0.07, 3))
    curves = np.clip((offset + contrast * levels[:, None] ** gamma) * gains, 0, 1)
    return cv2.LUT(image, np.round(255 * curves).astype(np.uint8).reshape(1, 256, 3))


def _develop(rng: np.random.Generator, scene: np.ndarray, camera: Camera) -> np.ndarray:
    """Sensor, colour filter array, sharpening and JPEG of a camera."""
    image = scene
    if camera.demosaic is not None:
        mosaic = scene[:, :, 1].copy()
        mosaic[0::2, 0::2] = scene[0::2, 0::2, 0]
        mosaic[1::2, 1::2] = scene[1::2, 1::2, 2]
        image = mosaic
    if camera.read_noise > 0 or camera.shot_noise > 0:
        variance = camera.read_noise**2 + camera.shot_noise * np.arange(256, dtype=np.float32)
        deviation = np.sqrt(variance).astype(np.float32)[image]
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        image = np.clip(image + noise * deviation + 0.5, 0, 255).astype(np.uint8)
    if camera.demosaic is not None:
        image = cv2.cvtColor(image, camera.demosaic)
    if abs(camera.sharpening) > 0.1:
        soft = cv2.GaussianBlur(image, (0, 0), 1.0)
        amount = camera.sharpening
        image = cv2.addWeighted(image, 1 + amount, soft, -amount, 0)
    return image if camera.quality is None else compress_jpeg(image, camera.quality)
