#!/usr/bin/env python3
"""Four classical detectors as predictions that `tools/score.py` reads: what learning must beat.

    python -m research.benchmarks.classical_detectors ela   DATASET --output FOLDER
    python -m research.benchmarks.classical_detectors noise DATASET --output FOLDER
    python -m research.benchmarks.classical_detectors steps DATASET --output FOLDER
    python -m research.benchmarks.classical_detectors copies DATASET --output FOLDER

ela (error level analysis, Krawetz 2007): |image - the image as JPEG of quality 90|, mean over the
channels, blurred by a 9 x 9 box, divided by its highest value.

noise (noise inconsistency, after Mahdian and Saic 2009): the standard deviation of the diagonal
high-pass residual of luma in blocks of 8 x 8, estimated from the median of its absolute values; its
logarithm's distance from the image's median block, blurred over 3 x 3 blocks.

steps (quantisation): how little a place has the periods of the image's own JPEGs, in deviations
over 7 x 7 blocks; the raw statistic that `STEM: forensic-jpeg` learns from, so that it says what
learning adds.

copies (self-matching): how surely a place is found again elsewhere in the image, shifted; both ends
are marked. The raw statistic of `STEM: forensic-copies`.

An image's score is its map's 99th percentile less its median; of steps its highest value; of copies
how much is found again, the mean square of similarity above chance. They train on nothing, so that
anybody gets the same maps.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from loupe.data.images.decoding import read_image
from loupe.data.sources.catalog import load_dataset
from loupe.modeling.canvas import stack_padded
from loupe.modeling.forensic.copies import CELL, CHANCE, self_similarity
from loupe.modeling.forensic.quantisation import QuantisationBranch
from research.measuring import parser_of

QUALITY = 90
BOX = 9
BLOCK = 8
# One grey level's share, so that flat blocks have a logarithm.
NOISE_FLOOR = 0.25
# A factor of about 20 between noise levels is certain.
LARGEST_DISTANCE = 3.0
# Deviations that make a map white. Forged images of MISD and CASIA go beyond, authentic ones reach
# some 3 to 6.
FOREIGN_DEVIATIONS = 20.0


def error_levels(image: np.ndarray) -> np.ndarray:
    """Map (H, W) float32 in [0, 1] of an image (H, W, 3) uint8 RGB."""
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    _, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    again = cv2.imdecode(content, cv2.IMREAD_COLOR)
    levels = cv2.blur(cv2.absdiff(bgr, again).astype(np.float32).mean(axis=2), (BOX, BOX))
    return levels / max(float(levels.max()), 1e-6)


def noise_levels(image: np.ndarray) -> np.ndarray:
    """Map (H, W) float32 in [0, 1] of an image (H, W, 3) uint8 RGB."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    diagonal = np.array([[1, -1], [-1, 1]], np.float32) / 2
    residual = np.abs(cv2.filter2D(luma, -1, diagonal))
    height, width = (max(1, side // BLOCK) * BLOCK for side in residual.shape)
    residual = cv2.copyMakeBorder(
        residual,
        *(0, max(0, height - residual.shape[0]), 0, max(0, width - residual.shape[1])),
        cv2.BORDER_REFLECT,
    )[:height, :width]
    blocks = residual.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    deviation = np.median(blocks, axis=(1, 3)) / 0.6745
    level = np.log(deviation + NOISE_FLOOR)
    distance = cv2.blur(np.abs(level - np.median(level)).astype(np.float32), (3, 3))
    scaled = np.clip(distance / LARGEST_DISTANCE, 0, 1)
    return cv2.resize(scaled, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def missing_steps(image: np.ndarray) -> np.ndarray:
    """Map (H, W) float32 in [0, 1] of an image (H, W, 3) uint8 RGB."""
    pixels = torch.tensor(image).permute(2, 0, 1).float() / 127.5 - 1
    blocks, _ = _quantisation().excess(*_on_canvas(pixels, BLOCK))
    near, spread = (49 * F.avg_pool2d(value[:, 1:], 7, 1, 3) for value in blocks)
    foreign = (-near / (spread + 1).sqrt() / FOREIGN_DEVIATIONS).clamp(0, 1)
    return _at_pixels(foreign, BLOCK, image)


def copies(image: np.ndarray) -> np.ndarray:
    """Map (H, W) float32 in [0, 1) of an image (H, W, 3) uint8 RGB."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    luma = torch.from_numpy(luma)[None].float()
    similarity, _, _ = self_similarity(*_on_canvas(luma, CELL))
    return _at_pixels(similarity.amax(dim=1, keepdim=True), CELL, image)


def _on_canvas(pixels: torch.Tensor, multiple: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(C, H, W) -> (1, C, H', W') with sides of such multiples; and (1, H', W') bool, image."""
    valid = torch.ones(pixels.shape[1:], dtype=torch.bool)
    return stack_padded([pixels], multiple), stack_padded([valid], multiple)


def _at_pixels(cells: torch.Tensor, side: int, image: np.ndarray) -> np.ndarray:
    """(1, 1, h, w) of squares of `side` pixels -> (H, W) of the image, without its padding."""
    levels = F.interpolate(cells, scale_factor=side, mode="bilinear")[0, 0].numpy()
    return levels[: image.shape[0], : image.shape[1]]


def area_found(levels: np.ndarray) -> float:
    """Mean square of similarity above chance: how much is found again, and how surely."""
    return float(np.square(np.clip(levels - CHANCE, 0, None)).mean())


@lru_cache(maxsize=1)
def _quantisation() -> QuantisationBranch:
    """For its statistics alone; nothing of it is trained."""
    return QuantisationBranch(1, BLOCK)


def contrast(levels: np.ndarray) -> float:
    """99th percentile less median."""
    high, middle = np.percentile(levels, [99, 50])
    return float(high - middle)


DETECTORS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], float]]] = {
    "ela": (error_levels, contrast),
    "noise": (noise_levels, contrast),
    "steps": (missing_steps, lambda levels: float(levels.max())),
    "copies": (copies, area_found),
}


def main() -> int:
    """Writes maps/ and predictions.csv."""
    parser = parser_of(__doc__, output=False)
    parser.add_argument("detector", choices=sorted(DETECTORS))
    parser.add_argument("dataset", help="manifest, folder in a known format, or catalogue name")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    draw, judge = DETECTORS[arguments.detector]
    (arguments.output / "maps").mkdir(parents=True)
    with open(arguments.output / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "probability", "error"))
        for entry in load_dataset(arguments.dataset):
            levels = draw(read_image(entry["file_name"]))
            name = Path(entry["file_name"]).name
            pixels = (255 * levels).round().astype(np.uint8)
            cv2.imwrite(str(arguments.output / "maps" / f"{Path(name).stem}.png"), pixels)
            writer.writerow((name, f"{judge(levels):.6f}", ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
