"""Pictures that no camera took: windows, buttons, lines of text, flat colours."""

from __future__ import annotations

import cv2
import numpy as np

_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_PLAIN,
)


def draw_interface(rng: np.random.Generator, size: int) -> np.ndarray:
    """A drawn user interface, (size, size, 3) uint8 RGB: boxes, lines and text on flat colours."""
    dark = rng.random() < 0.4
    ground = rng.integers(10, 60, 3) if dark else rng.integers(200, 256, 3)
    image = np.empty((size, size, 3), np.uint8)
    image[:] = ground
    for _ in range(int(rng.integers(4, 24))):
        _draw_box(rng, image)
    for _ in range(int(rng.integers(4, 40))):
        _write(rng, image, dark)
    return image


def _draw_box(rng: np.random.Generator, image: np.ndarray) -> None:
    size = image.shape[0]
    corner = rng.integers(0, size, 2)
    reach = (rng.uniform(0.03, 0.6, 2) * size).astype(int)
    colour = [int(value) for value in rng.integers(0, 256, 3)]
    end = corner + reach
    first, last = tuple(int(value) for value in corner), tuple(int(value) for value in end)
    if rng.random() < 0.25:
        x, y = min(last[0], size), min(last[1], size)
        shade = np.linspace(0, rng.uniform(-60, 60), y - first[1])[:, None, None]
        image[first[1] : y, first[0] : x] = np.clip(np.array(colour) + shade, 0, 255)
    else:
        cv2.rectangle(image, first, last, colour, -1 if rng.random() < 0.7 else 1)


def _write(rng: np.random.Generator, image: np.ndarray, dark: bool) -> None:
    size = image.shape[0]
    letters = rng.integers(97, 123, int(rng.integers(3, 18)))
    letters[rng.random(len(letters)) < 0.2] = 32
    text = "".join(chr(letter) for letter in letters)
    place = tuple(int(value) for value in rng.integers(0, size, 2))
    shade = int(rng.integers(180, 256) if dark else rng.integers(0, 90))
    smooth = cv2.LINE_AA if rng.random() < 0.8 else cv2.LINE_8
    font = _FONTS[rng.integers(len(_FONTS))]
    cv2.putText(image, text, place, font, rng.uniform(0.3, 0.9), (shade,) * 3, 1, smooth)
