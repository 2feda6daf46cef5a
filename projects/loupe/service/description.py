"""Regions and measured facts of a prediction, as the API tells them."""

from __future__ import annotations

from typing import Any

import numpy as np

from loupe.explanation.facts import measure
from loupe.explanation.regions import find_regions
from loupe.structures import Prediction


def describe(image: np.ndarray, prediction: Prediction, file: bytes) -> dict[str, Any]:
    """What can be said of a prediction.

    Args:
        image: (H, W, 3) uint8 RGB, upright, as the forgery map lies.
        prediction: Of it.
        file: The image's file.

    Returns:
        `regions` and `facts`: see schemas.py.
    """
    regions = [
        {
            "number": region.number,
            "left": region.bounds[0],
            "top": region.bounds[1],
            "right": region.bounds[2],
            "bottom": region.bounds[3],
            "pixels": int(region.mask.sum()),
            "mean": float(prediction.forgery_map[region.mask].mean()),
        }
        for region in find_regions(image, prediction.forgery_map)
    ]
    facts = [fact._asdict() for fact in measure(image, prediction, file=file)]
    return {"regions": regions, "facts": facts}
