"""Photographs to forge: those that ship inside dependencies, drawn scenes, and one's own.

Training, validation and test never share a photograph: the table below defines the splits. (The two
motorcycles show one scene, so both are in training.) Random windows, zooms and tones make many
hosts of each photograph. Further photographs come from a folder or a manifest; the user must keep
them apart from other splits.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from loupe.data.images.decoding import read_image, read_size
from loupe.data.images.errors import UnreadableImageError
from loupe.data.sources.entries import DatasetError
from loupe.data.sources.files import list_images
from loupe.data.sources.formats.manifest import read_manifest
from loupe.data.sources.pool import PhotographPool, is_pool
from loupe.structures import Photographs

SPLITS = ("train", "valid", "test")

# (distribution, package, path inside it)
_SKIMAGE = ("scikit-image", "skimage", "data")
_SKLEARN = ("scikit-learn", "sklearn", "datasets/images")
_MATPLOTLIB = ("matplotlib", "matplotlib", "mpl-data/sample_data")

PHOTOGRAPHS = {
    "train": (
        (_SKIMAGE, "astronaut.png"),
        (_SKIMAGE, "motorcycle_left.png"),
        (_SKIMAGE, "motorcycle_right.png"),
        (_SKIMAGE, "camera.png"),
        (_SKIMAGE, "ihc.png"),
        (_SKIMAGE, "hubble_deep_field.jpg"),
        (_SKIMAGE, "retina.jpg"),
        (_SKIMAGE, "brick.png"),
        (_SKIMAGE, "gravel.png"),
        (_SKIMAGE, "coins.png"),
        (_MATPLOTLIB, "grace_hopper.jpg"),
    ),
    "valid": (
        (_SKIMAGE, "rocket.jpg"),
        (_SKIMAGE, "moon.png"),
        (_SKLEARN, "flower.jpg"),
    ),
    "test": (
        (_SKIMAGE, "chelsea.png"),
        (_SKIMAGE, "coffee.png"),
        (_SKIMAGE, "grass.png"),
        (_SKLEARN, "china.jpg"),
    ),
}
# Procedural scenes beside the photographs, for variety; none where figures are measured.
SCENES = {"train": 8, "valid": 0, "test": 0}

_SCENE_SIZE = 448
# Further photographs stay in memory up to this size, then they are read anew each time.
_KEPT_BYTES = 1_500_000_000
_SMALLEST_SIDE = 64


@lru_cache(maxsize=len(SPLITS))
def load_photographs(split: str) -> tuple[np.ndarray, ...]:
    """Photographs and scenes of a split, each (H, W, 3) uint8 RGB and read-only.

    Raises:
        ValueError: there is no such split.
        RuntimeError: a package that ships photographs is missing.
    """
    if split not in SPLITS:
        raise ValueError(f"the split is {split!r}; it must be one of {', '.join(SPLITS)}")
    photographs = [read_image(_photograph_path(*entry)) for entry in PHOTOGRAPHS[split]]
    photographs += [
        make_scene(np.random.default_rng(seed), _SCENE_SIZE) for seed in range(SCENES[split])
    ]
    for photograph in photographs:
        photograph.setflags(write=False)
    return tuple(photographs)


@lru_cache(maxsize=16)
def gather_photographs(split: str, further: str = "") -> Photographs:
    """Photographs of a split, and further ones, which are read when they are needed.

    Args:
        split: one of SPLITS.
        further: a folder of images, or a manifest, of which rows with label 0 count; or the list of
            a pool (`loupe.data.sources.pool`), which replaces the split; "" = none.

    Raises:
        DatasetError: the folder or manifest is not there or has no authentic image, or an image's
            header says that it is none or too small; later, an image that is damaged behind it.
    """
    shipped = load_photographs(split)
    if not further:
        return shipped
    place = Path(further)
    if is_pool(place):
        return PhotographPool(place)
    if place.is_file() and place.suffix.lower() == ".csv":
        paths = [
            entry["file_name"]
            for entry in read_manifest(place).strict(place)
            if entry["label"] == 0
        ]
    else:
        paths = [str(place / name) for name in list_images(place)]
    if not paths:
        raise DatasetError(
            f"{further}: no authentic image; give a folder of photographs or a manifest.csv "
            "with rows of label 0"
        )
    for path in paths:
        _check_photograph(path)
    return _Photographs(shipped, paths)


def _check_photograph(path: str) -> None:
    """Reads a file's header, so that an error is raised now and not after hours of training."""
    try:
        height, width = read_size(path)
    except UnreadableImageError as error:
        raise _unreadable(path, error) from error
    if min(height, width) < _SMALLEST_SIDE:
        raise DatasetError(
            f"{path}: a photograph to forge has {width} x {height} "
            f"pixels; remove it, each side needs {_SMALLEST_SIDE}"
        )


def _unreadable(path: str, error: UnreadableImageError) -> DatasetError:
    return DatasetError(
        f"{path}: a photograph to forge cannot be read ({error.problem}); "
        "remove it from the folder or manifest"
    )


class _Photographs:
    """Photographs in memory, followed by files that are read at first use and then kept."""

    def __init__(self, ready: Sequence[np.ndarray], paths: Sequence[str]) -> None:
        """Takes both, the latter checked; no file is opened."""
        self._ready, self._paths = ready, paths
        self._kept: dict[int, np.ndarray] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        """Both together."""
        return len(self._ready) + len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, read-only."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index < len(self._ready):
            return self._ready[index]
        if index in self._kept:
            return self._kept[index]
        path = self._paths[index - len(self._ready)]
        try:
            photograph = read_image(path)
        except UnreadableImageError as error:
            raise _unreadable(path, error) from error
        photograph.setflags(write=False)
        if self._kept_bytes + photograph.nbytes <= _KEPT_BYTES:
            self._kept[index] = photograph
            self._kept_bytes += photograph.nbytes
        return photograph


def make_scene(rng: np.random.Generator, size: int, shapes: int = 400) -> np.ndarray:
    """A scene of textured, shaded shapes that hide one another, (size, size, 3) uint8 RGB.

    Shapes of all sizes, the frequent ones small: edges and spectrum resemble a photograph's.
    """
    fine = 2 * size  # Drawn twice as large and averaged, for edges without steps.
    canvas = np.empty((fine, fine, 3), np.float32)
    palette = rng.uniform(25, 215, (6, 1)) + rng.normal(0, 22, (6, 3))
    canvas[:] = palette[0]
    for radius in fine * np.minimum(0.4, 0.02 * rng.pareto(1.3, shapes) + 0.006):
        colour = palette[rng.integers(6)] + rng.normal(0, 12, 3)
        _draw_shape(rng, canvas, int(radius), colour)
    scene = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    return np.clip(scene + 0.5, 0, 255).astype(np.uint8)


def _draw_shape(
    rng: np.random.Generator, canvas: np.ndarray, radius: int, colour: np.ndarray
) -> None:
    size = canvas.shape[0]
    x, y = rng.integers(0, size, 2)
    top, bottom = max(0, y - radius), min(size, y + radius + 1)
    left, right = max(0, x - radius), min(size, x + radius + 1)
    height, width = int(bottom - top), int(right - left)
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
    reach = radius * rng.uniform(0.55, 1.0, len(angles))
    corners = np.stack([x - left + reach * np.cos(angles), y - top + reach * np.sin(angles)], 1)
    inside = np.zeros((height, width), np.uint8)
    if rng.random() < 0.4:
        axes = (int(radius * rng.uniform(0.5, 1)), int(radius * rng.uniform(0.3, 1)))
        centre = (int(x - left), int(y - top))
        cv2.ellipse(inside, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    else:
        cv2.fillPoly(inside, [corners.astype(np.int32)], 1)
    paint = colour.astype(np.float32) + _texture(rng, height, width)[..., None]
    shading = np.linspace(-1, 1, width, dtype=np.float32) * np.float32(rng.uniform(-30, 30))
    region = canvas[top:bottom, left:right]
    np.copyto(region, paint + shading[None, :, None], where=inside[..., None].astype(bool))


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) float32 random relief of a random scale and direction."""
    cell = rng.uniform(1.5, 24.0, 2) if rng.random() < 0.8 else np.array([height, width])
    coarse = (max(2, int(height / cell[0])), max(2, int(width / cell[1])))
    relief = rng.standard_normal(coarse, dtype=np.float32) * np.float32(rng.uniform(0, 24))
    return cv2.resize(relief, (width, height), interpolation=cv2.INTER_LINEAR)


def _photograph_path(place: tuple[str, str, str], name: str) -> Path:
    distribution, package, folder = place
    spec = importlib.util.find_spec(package)
    places = (spec and spec.submodule_search_locations) or ()
    path = next((Path(parent) / folder / name for parent in places), None)
    if path is None or not path.is_file():
        raise RuntimeError(
            f"the photograph {name} of {distribution} is not installed; "
            f"pip install --force-reinstall {distribution}"
        )
    return path
