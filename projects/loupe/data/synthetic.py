"""Seeded forgeries with exact masks, made of photographs.

A host image is taken by a random camera (sampling, colour filter array, noise, sharpening, JPEG),
forged in one region, and processed as a whole. Authentic images take the same way without the
forgery, so that nothing else tells them apart. All randomness comes from the generator given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from loupe.data.augmentation import compress_jpeg
from loupe.data.camera import SMOOTH, draw_camera, take_photograph

TECHNIQUES = ("splice", "copy-move", "removal", "enhancement")
AUTHENTIC = "authentic"

# A forgery must change at least this share of its region's pixels, and by so many grey levels on
# average; else it is drawn again, for nobody could find it.
_CHANGED_SHARE = 0.6
_CHANGED_LEVELS = 1.5
_TRIALS = 8


class SyntheticSample(NamedTuple):
    """One image with its exact truth.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        mask: (S, S) bool, True = forged.
        label: 1 = forged.
        technique: one of TECHNIQUES, or AUTHENTIC.
    """

    image: np.ndarray
    mask: np.ndarray
    label: int
    technique: str


def make_forgery(
    rng: np.random.Generator,
    photographs: Sequence[np.ndarray],
    size: int,
    techniques: Sequence[str] = TECHNIQUES,
    forged: bool | None = None,
    difficulty: float = 1.0,
) -> SyntheticSample:
    """Makes one image, forged or authentic.

    Args:
        rng: source of all randomness.
        photographs: (H, W, 3) uint8 RGB; hosts and donors are windows of them.
        size: side of the image in pixels, at least 32.
        techniques: those to choose from; AUTHENTIC among them counts as one more.
        forged: whether to forge; None = a coin decides.
        difficulty: share of the draws (of camera, content, processing) from the whole range; the
            others leave strong traces, for models that must learn something within minutes.

    Raises:
        ValueError: a technique is unknown, or the size is too small.
    """
    unknown = set(techniques) - {*TECHNIQUES, AUTHENTIC}
    if unknown or not techniques or size < 32 or not len(photographs):
        raise ValueError(
            f"techniques {sorted(unknown) or list(techniques)}, size {size}, {len(photographs)} "
            f"photographs; needed: some of {', '.join(TECHNIQUES)}, at least 32, at least 1"
        )
    forged = bool(rng.random() < 0.5) if forged is None else forged
    technique = str(rng.choice(list(techniques))) if forged else AUTHENTIC
    # Rescaling the finished image is a part of its history: draw it before, to end at `size`.
    rescaled = rng.random() < 0.3 * difficulty
    drawn_size = round(size / rng.uniform(0.8, 1.25)) if rescaled else size
    host = take_photograph(rng, photographs, drawn_size, draw_camera(rng, difficulty))
    mask = np.zeros(host.shape[:2], dtype=bool)
    image = host
    if technique != AUTHENTIC:
        image, mask = forge(rng, host, photographs, technique, difficulty)
    image, mask = post_process(rng, image, mask, size, difficulty)
    return SyntheticSample(image, mask, int(technique != AUTHENTIC), technique)


def forge(
    rng: np.random.Generator,
    host: np.ndarray,
    photographs: Sequence[np.ndarray],
    technique: str,
    difficulty: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Forges one region of an image; all pixels outside of it stay as they are.

    Returns:
        The image, (S, S, 3) uint8, and the region, (S, S) bool.
    """
    size = host.shape[0]
    for _ in range(_TRIALS):
        region = draw_region(rng, size)
        content = _draw_content(rng, host, region, photographs, technique, difficulty)
        image = _blend(rng, host, content, region)
        difference = np.abs(image.astype(np.int16) - host)[region]
        changed = (difference.max(axis=1) > 0).mean()
        if changed >= _CHANGED_SHARE and difference.mean() >= _CHANGED_LEVELS:
            return image, region
    # The host is flat (a black sky): noise is the one forgery that always leaves a trace.
    noisy = _add_noise(rng, host, rng.uniform(6.0, 12.0))
    return np.where(region[..., None], noisy, host), region


def draw_region(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random blob, polygon or ellipse of 2 to 30% of the image: (size, size) bool."""
    area = np.exp(rng.uniform(np.log(0.02), np.log(0.3))) * size * size
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    kind = rng.integers(3)
    if kind == 0:
        radii = np.ones_like(angles)
        for frequency in range(2, 6):
            wave = np.cos(frequency * angles + rng.uniform(0, 2 * np.pi))
            radii += rng.uniform(0, 0.6) / frequency * wave
    elif kind == 1:
        angles = (np.arange(rng.integers(3, 9)) + rng.uniform(0.1, 0.9)) * 2 * np.pi
        angles = angles / len(angles)
        radii = rng.uniform(0.6, 1.3, len(angles))
    else:
        radii = np.ones_like(angles)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    points[:, 1] *= rng.uniform(0.5, 1.0)
    turn = rng.uniform(0, 2 * np.pi)
    points = points @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    x, y = points.T
    drawn_area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    points *= np.sqrt(area / max(drawn_area, 1e-3))
    reach = np.minimum(np.abs(points).max(axis=0), 0.45 * size)
    points += rng.uniform(0.6 * reach, size - 0.6 * reach)
    region = np.zeros((size, size), np.uint8)
    cv2.fillPoly(region, [np.round(points).astype(np.int32)], 1)
    return region.astype(bool)


def post_process(
    rng: np.random.Generator,
    image: np.ndarray,
    mask: np.ndarray,
    size: int,
    difficulty: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Rescales to `size`, blurs, adds noise, compresses: the same for forged and authentic images.

    The mask follows the rescaling. All but the rescaling is as rare as the difficulty is low.
    """
    if image.shape[0] != size:
        shrinks = image.shape[0] > size
        method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        image = cv2.resize(image, (size, size), interpolation=method)
        soft = mask.astype(np.float32)
        soft = cv2.resize(soft, (size, size), interpolation=cv2.INTER_AREA if shrinks else 1)
        mask = soft >= 0.5
    if rng.random() < 0.1 * difficulty:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.7))
    if rng.random() < 0.15 * difficulty:
        image = _add_noise(rng, image, rng.uniform(0.5, 2.0))
    if rng.random() < 0.5 * difficulty:
        image = compress_jpeg(image, int(rng.integers(75, 99)))
    return image, mask


def _draw_content(
    rng: np.random.Generator,
    host: np.ndarray,
    region: np.ndarray,
    photographs: Sequence[np.ndarray],
    technique: str,
    difficulty: float,
) -> np.ndarray:
    """What the region will show, (S, S, 3) uint8."""
    easy = rng.random() >= difficulty
    if technique == "splice":
        donor = take_photograph(
            rng, photographs, host.shape[0], SMOOTH if easy else draw_camera(rng)
        )
        return _match_tone(donor, host, region) if rng.random() < 0.4 else donor
    if technique == "copy-move":
        return _move(rng, host, region, easy)
    if technique == "removal":
        return _inpaint(rng, host, region)
    return _enhance(rng, host, easy)


def _match_tone(donor: np.ndarray, host: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The donor with the mean colour and contrast that the host has in the region."""
    (mean, deviation), (wanted, wanted_deviation) = (
        cv2.meanStdDev(image, mask=region.astype(np.uint8)) for image in (donor, host)
    )
    gain = np.clip(wanted_deviation / np.maximum(deviation, 1.0), 0.5, 2.0)
    levels = (np.arange(256)[:, None] - mean.T) * gain.T + wanted.T
    return cv2.LUT(donor, np.clip(levels + 0.5, 0, 255).astype(np.uint8).reshape(1, 256, 3))


def _move(rng: np.random.Generator, host: np.ndarray, region: np.ndarray, easy: bool) -> np.ndarray:
    """The host turned, scaled and shifted, so that the region shows another part of it.

    An easy one is always enlarged, which smooths the camera's noise.
    """
    size = host.shape[0]
    ys, xs = np.nonzero(region)
    target = np.array([xs.mean(), ys.mean()])
    reach = np.sqrt(region.sum() / np.pi)
    candidates = rng.uniform(min(reach, size / 2), max(size - reach, size / 2), (8, 2))
    source = candidates[np.argmax(np.linalg.norm(candidates - target, axis=1))]
    if not easy and rng.random() < 0.3:
        shift = np.round(source - target)
        matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
    else:
        low, high = (-0.7, -0.35) if easy else (-0.3, 0.3)
        turn, zoom = rng.uniform(-0.6, 0.6), np.exp(rng.uniform(low, high))
        mirror = rng.choice([-1.0, 1.0])
        linear = zoom * np.array(
            [[mirror * np.cos(turn), -np.sin(turn)], [mirror * np.sin(turn), np.cos(turn)]]
        )
        matrix = np.concatenate([linear, (source - linear @ target)[:, None]], axis=1)
    smoothness = 1 if easy else rng.integers(2)
    method = (cv2.INTER_CUBIC, cv2.INTER_LINEAR)[smoothness] | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(host, matrix, (size, size), flags=method, borderMode=cv2.BORDER_REFLECT)


def _inpaint(rng: np.random.Generator, host: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The host with the region filled in from its surroundings."""
    method = (cv2.INPAINT_TELEA, cv2.INPAINT_NS)[rng.integers(2)]
    return cv2.inpaint(host, region.astype(np.uint8), float(rng.integers(2, 5)), method)


def _enhance(rng: np.random.Generator, host: np.ndarray, easy: bool) -> np.ndarray:
    """The host blurred, resampled, recompressed, noisier or sharpened; the first two are easy."""
    kind = rng.integers(2 if easy else 5)
    if kind == 0:
        return cv2.GaussianBlur(host, (0, 0), rng.uniform(0.8, 2.0))
    if kind == 1:
        size = host.shape[0]
        small = max(8, round(size * rng.uniform(0.4, 0.7)))
        small_image = cv2.resize(host, (small, small), interpolation=cv2.INTER_AREA)
        return cv2.resize(small_image, (size, size), interpolation=cv2.INTER_CUBIC)
    if kind == 2:
        return compress_jpeg(host, int(rng.integers(25, 65)))
    if kind == 3:
        return _add_noise(rng, host, rng.uniform(4.0, 12.0))
    soft = cv2.GaussianBlur(host, (0, 0), 1.2)
    amount = rng.uniform(1.0, 2.5)
    return cv2.addWeighted(host, 1 + amount, soft, -amount, 0)


def _blend(
    rng: np.random.Generator, host: np.ndarray, content: np.ndarray, region: np.ndarray
) -> np.ndarray:
    """Content inside the region, host outside; the edge is hard or fades inwards."""
    if rng.random() < 0.4:
        return np.where(region[..., None], content, host)
    distance = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, 3)
    alpha = np.minimum(distance * np.float32(1 / rng.uniform(1.5, 5.0)), 1.0)[..., None]
    return (host + alpha * (content.astype(np.float32) - host) + 0.5).astype(np.uint8)


def _add_noise(rng: np.random.Generator, image: np.ndarray, sigma: float) -> np.ndarray:
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma)
    return np.clip(image + noise + 0.5, 0, 255).astype(np.uint8)
