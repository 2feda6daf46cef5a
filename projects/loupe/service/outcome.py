"""What a worker writes of one image, and what it tells of it.

map.png             probability of each pixel, 8 bit, at the image's own size
mask.png            0 or 255 = forged
preview.jpg         the image, upright, for the page: browsers read no TIFF or HEIC
preview_map.png     the map at the preview's size
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from loupe.data.images.decoding import read_image
from loupe.report import facts_of_file
from loupe.service.store import UPLOAD
from loupe.structures import THRESHOLD, Prediction
from loupe.writing import plain, write_bytes

# From image, prediction and file.
Describe = Callable[[np.ndarray, Prediction, bytes], dict[str, Any]]
# Longest side in pixels of what the page shows.
PREVIEW = 1280


def write_outcome(
    folder: Path, prediction: Prediction, warnings: tuple[str, ...], describe: Describe
) -> dict[str, Any]:
    """Writes the pictures of a prediction.

    Args:
        folder: Of the prediction; holds UPLOAD.
        prediction: Of that image.
        warnings: Of the reader.
        describe: Gives `regions` and `facts`.

    Returns:
        What the API tells, as JSON; and what the file says of itself, for the report.
    """
    upload = folder / UPLOAD
    image = read_image(upload)
    height, width = image.shape[:2]
    scale = min(1.0, PREVIEW / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = np.rint(prediction.forgery_map * 255).astype(np.uint8)
    pictures = {
        "map.png": grey,
        "mask.png": (prediction.forgery_map > THRESHOLD).astype(np.uint8) * 255,
        "preview.jpg": cv2.cvtColor(_shrunk(image, size), cv2.COLOR_RGB2BGR),
        "preview_map.png": _shrunk(grey, size),
    }
    for name, picture in pictures.items():
        encoded, data = cv2.imencode(Path(name).suffix, picture)
        assert encoded, name
        write_bytes(folder / name, data.tobytes())
    told = {
        "probability": prediction.score,
        "verdict": prediction.verdict,
        "class": prediction.class_name,
        "class_probabilities": prediction.class_probabilities,
        "reasons": prediction.reasons,
        "warnings": warnings,
        "width": width,
        "height": height,
    }
    content = upload.read_bytes()
    return plain(
        told | {"file_facts": facts_of_file(content)} | describe(image, prediction, content)
    )


def _shrunk(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if (picture.shape[1], picture.shape[0]) == size:
        return picture
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
