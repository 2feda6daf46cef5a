"""Degradations of a finished image, each with levels of growing strength.

Every degradation is a pure function of pixels, level and seed. Photometric ones leave the mask
alone. Geometric ones (resize, shift, crop, some chains) change it exactly as the pixels: a crop
cuts both alike, and a pixel of a resized mask is forged if at least half of its area is.

The axes `benco_*` are IMDL-BenCo's grid as its code applies it (at the image's own size, before the
network's resize). With the same OpenCV, blur and JPEG are equal bit for bit. Its noise, and its
draw between two JPEG qualities, are equal in distribution only: its seed depends on the order of
loading.

H W pixels of an image.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

from loupe.synthesis.processing import encode_and_decode, save_jpeg

Level = float | str
# (H, W, 3) uint8 RGB and (H, W) mask or None -> the same, perhaps of another size.
Pair = tuple[np.ndarray, np.ndarray | None]
Step = Callable[[np.ndarray, np.ndarray | None, Any, np.random.Generator], Pair]

# A random window keeps at least this fraction of the forged pixels: the image stays a forgery.
_KEPT = 0.25
_WINDOW_TRIALS = 10
# The first quality of a double compression: the range of cameras and editors.
_FIRST_QUALITIES = (60, 95)


class Degradation(NamedTuple):
    """One kind of degradation.

    Attributes:
        levels: from mild to strong.
        unit: what a level is, for the figure.
        step: applies one level.
        geometric: whether the mask changes as well.
    """

    levels: tuple[Level, ...]
    unit: str
    step: Step
    geometric: bool = False


def photometric(change: Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]) -> Step:
    """A step that changes the image's pixels and leaves the mask alone."""

    def step(
        image: np.ndarray, mask: np.ndarray | None, level: Any, generator: np.random.Generator
    ) -> Pair:
        return change(image, level, generator), mask

    return step


def double_jpeg(image: np.ndarray, quality: int, generator: np.random.Generator) -> np.ndarray:
    """JPEG of a drawn quality, then JPEG of the given one, on the same grid of blocks."""
    first = int(generator.integers(_FIRST_QUALITIES[0], _FIRST_QUALITIES[1] + 1))
    return save_jpeg(save_jpeg(image, first), int(quality))


def compress_webp(image: np.ndarray, quality: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB after one lossy WebP compression, quality 1 to 100."""
    bgr = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)
    stored = encode_and_decode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, int(quality)])
    return cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with a standard deviation in pixels."""
    return cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), float(sigma))


def add_noise(image: np.ndarray, sigma: float, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise with a standard deviation in grey levels, rounded and clipped."""
    noise = generator.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def change_gamma(image: np.ndarray, gamma: float) -> np.ndarray:
    """255 (v / 255) ** gamma: darker above 1, brighter below."""
    table = np.rint(255 * (np.arange(256) / 255) ** float(gamma)).astype(np.uint8)
    return table[image]


def benco_blur(image: np.ndarray, kernel: int, generator: np.random.Generator) -> np.ndarray:
    """IMDL-BenCo's blur: kernel k x k, 0 = none; OpenCV derives sigma = 0.15 k + 0.35 from k."""
    if kernel == 0:
        return image
    return cv2.GaussianBlur(np.ascontiguousarray(image), (int(kernel), int(kernel)), sigmaX=0)


def benco_noise(image: np.ndarray, variance: float, generator: np.random.Generator) -> np.ndarray:
    """IMDL-BenCo's noise: of the given variance in each channel; clipped, then rounded down."""
    noise = generator.normal(0.0, float(variance) ** 0.5, image.shape).astype(np.float32)
    return np.clip(image.astype(np.float32) + noise, 0, 255).astype(np.uint8)


def benco_jpeg(image: np.ndarray, quality: int, generator: np.random.Generator) -> np.ndarray:
    """IMDL-BenCo's JPEG: of quality q - 1 or q, with red and blue exchanged.

    IMDL-BenCo gives RGB pixels to OpenCV, which expects BGR: the weights of red and blue in the
    luminance are exchanged. This is kept, so that the figures can be compared.
    """
    drawn = int(quality) - int(generator.integers(2))
    pixels = np.ascontiguousarray(image)
    return encode_and_decode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, drawn])


def resize_pair(image: np.ndarray, mask: np.ndarray | None, factor: float) -> Pair:
    """Multiplies both sides by a factor: shrinks by area, enlarges by bicubic interpolation."""
    size = tuple(max(1, round(side * factor)) for side in image.shape[:2])
    if size == image.shape[:2]:
        return image, mask
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=way)
    return resized, None if mask is None else resize_mask(mask, size)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H', W') bool: True where at least half of the pixel's area is forged, computed exactly.

    If no pixel reaches a half (a thin forgery), the pixels with the largest fraction are True.
    """
    forged = (mask >= 0.5).astype(np.float64)
    fraction = _window_means(_window_means(forged, size[0]).T, size[1]).T
    # Sums of floats may miss an exact half by a rounding error.
    limit = min(0.5, float(fraction.max(initial=0.0)))
    return fraction >= limit - 1e-9 if limit > 0 else np.zeros(size, bool)


def _window_means(values: np.ndarray, new: int) -> np.ndarray:
    """(old, n) -> (new, n): means over `new` windows of equal height, which may be fractional."""
    old = len(values)
    sums = np.zeros((old + 2, values.shape[1]))
    np.cumsum(values, axis=0, out=sums[1:-1])
    sums[-1] = sums[-2]
    edges = np.arange(new + 1) * (old / new)
    whole = np.floor(edges).astype(int)
    part = (edges - whole)[:, None]
    # The integral of a piecewise constant function is linear between whole rows.
    integral = sums[whole] + part * (sums[whole + 1] - sums[whole])
    return np.diff(integral, axis=0) * (new / old)


def shift_grid(image: np.ndarray, mask: np.ndarray | None, pixels: int) -> Pair:
    """Cuts rows off the top and columns off the left: the blocks of an earlier JPEG shift."""
    rows, columns = (slice(min(int(pixels), side - 1), None) for side in image.shape[:2])
    return image[rows, columns], None if mask is None else mask[rows, columns]


def crop_window(
    image: np.ndarray, mask: np.ndarray | None, fraction: float, generator: np.random.Generator
) -> Pair:
    """Cuts a fraction of each side away; the window is random and keeps some forged pixels."""
    height, width = image.shape[:2]
    inner = tuple(max(1, round(side * (1 - fraction))) for side in (height, width))
    room = (height - inner[0], width - inner[1])
    forged = None if mask is None else mask >= 0.5
    total = 0 if forged is None else int(forged.sum())
    for _ in range(_WINDOW_TRIALS):
        top, left = (int(generator.integers(space + 1)) for space in room)
        inside = (slice(top, top + inner[0]), slice(left, left + inner[1]))
        if forged is None or not total or forged[inside].sum() >= _KEPT * total:
            break
    else:
        assert forged is not None  # Else the first draw is taken.
        row, column = np.argwhere(forged)[total // 2]
        top = int(np.clip(row - inner[0] // 2, 0, room[0]))
        left = int(np.clip(column - inner[1] // 2, 0, room[1]))
        inside = (slice(top, top + inner[0]), slice(left, left + inner[1]))
    return image[inside], None if mask is None else mask[inside]


def fit_into(image: np.ndarray, mask: np.ndarray | None, longest: int) -> Pair:
    """Shrinks until the longest side fits; never enlarges."""
    return resize_pair(image, mask, min(1.0, longest / max(image.shape[:2])))


def sharpen(image: np.ndarray, amount: float) -> np.ndarray:
    """Unsharp mask of radius 1, as services apply after they shrink.

    It rounds halves otherwise than `loupe.synthesis.processing.sharpen`; published curves use it.
    """
    soft = blur(image, 1.0).astype(np.float32)
    return np.clip(np.rint(image + amount * (image - soft)), 0, 255).astype(np.uint8)


def _messenger(image: np.ndarray, mask: np.ndarray | None, _: np.random.Generator) -> Pair:
    image, mask = fit_into(image, mask, 1600)
    return save_jpeg(image, 80), mask


def _feed(image: np.ndarray, mask: np.ndarray | None, _: np.random.Generator) -> Pair:
    image, mask = fit_into(image, mask, 1080)
    return save_jpeg(sharpen(image, 0.3), 72), mask


def _screenshot(image: np.ndarray, mask: np.ndarray | None, draw: np.random.Generator) -> Pair:
    image, mask = resize_pair(image, mask, float(draw.uniform(0.6, 0.95)))
    image, mask = shift_grid(image, mask, int(draw.integers(1, 8)))
    return change_gamma(image, float(draw.uniform(0.9, 1.1))), mask


# The levels of the axis "sharing": steps, applied in order.
CHAINS: dict[str, tuple[Callable[..., Pair], ...]] = {
    "messenger": (_messenger,),
    "feed": (_feed,),
    "messenger twice": (_messenger, _messenger),
    "feed, messenger": (_feed, _messenger),
    "screenshot, messenger": (_screenshot, _messenger),
    "feed, screenshot, feed": (_feed, _screenshot, _feed),
}


def apply_chain(
    image: np.ndarray, mask: np.ndarray | None, chain: Level, generator: np.random.Generator
) -> Pair:
    """Applies a chain of CHAINS. The steps imitate typical services, not a particular one."""
    for link in CHAINS[str(chain)]:
        image, mask = link(image, mask, generator)
    return image, mask


_QUALITIES = (95, 90, 80, 70, 60, 50, 40, 30)
_BENCO = (3, 7, 11, 15, 19, 23)
DEGRADATIONS: dict[str, Degradation] = {
    "jpeg": Degradation(
        _QUALITIES, "JPEG quality", photometric(lambda image, q, _: save_jpeg(image, int(q)))
    ),
    "double_jpeg": Degradation(
        _QUALITIES, "second JPEG quality, after 60 to 95", photometric(double_jpeg)
    ),
    "webp": Degradation(
        _QUALITIES, "WebP quality", photometric(lambda image, q, _: compress_webp(image, int(q)))
    ),
    "blur": Degradation(
        (0.5, 1.0, 1.5, 2.0, 3.0),
        "sigma of the blur in pixels",
        photometric(lambda image, sigma, _: blur(image, sigma)),
    ),
    "noise": Degradation(
        (1, 2, 4, 8, 16), "sigma of the noise in grey levels", photometric(add_noise)
    ),
    "gamma_dark": Degradation(
        (1.2, 1.5, 2.0, 2.5),
        "gamma",
        photometric(lambda image, gamma, _: change_gamma(image, gamma)),
    ),
    "gamma_bright": Degradation(
        (0.8, 0.65, 0.5, 0.4),
        "gamma",
        photometric(lambda image, gamma, _: change_gamma(image, gamma)),
    ),
    "shrink": Degradation(
        (0.9, 0.75, 0.5, 0.35, 0.25),
        "factor",
        lambda image, mask, factor, _: resize_pair(image, mask, factor),
        True,
    ),
    "enlarge": Degradation(
        (1.1, 1.25, 1.5, 2.0),
        "factor",
        lambda image, mask, factor, _: resize_pair(image, mask, factor),
        True,
    ),
    "shift": Degradation(
        (1, 2, 4, 7),
        "pixels cut off top and left",
        lambda image, mask, pixels, _: shift_grid(image, mask, pixels),
        True,
    ),
    "crop": Degradation(
        (0.05, 0.1, 0.2, 0.3, 0.5), "fraction of each side cut off", crop_window, True
    ),
    "sharing": Degradation(tuple(CHAINS), "chain", apply_chain, True),
    "benco_blur": Degradation((0, *_BENCO), "kernel size", photometric(benco_blur)),
    "benco_noise": Degradation(_BENCO, "variance of the noise", photometric(benco_noise)),
    "benco_jpeg": Degradation((100, 90, 80, 70, 60, 50), "JPEG quality", photometric(benco_jpeg)),
}


def degrade(
    image: np.ndarray,
    mask: np.ndarray | None,
    axis: str,
    level: Level,
    *,
    seed: int = 0,
    image_id: str = "",
) -> Pair:
    """Degrades one image.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, or float in [0, 1], forged from 0.5; None = not known.
        axis: one of DEGRADATIONS.
        level: a level of that axis, or another value of the same kind.
        seed: of all draws.
        image_id: seeds the draws as well, so that they do not depend on the order of the images.

    Returns:
        The new image and its mask (of the same type; bool after a resize).

    Raises:
        ValueError: there is no such axis or chain, or image and mask do not fit.
    """
    if axis not in DEGRADATIONS:
        raise ValueError(f"unknown degradation {axis!r}; known are {', '.join(DEGRADATIONS)}")
    if axis == "sharing" and level not in CHAINS:
        raise ValueError(f"unknown chain {level!r}; known are {', '.join(CHAINS)}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"the image is {image.dtype} {image.shape}; give uint8 (H, W, 3) RGB")
    if mask is not None and mask.shape != image.shape[:2]:
        raise ValueError(f"the mask is {mask.shape}, the image {image.shape[:2]}")
    key = zlib.crc32(f"{axis}\0{level}\0{image_id}".encode())
    generator = np.random.default_rng([seed, key])
    image, mask = DEGRADATIONS[axis].step(image, mask, level, generator)
    return np.ascontiguousarray(image), None if mask is None else np.ascontiguousarray(mask)
