"""How content is joined with its host.

A seam takes a generator, host and content, (S, S, 3) uint8, and a region, (S, S) bool, and returns
the image. Except for Poisson's, a seam blends: image = alpha content + (1 - alpha) host. A soft
seam has alpha = 1/2 on the edge of the region and changes at most REACH pixels outside. The others
change nothing outside.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

# How far outside of the region a soft seam may reach, in pixels.
REACH = 3

Seam = Callable[[np.random.Generator, np.ndarray, np.ndarray, np.ndarray], np.ndarray]

_RING = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))


def join_hard(
    rng: np.random.Generator, host: np.ndarray, content: np.ndarray, region: np.ndarray
) -> np.ndarray:
    """No transition."""
    image = host.copy()
    cv2.copyTo(content, region.astype(np.uint8), image)
    return image


def fade_in(
    rng: np.random.Generator, host: np.ndarray, content: np.ndarray, region: np.ndarray
) -> np.ndarray:
    """Fades in over 1.5 to 5 pixels from the edge inwards."""
    distance = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, 5)
    return _mix(host, content, np.minimum(distance * np.float32(1 / rng.uniform(1.5, 5.0)), 1.0))


def fade_across(
    rng: np.random.Generator, host: np.ndarray, content: np.ndarray, region: np.ndarray
) -> np.ndarray:
    """Fades across the edge, as a feathered selection does; halfway at the edge itself."""
    width = np.float32(rng.uniform(1.0, REACH - 0.5))
    inside = region.astype(np.uint8)
    signed: np.ndarray = cv2.distanceTransform(inside, cv2.DIST_L2, 5)
    signed -= np.asarray(cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5))
    # Distances count from the nearest pixel of the other side; the edge lies half a pixel before.
    signed -= np.sign(signed) * np.float32(0.5)
    return _mix(host, content, np.clip(0.5 + signed / (2 * width), 0.0, 1.0))


def blur_seam(
    rng: np.random.Generator, host: np.ndarray, content: np.ndarray, region: np.ndarray
) -> np.ndarray:
    """A hard seam, blurred along the edge by a brush of two pixels to either side."""
    image = join_hard(rng, host, content, region)
    inside = region.astype(np.uint8)
    band = cv2.dilate(inside, _RING, iterations=2) - cv2.erode(inside, _RING, iterations=2)
    cv2.copyTo(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.6, 1.2)), band, image)
    return image


def join_poisson(
    rng: np.random.Generator, host: np.ndarray, content: np.ndarray, region: np.ndarray
) -> np.ndarray:
    """Poisson blending (Perez, Gangnet and Blake 2003).

    Inside of the region f solves laplacian(f) = laplacian(content) with f = host on the edge: the
    detail of the content with the brightness and colour of the host.
    """
    # OpenCV shrinks the mask by 3 pixels, and needs room around it.
    border = 5
    sides = (border, border, border, border)
    padded = [cv2.copyMakeBorder(image, *sides, cv2.BORDER_REFLECT) for image in (host, content)]
    inside = cv2.copyMakeBorder(255 * region.astype(np.uint8), *sides, cv2.BORDER_CONSTANT)
    inside = cv2.dilate(inside, np.ones((7, 7), np.uint8))
    x, y, width, height = cv2.boundingRect(inside)
    cloned = cv2.seamlessClone(
        padded[1], padded[0], inside, (x + width // 2, y + height // 2), cv2.NORMAL_CLONE
    )
    return join_hard(rng, host, cloned[border:-border, border:-border], region)


# For forgeries with plain traces; for those that change the host itself; for pasted content.
PLAIN: dict[Seam, float] = {join_hard: 0.4, fade_in: 0.6}
LOCAL: dict[Seam, float] = {join_hard: 0.4, fade_in: 0.3, fade_across: 0.3}
PASTED: dict[Seam, float] = {
    join_hard: 0.35,
    fade_in: 0.15,
    fade_across: 0.24,
    blur_seam: 0.1,
    join_poisson: 0.16,
}


def join(
    rng: np.random.Generator,
    host: np.ndarray,
    content: np.ndarray,
    region: np.ndarray,
    shares: dict[Seam, float],
) -> np.ndarray:
    """Content in the region, host outside, by a seam of a table: PLAIN, LOCAL or PASTED."""
    draw = rng.random()
    for seam, share in shares.items():
        draw -= share
        if draw < 0:
            return seam(rng, host, content, region)
    return join_hard(rng, host, content, region)


def _mix(host: np.ndarray, content: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha.astype(np.float32, copy=False)
    return cv2.blendLinear(content, host, alpha, 1 - alpha)
