"""COCO JSON in and out: forged regions as instances, so that any tool of Detectron2 reads them.

Written: each 8-connected forged region is an instance of the one category "forged", as run lengths
of pycocotools; an image without annotations is authentic. Three keys of our own at an image keep
what COCO has no place for: `label` (without it an image is forged if it has annotations),
`technique` and `source`.

Read: any annotation marks a forged region, whatever its category; polygons and run lengths, crowds,
too. Masks become files in a cache of the user's (`LOUPE_CACHE`, by default `~/.cache/loupe`), since
everything that reads masks reads files; the data set's own folder is never written to.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from loupe.data.images.decoding import read_image
from loupe.data.images.limits import LIMITS
from loupe.data.images.masks import read_image_and_mask
from loupe.data.sources.entries import (
    DatasetDict,
    DatasetError,
    Listing,
    make_dataset_dict,
    names,
    parse_label,
)
from loupe.data.sources.files import cache_folder
from loupe.writing import replacing, write_json

CATEGORY = {"id": 1, "name": "forged", "supercategory": "forgery"}


# What these keys must hold: a dict of them, and a path, are made of it.
_TYPES = {"id": str | int, "image_id": str | int, "file_name": str}


def is_coco(content: Any) -> bool:
    """Whether the content of a JSON file is a COCO data set."""
    return isinstance(content, dict) and isinstance(content.get("images"), list)


def read_coco(path: Path, content: dict[str, Any]) -> Listing:
    """Lists a COCO JSON; file names are relative to it.

    Args:
        path: the file.
        content: of it.

    Raises:
        DatasetError: an image or annotation lacks what is needed, or they do not fit.
    """
    images = _by_id(path, content["images"])
    regions: dict[Any, list[Any]] = defaultdict(list)
    for annotation in content.get("annotations") or []:
        regions[_need(path, annotation, "image_id", "an annotation")].append(
            _need(path, annotation, "segmentation", f"annotation {annotation.get('id')}")
        )
    strays = [str(image_id) for image_id in regions if image_id not in images]
    if strays:
        raise DatasetError(
            f"{path}: annotations name {len(strays)} images that are not listed "
            f"({names(strays)}); add the images or remove the annotations"
        )
    folder = mask_cache(path)
    entries = []
    for image_id, image in images.items():
        file_name = _need(path, image, "file_name", f"image {image_id}")
        label = _label(path, image_id, image.get("label", int(image_id in regions)))
        if label == 0 and image_id in regions:
            raise DatasetError(
                f"{path}: image {image_id} has label {label!r} and "
                f"{len(regions[image_id])} annotations; give 1 (forged) or 0 without annotations"
            )
        mask = None
        if image_id in regions:
            mask = _cached_mask(path, folder, image, regions[image_id])
        entries.append(
            make_dataset_dict(
                path.parent / file_name,
                file_name,
                label=label,
                mask_file_name=mask,
                technique=image.get("technique", ""),
                source=image.get("source", ""),
            )
        )
    return Listing(entries)


def decode_regions(segmentations: Iterable[Any], height: int, width: int) -> np.ndarray:
    """Union of COCO segmentations (polygons, or run lengths of either kind) as (H, W) bool.

    Raises:
        ValueError: a segmentation is of no known kind, or of another size.
    """
    mask = np.zeros((height, width), bool)
    for segmentation in segmentations:
        for code in _run_lengths(segmentation, height, width):
            if list(code["size"]) != [height, width]:
                raise ValueError(
                    f"run lengths of {code['size'][0]} x {code['size'][1]} pixels (height x width) "
                    f"for an image of {height} x {width}; correct one of them"
                )
            mask |= run_lengths.decode(code).astype(bool)
    return mask


def encode_regions(mask: np.ndarray) -> list[dict[str, Any]]:
    """8-connected regions of a mask (H, W) bool: `segmentation`, `area`, `bbox` of each.

    A box is x, y, width, height in pixels; the largest region comes first.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    order = 1 + np.argsort(-stats[1:count, cv2.CC_STAT_AREA], kind="stable")
    regions = []
    for number in order.tolist():
        code = run_lengths.encode(np.asfortranarray(labels == number, np.uint8))
        size = [int(side) for side in code["size"]]
        regions.append(
            {
                "segmentation": {"size": size, "counts": code["counts"].decode("ascii")},
                "area": int(stats[number, cv2.CC_STAT_AREA]),
                "bbox": [float(value) for value in stats[number, : cv2.CC_STAT_AREA]],
                "iscrowd": 0,
            }
        )
    return regions


def make_coco(entries: Iterable[DatasetDict], folder: Path) -> dict[str, Any]:
    """COCO data set of dataset dicts, with paths relative to the folder it will lie in.

    Raises:
        UnreadableImageError: an image or a mask cannot be used.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, entry in enumerate(entries, start=1):
        height, width, mask = _size_and_mask(entry)
        image = {
            "id": image_id,
            "file_name": Path(os.path.relpath(entry["file_name"], folder)).as_posix(),
            "height": height,
            "width": width,
            "label": entry["label"],
        }
        images.append(image | {key: entry[key] for key in ("technique", "source") if entry[key]})
        for region in [] if mask is None else encode_regions(mask):
            identity = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append(identity | {"category_id": CATEGORY["id"]} | region)
    return {"images": images, "annotations": annotations, "categories": [CATEGORY]}


def write_coco(entries: Iterable[DatasetDict], path: Path) -> None:
    """Writes dataset dicts as COCO JSON. Images stay where they are.

    Raises:
        FileExistsError: the file exists.
        UnreadableImageError: an image or a mask cannot be used.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists; remove it or choose another --output")
    content = make_coco(entries, path.parent)
    write_json(path, content, indent=None)


def mask_cache(path: Path) -> Path:
    """Folder of the masks of a COCO JSON in the user's cache: another content, another folder."""
    digest = hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest()
    return cache_folder() / "coco" / digest


def _size_and_mask(entry: DatasetDict) -> tuple[int, int, np.ndarray | None]:
    """Height, width and forged pixels (H, W) bool of an image; None = unknown, or authentic."""
    if entry["label"] == 1 and entry["mask_file_name"]:
        image, mask = read_image_and_mask(
            entry["file_name"],
            entry["mask_file_name"],
            mismatch="strict",
            mask_rule=entry.get("mask_rule", ""),
        )
        assert mask is not None
        return image.shape[0], image.shape[1], mask >= 0.5
    height, width = read_image(entry["file_name"]).shape[:2]
    whole = np.ones((height, width), bool) if entry.get("wholly_forged") else None
    return height, width, whole


def _run_lengths(segmentation: Any, height: int, width: int) -> Iterator[dict[str, Any]]:
    if isinstance(segmentation, list) and segmentation:
        if not all(isinstance(ring, list) and len(ring) >= 6 for ring in segmentation):
            raise ValueError("a polygon has fewer than three points; give x, y of each")
        # pycocotools writes outside of its memory for coordinates far outside of the image.
        far = 2 * max(height, width)
        if not all(-far <= number <= far for ring in segmentation for number in ring):
            raise ValueError("a polygon reaches far outside of the image; correct it")
        yield from run_lengths.frPyObjects(segmentation, height, width)
    elif isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        if isinstance(segmentation["counts"], list):
            yield run_lengths.frPyObjects(segmentation, *segmentation["size"])
        else:
            yield segmentation
    else:
        raise ValueError(
            f"a segmentation is {str(segmentation)[:60]!r}; give polygons or run lengths"
        )


def _cached_mask(path: Path, folder: Path, image: dict[str, Any], segmentations: list[Any]) -> Path:
    """File of an image's mask; written once, whole or not at all."""
    image_id = image["id"]
    file = folder / f"{hashlib.blake2b(str(image_id).encode(), digest_size=8).hexdigest()}.png"
    if file.exists():
        return file
    height, width = (_need(path, image, side, f"image {image_id}") for side in ("height", "width"))
    try:
        if not isinstance(height, int) or not isinstance(width, int) or height < 1 or width < 1:
            raise ValueError(f"its size is {width!r:.20} x {height!r:.20}")
        if height * width > LIMITS.pixels:
            raise ValueError(f"{width} x {height} are more than {LIMITS.pixels} pixels")
        mask = decode_regions(segmentations, height, width)
    except (ValueError, TypeError, OverflowError) as error:
        raise DatasetError(f"{path}: image {image_id}: {error}") from None
    with replacing(file) as stream:
        Image.fromarray(mask).save(stream, format="PNG")
    return file


def _label(path: Path, image_id: Any, value: Any) -> int | None:
    try:
        return parse_label(value)
    except ValueError as error:
        raise DatasetError(f"{path}: image {image_id}: {error}; give 1 (forged) or 0") from None


def _by_id(path: Path, images: list[Any]) -> dict[Any, dict[str, Any]]:
    by_id = {_need(path, image, "id", "an image"): image for image in images}
    if len(by_id) < len(images):
        counts = Counter(image["id"] for image in images)
        twins = [str(image_id) for image_id, count in counts.items() if count > 1]
        raise DatasetError(f"{path}: images share the id {names(twins)}; number them anew")
    return by_id


def _need(path: Path, row: Any, key: str, what: str) -> Any:
    value = row.get(key) if isinstance(row, dict) else None
    if value is None or (key in _TYPES and not isinstance(value, _TYPES[key])):
        raise DatasetError(f"{path}: {what} has no {key!r}; it is {str(row)[:80]}")
    return value
