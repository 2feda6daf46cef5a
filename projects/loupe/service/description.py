"""Regions, measured facts and text of a prediction, as the API tells them."""

from __future__ import annotations

from typing import Any

import numpy as np

from loupe.explanation.facts import measure
from loupe.explanation.regions import find_regions
from loupe.explanation.writer import Writer
from loupe.structures import Prediction


def describe(
    image: np.ndarray, prediction: Prediction, file: bytes, writer: Writer | None = None
) -> dict[str, Any]:
    """What can be said of a prediction.

    Args:
        image: (H, W, 3) uint8 RGB, upright, as the forgery map lies.
        prediction: Of it.
        file: The image's file.
        writer: Writes the text; None = there is none.

    Returns:
        `regions`, `facts` and `text`: see schemas.py.
    """
    found = find_regions(image, prediction.forgery_map)
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
        for region in found
    ]
    facts = [fact._asdict() for fact in measure(image, prediction, file=file, regions=found)]
    text = None if writer is None else writer.write(image, prediction)._asdict()
    return {"regions": regions, "facts": facts, "text": text}
