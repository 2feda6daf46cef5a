"""Regions of many predictions as JSON, and as COCO's for tools that know it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from loupe.structures import THRESHOLD, MarkedRegion, Prediction
from loupe.writing import plain, replacing

REGIONS, COCO = "regions.json", "regions.coco.json"
_CATEGORY = {"id": 1, "name": "forged", "supercategory": "forgery"}


def describe_regions(prediction: Prediction) -> list[dict[str, Any]]:
    """Box, area, mean score and outline of each marked region, largest first.

    The outline is a list of polygons [x0, y0, x1, y1, ...] through the centres of border pixels;
    holes inside a region are not cut out.
    """
    return [
        {
            "box": list(region.box),
            "area": region.area,
            "mean_score": round(region.mean_score, 4),
            "outline": outline_of(prediction.forgery_map, region),
        }
        for region in prediction.regions
    ]


def outline_of(forgery_map: np.ndarray, region: MarkedRegion) -> list[list[int]]:
    """Outer polygons of one region, in pixels of the image."""
    x0, y0, x1, y1 = region.box
    forged = (forgery_map[y0:y1, x0:x1] > THRESHOLD).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(forged, connectivity=8)
    # Other regions reach into the box; this one alone spans it.
    spans = (stats[1:, 2] == x1 - x0) & (stats[1:, 3] == y1 - y0)
    label = 1 + int(np.argmax(spans * stats[1:, cv2.CC_STAT_AREA]))
    contours, _ = cv2.findContours(
        (labels == label).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    polygons = (contour[:, 0] + (x0, y0) for contour in contours)
    # COCO wants three points at least.
    return [np.resize(one, (max(3, len(one)), 2)).ravel().tolist() for one in polygons]


def write_regions(folder: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Writes both files, entry by entry: a million images need no more memory than one.

    Args:
        folder: To write to.
        entries: One for each image: `file`, `width`, `height`, `verdict`, `probability`, `regions`.
    """
    with (
        replacing(folder / REGIONS, text=True) as plain_file,
        replacing(folder / COCO, text=True) as coco_file,
        tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder) as annotations,
    ):
        plain_file.write('{"version": 1, "images": [')
        coco_file.write('{"images": [')
        for number, entry in enumerate(entries, 1):
            before = "" if number == 1 else ","
            plain_file.write(f"{before}\n{_json(entry)}")
            sizes = {key: entry[key] for key in ("width", "height")}
            image = {"id": number, "file_name": entry["file"], **sizes}
            coco_file.write(f"{before}\n{_json(image)}")
            for annotation in _annotations(number, entry):
                annotations.write(_json(annotation) + "\n")
        plain_file.write("]}\n")
        coco_file.write(f'],\n"categories": [{_json(_CATEGORY)}],\n"annotations": [')
        annotations.seek(0)
        for number, line in enumerate(annotations, 1):
            before = "" if number == 1 else ","
            coco_file.write(f"{before}\n{_json(json.loads(line) | {'id': number})}")
        coco_file.write("]}\n")


def _annotations(image: int, entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for region in entry["regions"]:
        x0, y0, x1, y1 = region["box"]
        yield {
            "image_id": image,
            "category_id": 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": region["area"],
            "score": region["mean_score"],
            "segmentation": region["outline"],
            "iscrowd": 0,
        }


def _json(value: Any) -> str:
    # ASCII: names that are no UTF-8 are escaped.
    return json.dumps(plain(value), allow_nan=False)
