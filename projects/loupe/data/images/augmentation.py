"""Augmentations of an image and its mask, as Detectron2 Transforms and Augmentations.

Geometric ones move image and mask alike; the mask is interpolated too, so that it holds the
fraction of forged pixels. Photometric ones leave the mask alone. Draws come from numpy's global
generator, as in all of Detectron2; `loupe.data.training.loaders` seeds it for every image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform
from PIL import Image

from loupe.synthesis.processing import save_jpeg

# A random window keeps at least this fraction of the forged pixels: the image stays a forgery.
_KEPT = 0.25
_WINDOW_TRIALS = 10


class ForgeryInput(T.AugInput):
    """An image and its mask, transformed together.

    Attributes:
        image: (H, W, 3) uint8.
        mask: (H, W) float32 in [0, 1], or None.
    """

    def __init__(self, image: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Checks that both have one size."""
        assert mask is None or mask.shape == image.shape[:2], (mask.shape, image.shape)
        super().__init__(image)
        self.image = image
        self.mask = mask

    def transform(self, tfm: Transform) -> None:
        """Applies one transform to image and mask, in place."""
        self.image = tfm.apply_image(self.image)
        if self.mask is not None:
            self.mask = tfm.apply_segmentation(self.mask)


class AntialiasedResize(Transform):
    """Resizes image and mask with the same antialiased bilinear filter.

    Differs from Detectron2's ResizeTransform, which takes the nearest mask pixel: that would lose
    thin forgeries, and the fraction of each patch that is forged.
    """

    def __init__(self, size: tuple[int, int], new_size: tuple[int, int]) -> None:
        """Takes (height, width) before and after."""
        super().__init__()
        self.size, self.new_size = size, new_size

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (H', W', 3) uint8."""
        return self._resize(np.ascontiguousarray(img))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(H, W) float32 -> (H', W') float32."""
        return self._resize(np.ascontiguousarray(segmentation, dtype=np.float32))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) float x, y."""
        scale = [self.new_size[1] / self.size[1], self.new_size[0] / self.size[0]]
        return coords * np.asarray(scale, dtype=coords.dtype)

    def _resize(self, pixels: np.ndarray) -> np.ndarray:
        assert pixels.shape[:2] == self.size, (pixels.shape, self.size)
        if self.size == self.new_size:
            return pixels
        resized = Image.fromarray(pixels).resize(self.new_size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(resized)


class Rotate90(Transform):
    """Turns image and mask by a multiple of 90 degrees, counter-clockwise."""

    def __init__(self, size: tuple[int, int], turns: int) -> None:
        """Takes (height, width) and the number of quarter turns, 0 to 3."""
        super().__init__()
        self.size, self.turns = size, turns

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W, ...) -> turned."""
        return np.rot90(img, self.turns)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) float x, y."""
        height, width = self.size
        for _ in range(self.turns):
            coords = np.stack([coords[:, 1], width - coords[:, 0]], axis=1)
            height, width = width, height
        return coords


class RandomRotate90(T.Augmentation):
    """Turns by 90, 180 or 270 degrees."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draws the number of quarter turns."""
        return Rotate90(image.shape[:2], int(np.random.randint(1, 4)))


class RandomColour(T.Augmentation):
    """Changes pixels and leaves the mask alone.

    Args:
        draw: Draws an operation on (H, W, 3) uint8 RGB.
    """

    def __init__(self, draw: Callable[[], Callable[[np.ndarray], np.ndarray]]) -> None:
        super().__init__()
        self.draw = draw

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draws the operation."""
        return T.ColorTransform(self.draw())


def draw_jpeg() -> Callable[[np.ndarray], np.ndarray]:
    """JPEG of quality 50 to 95."""
    return partial(save_jpeg, quality=int(np.random.randint(50, 96)))


def draw_blur() -> Callable[[np.ndarray], np.ndarray]:
    """Gaussian blur of 0.3 to 1.5 pixels."""
    sigma = float(np.random.uniform(0.3, 1.5))
    return lambda image: cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), sigma)


def draw_noise() -> Callable[[np.ndarray], np.ndarray]:
    """Gaussian noise of 1 to 6 grey levels, the same each time it is applied."""
    sigma, seed = np.float32(np.random.uniform(1.0, 6.0)), int(np.random.randint(2**31))

    def add(image: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(seed).standard_normal(image.shape, dtype=np.float32)
        return np.clip(image + noise * sigma + 0.5, 0, 255).astype(np.uint8)

    return add


class RandomScale(T.Augmentation):
    """Zooms by a random factor; a window of a forged image keeps a part of its forged pixels."""

    input_args = ("image", "mask")

    def __init__(self, minimum: float = 0.5, maximum: float = 2.0, crop: bool = True) -> None:
        """Takes the range of factors.

        Args:
            minimum: smallest factor; below 1 the image is shrunk.
            maximum: largest factor; above 1 a window of 1/factor of each side is cut out if `crop`
                (resizing to the network's input enlarges it then), else the image is enlarged.
            crop: whether the image will be resized to the network's input.
        """
        super().__init__()
        self.minimum, self.maximum, self.crop = minimum, maximum, crop

    def get_transform(self, image: np.ndarray, mask: np.ndarray | None) -> Transform:
        """Draws the factor and the window."""
        factor = float(np.exp(self._rand_range(np.log(self.minimum), np.log(self.maximum))))
        height, width = image.shape[:2]
        if factor > 1.0 and self.crop:
            window = (max(1, round(height / factor)), max(1, round(width / factor)))
            return random_window((height, width), window, mask)
        new_size = (max(1, round(height * factor)), max(1, round(width * factor)))
        return AntialiasedResize((height, width), new_size)


class RandomWindow(T.Augmentation):
    """A random window of at most the given size, not resampled."""

    input_args = ("image", "mask")

    def __init__(self, size: int) -> None:
        """Takes the window's side in pixels."""
        super().__init__()
        self.size = size

    def get_transform(self, image: np.ndarray, mask: np.ndarray | None) -> Transform:
        """Draws the window."""
        height, width = image.shape[:2]
        window = (min(self.size, height), min(self.size, width))
        return random_window((height, width), window, mask)


def random_window(
    size: tuple[int, int], window: tuple[int, int], mask: np.ndarray | None
) -> Transform:
    """A random crop to (height, width) `window` that keeps a quarter of the forged pixels.

    If ten draws find none, the window around the strongest forged pixel is taken: a window without
    forged pixels would be an authentic image with the label of a forged one.
    """
    height, width = size
    room = (height - window[0], width - window[1])
    if room == (0, 0):
        return NoOpTransform()
    total = 0.0 if mask is None else float(mask.sum())
    for _ in range(_WINDOW_TRIALS):
        top, left = (int(np.random.randint(0, space + 1)) for space in room)
        if mask is None or total == 0.0:
            break
        inside = mask[top : top + window[0], left : left + window[1]]
        if inside.sum() >= _KEPT * total and inside.max() >= 0.5:
            break
    else:
        assert mask is not None  # Else the first draw is taken.
        y, x = np.unravel_index(int(mask.argmax()), mask.shape)
        top = int(np.clip(y - window[0] // 2, 0, room[0]))
        left = int(np.clip(x - window[1] // 2, 0, room[1]))
    return CropTransform(left, top, window[1], window[0], orig_w=width, orig_h=height)


def build_augmentations(
    *,
    flip: float,
    rotate90: float,
    scale: float,
    jpeg: float,
    blur: float,
    noise: float,
    crop: bool,
) -> list[T.Augmentation]:
    """Augmentations with their probabilities: geometry first, JPEG last, as files are made."""
    chosen = [
        (flip, T.RandomFlip(prob=1.0)),
        (rotate90, RandomRotate90()),
        (scale, RandomScale(crop=crop)),
        (blur, RandomColour(draw_blur)),
        (noise, RandomColour(draw_noise)),
        (jpeg, RandomColour(draw_jpeg)),
    ]
    return [T.RandomApply(augmentation, prob) for prob, augmentation in chosen if prob > 0.0]
