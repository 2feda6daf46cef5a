"""ForgeryDatasetMapper: a dataset dict becomes the tensors that the model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform

from loupe.data.images.augmentation import (
    AntialiasedResize,
    ForgeryInput,
    RandomWindow,
    build_augmentations,
)
from loupe.data.images.errors import MaskSizeError, UnreadableImageError
from loupe.data.images.masks import read_stored_pair
from loupe.data.images.orientation import UPRIGHT, turn
from loupe.data.sources.synthetic import is_synthetic, render
from loupe.structures import GroundTruth

RESIZE_MODES = ("squash", "pad", "crop", "native")
TARGET_MODES = ("union", "regions")
MISMATCH_MODES = ("strict", "resize", "skip")


class _Read(NamedTuple):
    """Image (perhaps reduced) and mask (H, W) float32 as stored (None = unknown), and H, W."""

    image: np.ndarray
    mask: np.ndarray | None
    size: tuple[int, int]
    orientation: int = UPRIGHT
    warnings: tuple[str, ...] = ()
    resized_mask: str = ""

    def remarks(self) -> dict[str, Any]:
        """What the loader tells the user of this image; see `StoredPair`."""
        found = {"warnings": self.warnings, "resized_mask": self.resized_mask}
        return {key: value for key, value in found.items() if value}


class ForgeryDatasetMapper:
    """Maps a dataset dict to a batch item.

    1. Reads image and mask (or makes them, for synthetic data).
    2. Training: draws augmentations, applies them to both.
    3. Resizes both by one geometric transform to the network's square; pads right and bottom.
    4. Training: labels the regions. Evaluation: gives the truth at the image's own size.

    The network gets pixels as they are stored, and the item says how to turn its map at the end
    (`loupe.data.images.orientation`). "height", "width" and "window" are of the stored pixels; the
    truth, like the model's map, is upright.

    Nothing is random in evaluation.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        size: int,
        resize: str = "squash",
        targets: str = "union",
        max_regions: int = 20,
        mask_size_mismatch: str = "resize",
        reduced_decoding: bool = False,
        augmentations: Sequence[T.Augmentation] = (),
    ) -> None:
        """Checks the options.

        Args:
            is_train: gives masks and regions, and augments; else the truth for an evaluator.
            size: S, side of the network's square input in pixels.
            resize: "squash", "pad", "crop" or "native", see `INPUT.RESIZE`.
            targets: "union" or "regions", see `INPUT.TARGETS`.
            max_regions: largest number of regions, at most 255.
            mask_size_mismatch: "strict", "resize" or "skip".
            reduced_decoding: decode large JPEGs at a reduced scale, `INPUT.REDUCED_DECODING`.
            augmentations: applied in this order, in training only.
        """
        _check("INPUT.RESIZE", resize, RESIZE_MODES)
        _check("INPUT.TARGETS", targets, TARGET_MODES)
        _check("INPUT.MASK_SIZE_MISMATCH", mask_size_mismatch, MISMATCH_MODES)
        if size < 1 or not 1 <= max_regions <= 255:
            raise ValueError(
                f"INPUT.SIZE is {size} and INPUT.MAX_REGIONS is {max_regions}; "
                "they must be at least 1, and the latter at most 255"
            )
        self.is_train = is_train
        self.size = size
        self.resize = resize
        self.targets = targets
        self.max_regions = max_regions
        self.mask_size_mismatch = mask_size_mismatch
        # A window is cut from the image at its own size, so that must be decoded.
        self.at_least = 2 * size if reduced_decoding and resize != "crop" else 0
        self.augmentations = tuple(augmentations) if is_train else ()

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments of `__init__` from the config."""
        probabilities = {key.lower(): value for key, value in cfg.INPUT.AUGMENTATION.items()}
        return {
            "is_train": is_train,
            "size": cfg.INPUT.SIZE,
            "resize": cfg.INPUT.RESIZE,
            "targets": cfg.INPUT.TARGETS,
            "max_regions": cfg.INPUT.MAX_REGIONS,
            "mask_size_mismatch": cfg.INPUT.MASK_SIZE_MISMATCH,
            "reduced_decoding": cfg.INPUT.REDUCED_DECODING,
            "augmentations": build_augmentations(**probabilities, crop=cfg.INPUT.RESIZE != "crop"),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Dataset dict -> batch item (see the module's contract in `docs/datasets.md`).

        Raises:
            UnreadableImageError: in training, image or mask cannot be used. In evaluation the item
                has the key "error" instead of "image".
            ValueError: INPUT.MASK_SIZE_MISMATCH is strict and a mask's size is not its image's.
        """
        if self.is_train:
            return self._training_item(dataset_dict, self._read(dataset_dict))
        try:
            read = self._read(dataset_dict)
        except UnreadableImageError as error:
            return error_item(dataset_dict, error)
        item = _identity(dataset_dict) | self.map_image(read.image, read.size, read.orientation)
        item |= read.remarks()
        if dataset_dict.get("label") is not None:
            mask = None if read.mask is None else turn(read.mask, read.orientation)
            item["ground_truth"] = _ground_truth(dataset_dict, mask)
        return item

    def map_image(
        self,
        image: np.ndarray,
        size: tuple[int, int] | None = None,
        orientation: int = UPRIGHT,
    ) -> dict[str, Any]:
        """What the model needs of one (H, W, 3) uint8 RGB image: size, pixels and window.

        Args:
            image: the image as stored, perhaps decoded at a reduced scale.
            size: (H, W) of the whole stored image; None = that of `image`.
            orientation: EXIF orientation: how the map is to be turned.
        """
        height, width = size or image.shape[:2]
        transform, window = self._to_network(height, width)
        if image.shape[:2] != (height, width):
            transform = AntialiasedResize(image.shape[:2], transform.new_size)
        resized = transform.apply_image(image)
        return {
            "height": height,
            "width": width,
            "orientation": orientation,
            "image": _image_tensor(resized, self._canvas(resized)),
            "valid_size": resized.shape[:2],
            "window": window,
        }

    def _canvas(self, image: np.ndarray) -> tuple[int, int]:
        """(H, W) of what the network gets, padding included."""
        return image.shape[:2] if self.resize == "native" else (self.size, self.size)

    def _training_item(self, dataset_dict: dict[str, Any], read: _Read) -> dict[str, Any]:
        image, mask = read.image, read.mask
        height, width = read.size
        if mask is not None and mask.shape != image.shape[:2]:
            mask = _shrunk(mask, image.shape[:2])
        inputs = ForgeryInput(image, mask)
        for augmentation in self.augmentations:
            augmentation(inputs)
        if self.resize == "crop":
            RandomWindow(self.size)(inputs)
        has_forged_pixels = inputs.mask is not None and inputs.mask.max(initial=0.0) >= 0.5
        transform, window = self._to_network(*inputs.image.shape[:2])
        inputs.transform(transform)
        valid_size = inputs.image.shape[:2]
        canvas = self._canvas(inputs.image)
        padded = np.zeros(canvas, dtype=np.float32)
        if inputs.mask is not None:
            padded[: valid_size[0], : valid_size[1]] = inputs.mask
            if has_forged_pixels:
                _keep_strongest(padded)
        regions = label_regions(padded, self.targets == "regions", self.max_regions)
        return (
            _identity(dataset_dict)
            | read.remarks()
            | {
                "height": height,
                "width": width,
                "orientation": read.orientation,
                "image": _image_tensor(inputs.image, canvas),
                "valid_size": valid_size,
                "window": window,
                "mask": torch.from_numpy(padded),
                "regions": torch.from_numpy(regions),
                "label": int(dataset_dict["label"]),
                "mask_known": mask is not None,
            }
        )

    def _read(self, dataset_dict: dict[str, Any]) -> _Read:
        file_name, label = dataset_dict["file_name"], dataset_dict.get("label")
        if is_synthetic(file_name):
            image, forged = render(file_name)
            return _Read(image, forged, image.shape[:2])
        try:
            picture, mask, warnings, resized = read_stored_pair(
                file_name,
                dataset_dict.get("mask_file_name") if label != 0 else None,
                mismatch=self.mask_size_mismatch,
                mask_rule=dataset_dict.get("mask_rule", ""),
                at_least=self.at_least,
            )
        except MaskSizeError as error:
            if self.mask_size_mismatch == "strict":
                raise ValueError(str(error)) from error
            raise
        if label == 0:
            mask = np.zeros(picture.size, dtype=np.float32)
        elif dataset_dict.get("wholly_forged"):
            mask = np.ones(picture.size, dtype=np.float32)
        return _Read(picture.pixels, mask, picture.size, picture.orientation, warnings, resized)

    def _to_network(self, height: int, width: int) -> tuple[Transform, tuple[float, ...]]:
        """The last transform, to at most S x S, and the window (x0, y0, x1, y1) that it shows."""
        whole = (0.0, 0.0, float(width), float(height))
        if self.resize == "squash":
            return AntialiasedResize((height, width), (self.size, self.size)), whole
        if self.resize in ("pad", "native"):
            scale = self.size / max(height, width)
            if self.resize == "native":
                scale = min(scale, 1.0)
            new_size = (max(1, round(height * scale)), max(1, round(width * scale)))
            return AntialiasedResize((height, width), new_size), whole
        if max(height, width) <= self.size:
            return NoOpTransform(), whole
        top, left = max(0, height - self.size) // 2, max(0, width - self.size) // 2
        h, w = min(height, self.size), min(width, self.size)
        crop = CropTransform(left, top, w, h, orig_w=width, orig_h=height)
        return crop, (float(left), float(top), float(left + w), float(top + h))


def label_regions(mask: np.ndarray, split: bool, max_regions: int) -> np.ndarray:
    """Numbers the forged regions of a soft mask.

    Args:
        mask: (H, W) in [0, 1]; a pixel is forged from 0.5.
        split: number the 8-connected components, largest first; else all forged pixels are 1.
        max_regions: components after that many join the last.

    Returns:
        (H, W) uint8; 0 = authentic.
    """
    forged = (mask >= 0.5).astype(np.uint8)
    if not split or not forged.any():
        return forged
    count, components, stats, _ = cv2.connectedComponentsWithStats(forged, connectivity=8)
    order = np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")
    number = np.zeros(count, dtype=np.uint8)
    number[1 + order] = np.minimum(np.arange(1, count), max_regions)
    return number[components]


def _shrunk(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at the size of its reduced image; a forgery in it stays, however thin."""
    shrunk = AntialiasedResize(mask.shape, size).apply_segmentation(mask).copy()
    if mask.max(initial=0.0) >= 0.5:
        _keep_strongest(shrunk)
    return shrunk


def _keep_strongest(mask: np.ndarray) -> None:
    """A forgery too thin for the network's grid stays, as the cells with the most of it."""
    strongest = mask.max()
    if strongest < 0.5:
        mask[mask == strongest] = 0.5


def _image_tensor(image: np.ndarray, canvas: tuple[int, int]) -> torch.Tensor:
    """(h, w, 3) uint8 -> (3, *canvas) uint8, zeros at right and bottom."""
    height, width = image.shape[:2]
    padded = np.zeros((3, *canvas), dtype=np.uint8)
    padded[:, :height, :width] = image.transpose(2, 0, 1)
    return torch.from_numpy(padded)


def _identity(dataset_dict: dict[str, Any]) -> dict[str, Any]:
    identity = {"file_name": dataset_dict["file_name"], "image_id": dataset_dict["image_id"]}
    return identity | ({"wholly_forged": True} if dataset_dict.get("wholly_forged") else {})


def _ground_truth(dataset_dict: dict[str, Any], mask: np.ndarray | None) -> GroundTruth:
    label = int(dataset_dict["label"])
    return GroundTruth(
        label=label,
        mask=mask >= 0.5 if label == 1 and mask is not None else None,
        technique=dataset_dict.get("technique", ""),
        source=dataset_dict.get("source", ""),
        wholly_forged=bool(dataset_dict.get("wholly_forged", False)),
    )


def error_item(dataset_dict: dict[str, Any], error: object) -> dict[str, Any]:
    """The item of an image that cannot be read, in evaluation."""
    item = _identity(dataset_dict) | {"error": str(error)}
    if dataset_dict.get("label") is not None:
        item["ground_truth"] = _ground_truth(dataset_dict, None)
    return item


def _check(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{key} is {value!r}; it must be one of {', '.join(known)}")
