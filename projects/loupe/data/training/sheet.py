"""A contact sheet of a data set: images with their forged regions outlined."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from loupe.data.sources.entries import DatasetDict
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper

_CAPTION_HEIGHT = 18
_OUTLINE = (255, 0, 255)


def draw_sheet(entries: Sequence[DatasetDict], tile: int, columns: int) -> np.ndarray:
    """Draws dataset dicts as a grid of tiles with captions, (H, W, 3) uint8 RGB.

    Args:
        entries: what to show, row by row.
        tile: side of a tile in pixels; images keep their aspect ratio.
        columns: tiles per row.
    """
    mapper = ForgeryDatasetMapper(False, size=tile, resize="pad")
    tiles = [_draw_tile(mapper, entry, tile) for entry in entries]
    blank = np.full_like(tiles[0], 32)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows, axis=0)


def _draw_tile(mapper: ForgeryDatasetMapper, entry: DatasetDict, tile: int) -> np.ndarray:
    canvas = np.full((tile + _CAPTION_HEIGHT, tile, 3), 32, np.uint8)
    item = mapper(entry)
    label = {None: "unlabelled", 0: "authentic", 1: "forged"}[entry["label"]]
    caption = entry["technique"] or label
    if "error" in item:
        caption = "cannot be read"
    else:
        height, width = item["valid_size"]
        canvas[:tile] = item["image"].permute(1, 2, 0).numpy()
        truth = item.get("ground_truth")
        if truth is not None and truth.mask is not None:
            mask = cv2.resize(truth.mask.astype(np.uint8), (width, height), interpolation=0)
            contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            view = np.ascontiguousarray(canvas[:height, :width])
            cv2.drawContours(view, contours, -1, _OUTLINE, 1)
            canvas[:height, :width] = view
    position = (3, tile + _CAPTION_HEIGHT - 5)
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(canvas, caption[:32], position, font, 0.4, (230, 230, 230), 1, cv2.LINE_AA)
    return canvas
