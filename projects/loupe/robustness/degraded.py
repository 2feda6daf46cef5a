"""Degraded images: for a model, or written for another tool to predict on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from loupe.data.images.degradation import Level, Pair, degrade
from loupe.data.images.masks import read_stored_pair
from loupe.data.sources.catalog import load_dataset
from loupe.data.sources.entries import make_dataset_dict
from loupe.data.sources.formats.manifest import write_manifest
from loupe.data.sources.synthetic import is_synthetic, render
from loupe.robustness.points import CLEAN, point_folder
from loupe.structures import GroundTruth

# What a file that cannot be used may raise.
UNUSABLE = (ValueError, OSError, cv2.error, MemoryError)


class DegradingMapper:
    """Dataset dict -> batch item of the degraded image, or an item with its "error"."""

    def __init__(self, axis: str, level: Level, seed: int, map_image: Callable[..., Any]) -> None:
        """Takes the degradation, and what makes the model's input of pixels."""
        self.axis, self.level, self.seed, self.map_image = axis, level, seed, map_image

    def __call__(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The item; "ground_truth" is at the degraded image's size."""
        item = {"file_name": entry["file_name"], "image_id": entry["image_id"]}
        try:
            whole = _read(entry)
            image, mask = _degraded(entry, whole, self.axis, self.level, self.seed)
            item |= self.map_image(image)
        except UNUSABLE as error:
            return item | {"error": str(error)}
        # Said once in a run, of the images as they are.
        if self.axis == CLEAN and whole.resized_mask:
            item["resized_mask"] = whole.resized_mask
        truth = GroundTruth(entry["label"], mask, entry["technique"], entry["source"])
        return item | {"ground_truth": truth}


def read_degraded(entry: dict[str, Any], axis: str, level: Level, seed: int) -> Pair:
    """Reads an image and its mask (bool; None = authentic, or not known) and degrades both.

    Raises:
        ValueError: a file cannot be read.
    """
    return _degraded(entry, _read(entry), axis, level, seed)


class _Whole(NamedTuple):
    """Image and mask before degradation; `resized_mask` as of a `StoredPair`."""

    image: np.ndarray
    mask: np.ndarray | None
    resized_mask: str = ""


def _read(entry: dict[str, Any]) -> _Whole:
    name = entry["file_name"]
    if is_synthetic(name):
        return _Whole(*render(name))
    mask_file = entry["mask_file_name"] if entry["label"] else None
    # As stored, the image alike: a degraded image has no orientation any more.
    pair = read_stored_pair(name, mask_file, "resize", entry.get("mask_rule", ""))
    return _Whole(pair.picture.pixels, pair.mask, pair.resized_mask)


def _degraded(entry: dict[str, Any], whole: _Whole, axis: str, level: Level, seed: int) -> Pair:
    image, mask, _ = whole
    if not entry["label"]:
        mask = None
    elif entry.get("wholly_forged"):
        mask = np.ones(image.shape[:2], bool)
    mask = None if mask is None else mask >= 0.5
    if axis == CLEAN:
        return image, mask
    return degrade(image, mask, axis, level, seed=seed, image_id=str(entry["image_id"]))


def select(name: str, limit: int | None) -> list[dict[str, Any]]:
    """The labelled images of a data set, or some of them, evenly spread.

    Raises:
        ValueError: there is none.
    """
    entries = [entry for entry in load_dataset(name) if entry["label"] is not None]
    if not entries:
        raise ValueError(f"{name}: no image has a label; robustness needs the truth")
    if limit is None or limit >= len(entries):
        return entries
    if limit < 1:
        raise ValueError(f"--images is {limit}; it must be at least 1")
    return [entries[index * len(entries) // limit] for index in range(limit)]


def export(
    entries: Sequence[dict[str, Any]],
    folder: Path,
    points: Sequence[tuple[str, Level]],
    seed: int,
    report: Callable[[str], None] = print,
) -> dict[str, str]:
    """Writes all degraded images, as PNG, with their masks and a manifest for each point.

    Args:
        entries: dataset dicts.
        folder: where `<axis>/<level>/` are made.
        points: axes and levels.
        seed: of noise, windows and chains.
        report: is told what was written, point by point.

    Returns:
        Error by image, for those that could not be read; they are left out.
    """
    errors: dict[str, str] = {}
    for axis, level in points:
        target = folder / point_folder(axis, level)
        for name in ("images", "masks"):
            (target / name).mkdir(parents=True, exist_ok=True)
        listed = []
        for number, entry in enumerate(entries):
            try:
                image, mask = read_degraded(entry, axis, level, seed)
            except UNUSABLE as error:
                errors[entry["file_name"]] = str(error)
                continue
            listed.append(_write_pair(entry, target, f"{number:07d}.png", image, mask))
        write_manifest(listed, target)
        report(f"{len(listed)} images: {target}")
    return errors


def _write_pair(
    entry: dict[str, Any], target: Path, name: str, image: np.ndarray, mask: np.ndarray | None
) -> dict[str, Any]:
    Image.fromarray(image).save(target / "images" / name, compress_level=1)
    if mask is not None:
        Image.fromarray(mask.astype(np.uint8) * 255).save(target / "masks" / name)
    return make_dataset_dict(
        target / "images" / name,
        name,
        label=entry["label"],
        mask_file_name=None if mask is None else target / "masks" / name,
        technique=entry["technique"],
        source=entry["source"],
    )
