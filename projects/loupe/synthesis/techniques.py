"""The techniques of forgery. Each chooses a region of the host and the new content for it.

A technique takes a scene and returns content, (S, S, 3) uint8, and region, (S, S) bool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from loupe.structures import Photographs
from loupe.synthesis.enhancement import enhance
from loupe.synthesis.generated import regenerate
from loupe.synthesis.histories import take_donor
from loupe.synthesis.inpainting import inpaint
from loupe.synthesis.processing import match_colour
from loupe.synthesis.regions import draw_region, draw_shape, find_object, move


class Scene(NamedTuple):
    """The images that a technique works with.

    Attributes:
        host: (S, S, 3) uint8, the image to forge.
        photographs: the donors are windows of these.
        host_index: index of the photograph that the host was taken from.
        easy: whether the forgery leaves strong traces, so that a small model can learn it.
    """

    host: np.ndarray
    photographs: Photographs
    host_index: int
    easy: bool


Forgery = tuple[np.ndarray, np.ndarray]


def splice(rng: np.random.Generator, scene: Scene) -> Forgery:
    """Pastes an object of another photograph anywhere in the host.

    In 35% of cases its colours are matched to the host's.
    """
    size = scene.host.shape[0]
    donor = take_donor(rng, scene.photographs, size, scene.host_index, scene.easy)
    content, region = move(rng, donor, _cut(rng, donor, scene.easy))
    return _match(rng, content, scene.host, region, 0.35), region


def copy_move(rng: np.random.Generator, scene: Scene) -> Forgery:
    """Copies an object of the host to another place: turned, scaled, mirrored or only shifted.

    An easy copy is always enlarged, which smooths the camera's noise.
    """
    return _copy(rng, scene, is_shifted=False)


def clone(rng: np.random.Generator, scene: Scene) -> Forgery:
    """Copies an object of the host to another place by a shift alone.

    Its colours may be matched, as in `copy_move`. An easy scene changes only the object's shape.
    """
    return _copy(rng, scene, is_shifted=True)


# The identity: the copy keeps its pixel values.
_SHIFT = np.eye(2), cv2.INTER_NEAREST


def _copy(rng: np.random.Generator, scene: Scene, is_shifted: bool) -> Forgery:
    host, size = scene.host, scene.host.shape[0]
    source_region = _cut(rng, host, scene.easy)
    x, y, width, height = cv2.boundingRect(source_region.astype(np.uint8))
    source = np.array([x + width / 2, y + height / 2])
    # Take the farthest of six random places, so that original and copy overlap little.
    places = rng.uniform(0.12 * size, 0.88 * size, (6, 2))
    target = places[np.argmax(np.linalg.norm(places - source, axis=1))]
    linear, method = _SHIFT if is_shifted else _draw_linear(rng, scene.easy)
    offset = target - linear @ source
    # A copy that is only shifted or mirrored moves by whole pixels, so nothing is resampled.
    offset = np.round(offset) if method == cv2.INTER_NEAREST else offset
    matrix = np.concatenate([linear, offset[:, None]], axis=1)
    content = cv2.warpAffine(
        host, matrix, (size, size), flags=method, borderMode=cv2.BORDER_REFLECT
    )
    region = cv2.warpAffine(
        255 * source_region.astype(np.uint8), matrix, (size, size), flags=cv2.INTER_LINEAR
    )
    return _match(rng, content, host, region > 127, 0.1), region > 127


def _draw_linear(rng: np.random.Generator, easy: bool) -> tuple[np.ndarray, int]:
    """A 2 x 2 matrix from source to target, and OpenCV's interpolation for it."""
    mirror = rng.choice([-1.0, 1.0])
    if not easy and rng.random() < 0.35:
        return np.diag([mirror, 1.0]), cv2.INTER_NEAREST
    turn = rng.uniform(-0.6, 0.6) if rng.random() < 0.6 else 0.0
    low, high = (np.log(1.4), np.log(2.0)) if easy else (np.log(0.6), np.log(1.7))
    zoom = np.exp(rng.uniform(low, high))
    linear = zoom * np.array(
        [[mirror * np.cos(turn), -np.sin(turn)], [mirror * np.sin(turn), np.cos(turn)]]
    )
    methods = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
    return linear, methods[0 if easy else rng.integers(3)]


def remove(rng: np.random.Generator, scene: Scene) -> Forgery:
    """Removes an object of the host and a margin of one pixel: its surroundings fill it."""
    host, size = scene.host, scene.host.shape[0]
    region = None if scene.easy or rng.random() < 0.4 else find_object(rng, host)
    if region is None or region.mean() > 0.15:
        region = draw_shape(rng, size, 0.015, 0.3 if scene.easy else 0.15)
    elif not scene.easy:
        margin = np.ones((3, 3), np.uint8)
        region = cv2.dilate(region.astype(np.uint8), margin).astype(bool)
    return inpaint(rng, host, region, scene.easy), region


def change_locally(rng: np.random.Generator, scene: Scene) -> Forgery:
    """Enhances an object or a part of the host (`loupe.synthesis.enhancement`)."""
    region = _cut(rng, scene.host, scene.easy)
    return enhance(rng, scene.host, scene.easy), region


def generate(rng: np.random.Generator, scene: Scene) -> Forgery:
    """Gives a part of the host, or a pasted object, the traces of an image generator."""
    if rng.random() < 0.5:
        return regenerate(rng, scene.host, scene.easy), _cut(rng, scene.host, scene.easy)
    size = scene.host.shape[0]
    donor = take_donor(rng, scene.photographs, size, scene.host_index, scene.easy)
    content, region = move(rng, donor, _cut(rng, donor, scene.easy))
    return _match(rng, regenerate(rng, content, scene.easy), scene.host, region, 0.5), region


def _cut(rng: np.random.Generator, content: np.ndarray, easy: bool) -> np.ndarray:
    if easy:
        return draw_shape(rng, content.shape[0])
    return draw_region(rng, content)


def _match(
    rng: np.random.Generator,
    content: np.ndarray,
    host: np.ndarray,
    region: np.ndarray,
    probability: float,
) -> np.ndarray:
    return match_colour(content, host, region) if rng.random() < probability else content


# A synthetic data set takes the techniques in this order; another order is another data set.
TECHNIQUES: dict[str, Callable[[np.random.Generator, Scene], Forgery]] = {
    "splice": splice,
    "copy-move": copy_move,
    "removal": remove,
    "enhancement": change_locally,
    "generated": generate,
    "clone": clone,
}
