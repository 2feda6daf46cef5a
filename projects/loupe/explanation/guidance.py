"""Which region guides an explanation: the item's own, or what a detector finds.

The mask of an evaluation never comes from the true label: whether there is a region, and what the
question says of the verdict, follows from the detector alone.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from torch import nn

from loupe.data.images.orientation import UPRIGHT, turn, turn_back
from loupe.explanation.prompts import question_of, verdict_word
from loupe.structures import THRESHOLD
from loupe.vocabulary import Claims, cell_of, side_of, size_of, tone_of

Item = dict[str, Any]


def guided(
    items: list[Item], guide: nn.Module | None, *, tell: bool = False
) -> list[tuple[Item, Item]]:
    """Items with region and question, and what the detector said of each.

    Args:
        items: Readable items, all with `features` or all with `image`.
        guide: A detector in evaluation mode; None = each item keeps its own region.
        tell: Whether questions tell what was measured of the region.
    """
    if guide is None or not items or "features" in items[0]:
        return [(item, item.get("prediction", {})) for item in items]
    outputs = guide(items)
    pairs = []
    for item, output in zip(items, outputs, strict=True):
        region = region_of(item, np.asarray(output["forgery_map"]))
        verdict = verdict_word(output["forgery_score"], item.get("verdict", ""))
        claims = region_claims(item, region)
        question = question_of(verdict, region is not None, claims if tell else None)
        found = {"verdict": verdict, "region_claims": claims}
        pairs.append((item | {"region": region, "question": question}, output | found))
    return pairs


def region_claims(item: Item, region: np.ndarray | None) -> Claims | None:
    """What is true of a region on the network's grid, upright; None = there is no region."""
    if region is None:
        return None
    height, width = item["valid_size"]
    orientation = item.get("orientation", UPRIGHT)
    image = turn(item["image"][:, :height, :width].permute(1, 2, 0).cpu().numpy(), orientation)
    mask = turn(region, orientation)
    return Claims(
        "", cell=cell_of(mask), size=size_of(mask), tone=tone_of(image, mask), side=side_of(mask)
    )


def region_of(item: Item, forgery_map: np.ndarray) -> np.ndarray | None:
    """A forgery map of the upright image as a region on the network's grid; None = it is empty.

    Image and map pass through the same window and size, so that an object under the one is under
    the other.

    Args:
        item: Of the mapper: `valid_size`, `height`, `width`, `window`, `orientation`.
        forgery_map: (H, W) in [0, 1], of the image's own size.

    Returns:
        (h, w) bool of the item's valid size.
    """
    stored = turn_back(forgery_map, item.get("orientation", 1)).astype(np.float32)
    height, width = item["valid_size"]
    left, top, right, bottom = (
        round(edge) for edge in item.get("window", (0, 0, stored.shape[1], stored.shape[0]))
    )
    shown: np.ndarray = stored[top:bottom, left:right]
    if shown.shape != (height, width):
        shown = cv2.resize(shown, (width, height), interpolation=cv2.INTER_AREA)
    region = shown > THRESHOLD
    return region if region.any() else None
