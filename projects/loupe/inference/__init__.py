"""Prediction on images outside any data set."""

from loupe.inference.default import predict
from loupe.inference.folders import OutputError, find_images, output_folder
from loupe.inference.predictor import FilePrediction, LoupePredictor, named_predictions
from loupe.inference.results import write_predictions

__all__ = [
    "FilePrediction",
    "LoupePredictor",
    "OutputError",
    "find_images",
    "named_predictions",
    "output_folder",
    "predict",
    "write_predictions",
]
