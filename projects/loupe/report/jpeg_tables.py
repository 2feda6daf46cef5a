"""The quality of a JPEG, estimated from its quantisation tables.

The library of the Independent JPEG Group scales its standard tables by a quality Q of 1 to 100:
S = 5000 / Q below 50, else 200 - 2 Q; step = floor((standard * S + 50) / 100), within 1 and 255.
Most programs do the same; cameras often have tables of their own, for which the nearest Q is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin

# ITU-T T.81, tables K.1 and K.2, row by row.
LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *([99] * 32),
)
_SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}


def scaled(table: tuple[int, ...], quality: int) -> np.ndarray:
    """(64,) steps of a standard table at a quality."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((np.array(table) * scale + 50) // 100).clip(1, 255)


def estimate_quality(image: Image.Image) -> dict[str, Any]:
    """Quality, kind of tables, subsampling and order of a JPEG, from its header.

    Args:
        image: As Pillow opens it; its pixels are not decoded.
    """
    tables: dict[int, list[int]] = getattr(image, "quantization", {})
    found = [np.array(table) for table in list(tables.values())[:2]]
    if not found:
        return {"quality": None, "tables": "none", "subsampling": None, "progressive": None}
    standards = (LUMINANCE, CHROMINANCE)[: len(found)]
    distances = [
        sum(
            float(np.abs(scaled(standard, quality) - table).mean())
            for standard, table in zip(standards, found, strict=True)
        )
        for quality in range(1, 101)
    ]
    nearest = int(np.argmin(distances))
    return {
        "quality": nearest + 1,
        "tables": "standard" if distances[nearest] == 0 else "own",
        "subsampling": _SUBSAMPLING.get(JpegImagePlugin.get_sampling(image), "other"),
        "progressive": bool(image.info.get("progressive", False)),
    }
