"""Prediction on images outside any data set."""

from loupe.inference.predictor import (
    THRESHOLD,
    LoupePredictor,
    find_images,
    named_predictions,
    write_predictions,
)

__all__ = [
    "THRESHOLD",
    "LoupePredictor",
    "find_images",
    "named_predictions",
    "write_predictions",
]
