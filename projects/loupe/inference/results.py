"""Writing predictions: a table, maps, masks and overlays."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from loupe.data.images.decoding import read_image
from loupe.inference.folders import TABLE, UNFINISHED_TABLE
from loupe.inference.predictor import FilePrediction
from loupe.structures import THRESHOLD, Prediction
from loupe.visualization import overlay
from loupe.writing import guard_cell, write_bytes

COLUMNS = ("file", "probability", "error", "warning", "verdict", "reasons")


def write_predictions(
    predictions: Iterable[FilePrediction],
    names: dict[str, str],
    output: str | Path,
    *,
    overlays: bool = True,
) -> tuple[int, int]:
    """Writes `predictions.csv`, `maps/`, `masks/` and `overlays/`, image by image.

    Each row is on the disk as soon as its image is done, in a table whose name says that it is not
    finished; in the end it gets its own. An interrupted run loses nothing of what it has.

    Args:
        predictions: What came of each file.
        names: Name of each file's results.
        output: Folder to write to.
        overlays: Whether to draw overlays, which reads every image once more.

    Returns:
        Number of images predicted, number of images that could not be.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    done = failed = 0
    unfinished = output / UNFINISHED_TABLE
    # File names may hold bytes that are no text; they are written as they are.
    with unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for one in predictions:
            row = _write_one(output, names[one.file], one, overlays)
            failed += bool(row[2])
            done += not row[2]
            table.writerow([guard_cell(cell) for cell in row])
            file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, output / TABLE)
    return done, failed


def _write_one(output: Path, name: str, one: FilePrediction, overlays: bool) -> tuple[str, ...]:
    """Writes the pictures of one image; returns its row."""
    image, prediction, error, warnings = one
    warning = "; ".join(warnings)
    if prediction is None:
        return image, "", error, warning, "", ""
    try:
        pictures = _pictures(image, prediction, overlays)
    except Exception as fault:  # The image was replaced meanwhile, or the memory is full.
        error = f"{image}: cannot be drawn ({type(fault).__name__}: {fault})"
        return image, "", error, warning, "", ""
    for folder, picture in pictures.items():
        encoded, data = cv2.imencode(".png", picture)
        assert encoded, image
        write_bytes(output / folder / f"{name}.png", data.tobytes())
    reasons = "; ".join(prediction.reasons)
    return image, f"{prediction.score:.6f}", "", warning, prediction.verdict, reasons


def _pictures(image: str, prediction: Prediction, overlays: bool) -> dict[str, np.ndarray]:
    """Pictures by the folder that they go to, 8 bit, grey or BGR."""
    forgery_map = prediction.forgery_map
    pictures = {
        "maps": np.rint(forgery_map * 255).astype(np.uint8),
        "masks": (forgery_map > THRESHOLD).astype(np.uint8) * 255,
    }
    if overlays:
        drawn = overlay(read_image(image), forgery_map, THRESHOLD)
        pictures["overlays"] = cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)
    return pictures
