#!/usr/bin/env python3
"""Error level analysis, a classical detector, as predictions that `tools/score.py` reads.

    benchmarks/error_levels.py DATASET --output FOLDER

A map is the mean over the channels of |image - the image as JPEG of quality 90|, blurred by a 9 x 9
box, divided by its highest value; an image's score is the map's 99th percentile less its median.
It trains on nothing, so that anybody gets the same maps; it is no good detector.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import cv2
import numpy as np

from loupe.data.catalog import load_dataset
from loupe.data.decoding import read_image

QUALITY = 90
BOX = 9


def error_levels(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Map (H, W) uint8 and score in [0, 1] of an image (H, W, 3) uint8 RGB."""
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    _, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    again = cv2.imdecode(content, cv2.IMREAD_COLOR)
    levels = cv2.blur(cv2.absdiff(bgr, again).astype(np.float32).mean(axis=2), (BOX, BOX))
    levels /= max(float(levels.max()), 1e-6)
    high, middle = np.percentile(levels, [99, 50])
    return (255 * levels).round().astype(np.uint8), float(high - middle)


def main() -> int:
    """Writes maps/ and predictions.csv."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="manifest, folder in a known format, or catalogue name")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    (arguments.output / "maps").mkdir(parents=True)
    with open(arguments.output / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "probability", "error"))
        for entry in load_dataset(arguments.dataset):
            levels, score = error_levels(read_image(entry["file_name"]))
            name = Path(entry["file_name"]).name
            cv2.imwrite(str(arguments.output / "maps" / f"{Path(name).stem}.png"), levels)
            writer.writerow((name, f"{score:.6f}", ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
