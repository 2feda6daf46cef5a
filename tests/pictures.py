"""Pictures with something in them at every scale."""

from __future__ import annotations

import cv2
import numpy as np


def textured(height: int, width: int, contrast: float = 25.0, seed: int = 0) -> np.ndarray:
    """(height, width) uint8, both sides multiples of 8; `contrast` is the standard deviation."""
    rng = np.random.default_rng(seed)
    noise = sum(
        side * cv2.resize(rng.standard_normal((height // side, width // side)), (width, height))
        for side in (1, 2, 4, 8)
    )
    return np.clip(128 + contrast * noise / noise.std(), 5, 250).astype(np.uint8)


def in_colour(grey: np.ndarray) -> np.ndarray:
    """(H, W) -> (H, W, 3)."""
    return np.repeat(grey[..., None], 3, axis=2)


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """What is read of a picture, grey or in colour, that was stored as JPEG."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
