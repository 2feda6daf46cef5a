"""Reads one saved map: PNG, .npy, TruFor's .npz, or COCO run lengths."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask


class SavedMap(NamedTuple):
    """A map as it was saved.

    Attributes:
        forgery_map: (H, W) uint8, uint16, bool or float.
        score: the image's probability, where the same file holds it; None otherwise.
    """

    forgery_map: np.ndarray
    score: float | None = None


def read_map(source: Path | list[dict[str, Any]]) -> SavedMap:
    """Reads a map.

    Args:
        source: a .png, .npy or .npz file, or regions `{"segmentation": RLE, "score": float}`.

    Raises:
        ValueError: the file cannot be read, or is not a map; names the file.
    """
    if not isinstance(source, Path):
        return SavedMap(regions_to_map(source))
    readers = {".png": _read_png, ".npy": _read_npy, ".npz": _read_npz}
    return readers[source.suffix.lower()](source)


def _read_png(path: Path) -> SavedMap:
    data = np.fromfile(path, dtype=np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if pixels is None:
        raise ValueError(f"{path}: not a readable PNG; save the map again")
    if pixels.ndim == 3:
        colours = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1]
        if (colours != colours[:, :, :1]).any():
            raise ValueError(
                f"{path}: a coloured picture is no probability map; save one grey channel"
            )
        pixels = colours[:, :, 0]
    return SavedMap(np.ascontiguousarray(pixels))


def _read_npy(path: Path) -> SavedMap:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a readable array ({error}); save the map again") from error
    return SavedMap(np.squeeze(values))


def _read_npz(path: Path) -> SavedMap:
    try:
        with np.load(path, allow_pickle=False) as content:
            if "map" not in content:
                raise ValueError(f"it holds {sorted(content)}, not `map`")
            forgery_map = np.squeeze(content["map"])
            names = [name for name in ("score", "score_sigmoid") if name in content]
            score = float(np.squeeze(content[names[0]])) if names else None
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable TruFor result ({error})") from error
    return SavedMap(forgery_map, score)


def regions_to_map(regions: list[dict[str, Any]]) -> np.ndarray:
    """(H, W) float32: at each pixel the highest score of a region that covers it.

    Without regions the size is unknown: (1, 1).

    Args:
        regions: `{"segmentation": {"size": [H, W], "counts": str | list}, "score": float}`.

    Raises:
        ValueError: a segmentation is not run lengths, or sizes differ.
    """
    height_width, result = None, None
    for region in regions:
        run_lengths = region["segmentation"]
        if not isinstance(run_lengths, dict) or "counts" not in run_lengths:
            raise ValueError("a region is not run lengths {'size': [H, W], 'counts': ...}")
        if result is None:
            height_width = list(run_lengths["size"])
            result = np.zeros(height_width, np.float32)
        if list(run_lengths["size"]) != height_width:
            raise ValueError(
                f"regions of sizes {height_width} and {run_lengths['size']} in one map"
            )
        if isinstance(run_lengths["counts"], list):
            run_lengths = coco_mask.frPyObjects(run_lengths, *height_width)
        inside = coco_mask.decode(run_lengths).astype(bool)
        result[inside] = np.maximum(result[inside], np.float32(region["score"]))
    return np.zeros((1, 1), np.float32) if result is None else result
