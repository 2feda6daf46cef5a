"""A simulated camera: sampling, tone, colour filter array, noise, sharpening and JPEG.

    noise     variance = read noise ** 2 + shot noise * grey level (Poisson-Gaussian sensor)
    array     each pixel of the Bayer pattern RGGB measures one colour; the others are interpolated
    JPEG      each 8 x 8 block's cosine coefficients are rounded to multiples of quantisation steps

These steps leave traces that differ between cameras. A forged region breaks the traces of its host.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from loupe.synthesis.processing import (
    JPEG_420,
    JPEG_444,
    change_tone,
    save_jpeg,
    sharpen,
    white_noise,
)


class Camera(NamedTuple):
    """What a photograph went through before it was forged.

    Attributes:
        read_noise: standard deviation of the sensor's noise in the dark, in grey levels.
        shot_noise: variance of the noise per grey level of brightness.
        demosaic: OpenCV's conversion from a colour filter array; None = no such array.
        sharpening: amount of unsharp masking; negative = softening.
        quality: of the JPEG that it was stored as; None = never.
        chroma: that JPEG's colour sampling, JPEG_420 or JPEG_444.
    """

    read_noise: float
    shot_noise: float
    demosaic: int | None
    sharpening: float
    quality: int | None
    chroma: int = JPEG_420


# No noise, no colour filter array, softened: what an image generator or a heavy filter leaves.
SMOOTH = Camera(0.0, 0.0, None, -0.8, None)
# Noisy, with a colour filter array, stored without loss: any foreign region stands out.
_PLAIN = cv2.COLOR_BayerRGGB2RGB


def draw_camera(rng: np.random.Generator, difficulty: float = 1.0) -> Camera:
    """A random camera.

    Args:
        rng: source of all randomness.
        difficulty: fraction of cameras of any kind. The others are all noisy, have a colour filter
            array and store without loss.
    """
    if rng.random() >= difficulty:
        return Camera(
            read_noise=float(rng.uniform(2.5, 5.0)),
            shot_noise=0.0,
            demosaic=_PLAIN,
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
        chroma=JPEG_420 if rng.random() < 0.65 else JPEG_444,
    )


def sample_scene(
    rng: np.random.Generator,
    photograph: np.ndarray,
    size: int,
    zoom: tuple[float, float] = (0.55, 1.7),
) -> np.ndarray:
    """A random window, flipped, turned and resampled: (size, size, 3) uint8.

    Args:
        rng: source of all randomness.
        photograph: (H, W, 3) uint8.
        size: side of the result.
        zoom: range of the factor by which the window is enlarged, as far as it fits.
    """
    height, width = photograph.shape[:2]
    factor = np.exp(rng.uniform(np.log(zoom[0]), np.log(zoom[1])))
    side = int(min(height, width, max(8, round(size / factor))))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    window = photograph[top : top + side, left : left + side]
    if side != size:
        enlarging = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
        method = cv2.INTER_AREA if side > size else enlarging[rng.integers(3)]
        window = cv2.resize(window, (size, size), interpolation=method)
    return turn_over(rng, window)


def turn_over(rng: np.random.Generator, window: np.ndarray) -> np.ndarray:
    """Mirrors half of the windows, and turns a quarter of them by 90, 180 or 270 degrees."""
    if rng.random() < 0.5:
        window = cv2.flip(window, 1)
    if rng.random() < 0.25:
        window = cv2.rotate(window, int(rng.integers(3)))
    return np.ascontiguousarray(window)


def take_photograph(
    rng: np.random.Generator,
    photograph: np.ndarray,
    size: int,
    camera: Camera,
) -> np.ndarray:
    """A random window of a photograph, seen by a camera: (size, size, 3) uint8 RGB."""
    full = size + 8  # The JPEG grid then starts anywhere in the final window.
    scene = change_tone(rng, sample_scene(rng, photograph, full), 1.0, 0.07)
    image = _develop(rng, scene, camera)
    y, x = rng.integers(0, 9, 2)
    return np.ascontiguousarray(image[y : y + size, x : x + size])


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
        deviation = cv2.LUT(image, np.sqrt(variance).astype(np.float32).reshape(1, 256))
        channels = 1 if image.ndim == 2 else 3
        noise = white_noise(rng, image.shape[0], image.shape[1], channels) * deviation
        image = cv2.add(image, noise, dtype=cv2.CV_8U)
    if camera.demosaic is not None:
        image = cv2.cvtColor(image, camera.demosaic)
    if abs(camera.sharpening) > 0.1:
        image = sharpen(image, camera.sharpening)
    return image if camera.quality is None else save_jpeg(image, camera.quality, camera.chroma)
