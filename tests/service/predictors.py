"""A predictor without a network, whose behaviour the top left pixel of an image decides."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loupe.data.images.decoding import read_image
from loupe.data.images.errors import UnreadableImageError
from loupe.service.worker import Made
from loupe.structures import Prediction

CRASHES, HANGS, SLOW, FAILS, HELD = ((1, 2, last) for last in (3, 4, 5, 6, 7))
SLOW_SECONDS = 1.0
# A held image waits for this file in the folder of the store.
RELEASED = "released"


class Found(NamedTuple):
    prediction: Any
    error: str = ""
    warnings: tuple[str, ...] = ()


def map_of(image: np.ndarray) -> np.ndarray:
    """The red channel as a forgery map."""
    return image[..., 0].astype(np.float32) / 255


class RedPredictor:
    def predict_many(self, files: Sequence[str | Path]) -> Iterator[Found]:
        for file in files:
            try:
                image = read_image(file)
            except UnreadableImageError as error:
                yield Found(None, str(error))
                continue
            kind = tuple(image[0, 0])
            if kind == CRASHES:
                os._exit(11)
            time.sleep({HANGS: 3600, SLOW: SLOW_SECONDS}.get(kind, 0))
            while kind == HELD and not (Path(file).parents[2] / RELEASED).exists():
                time.sleep(0.02)
            if kind == FAILS:
                yield Found(None, f"{file}: the model failed on it (too wide)")
                continue
            red = map_of(image)
            score = float(red.max())
            verdict = "forged" if score > 0.5 else "authentic"
            classes = {"authentic": 1 - score, "tampered": score}
            yield Found(Prediction(score, red, None, verdict, class_probabilities=classes))


def describe(image: np.ndarray, prediction: Prediction, file: bytes) -> dict[str, Any]:
    """One region, the box of what is red, one fact with the file's size, and a text."""
    rows, columns = np.nonzero(prediction.forgery_map > 0.5)
    regions = []
    if len(rows):
        sides = {"left": columns.min(), "right": columns.max() + 1}
        sides |= {"top": rows.min(), "bottom": rows.max() + 1}
        mean = prediction.forgery_map[rows, columns].mean()
        regions = [{"number": 1, **sides, "pixels": len(rows), "mean": mean}]
    fact = {"name": "size", "value": len(file), "unit": "bytes", "percentile": None}
    fact |= {"sentence": f"The file has {len(file)} bytes & <b>no</b> more.", "region": None}
    text = {"text": "The <i>sky</i> was changed.", "complete": True, "warnings": ("No sky.",)}
    return {"regions": regions, "facts": [fact], "text": text if len(rows) else None}


def build() -> Made:
    return Made(RedPredictor(), describe, {"weights": "red.safetensors", "sha256": "0" * 64})


def build_that_fails() -> Made:
    raise ValueError("no weights: give a checkpoint, or set MODEL.WEIGHTS")
