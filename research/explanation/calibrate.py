"""Fits the percentiles of measured facts on authentic photographs.

    python -m research.explanation.calibrate PHOTOGRAPHS.csv --images 400

Takes photographs of a manifest (label 0) evenly, a window of at most 768 px of each, draws regions
in it as the generator of forgeries does, and measures each against its surroundings. Nothing is
forged: what differs there differs in authentic photographs. Writes
projects/loupe/explanation/percentiles.json.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from loupe.data.images.decoding import read_image
from loupe.data.sources.formats.manifest import read_manifest
from loupe.explanation.measurements import MEASUREMENTS
from loupe.explanation.percentiles import FILE
from loupe.explanation.regions import region_of
from loupe.synthesis.regions import draw_region, draw_shape
from loupe.vocabulary import size_of
from loupe.writing import write_json
from research.measuring import parser_of

WINDOW = 768
QUANTILES = 201
# Fewer regions than this give no percentiles.
LEAST_REGIONS = 40


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(__doc__, output=False)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--regions", type=int, default=2, help="of each photograph")
    parser.add_argument("--output", type=Path, default=FILE)
    return parser.parse_args(words)


def draw_mask(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """(H, W) bool: a region inside a square of the image, as large as the shorter side."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (int(rng.integers(length - side + 1)) for length in (height, width))
    square = image[top : top + side, left : left + side]
    # Small regions, of which the generator draws few, as often as the others.
    small = rng.random() < 0.4
    region = draw_shape(rng, side, 0.005, 0.03) if small else draw_region(rng, square)
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = region
    return mask


def window_of(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """At most WINDOW pixels of each side, on the grid of the JPEG's blocks."""
    starts = [int(rng.integers(max(1, side - WINDOW + 1))) // 16 * 16 for side in image.shape[:2]]
    return image[starts[0] :, starts[1] :][:WINDOW, :WINDOW]


def main(words: list[str] | None = None) -> None:
    """Measures and writes."""
    arguments = parse_arguments(words)
    entries = read_manifest(arguments.photographs).strict(arguments.photographs)
    names = [entry["file_name"] for entry in entries if entry["label"] == 0]
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, arguments.images).astype(int)]
    values: dict[str, list[float]] = defaultdict(list)
    for number, name in enumerate(chosen):
        rng = np.random.default_rng((0, number))
        image = window_of(rng, read_image(name))
        for _ in range(arguments.regions):
            mask = draw_mask(rng, image)
            if mask.sum() < 64:
                continue
            region = region_of(image, mask)
            for kind, function in MEASUREMENTS.items():
                found = function(region)
                if found is not None:
                    values[f"{kind}/{size_of(mask)}"].append(found.difference)
    quantiles = {
        key: [round(float(q), 4) for q in np.quantile(found, np.linspace(0, 1, QUANTILES))]
        for key, found in sorted(values.items())
        if len(found) >= LEAST_REGIONS
    }
    about = {
        "photographs": len(chosen),
        "regions": {key: len(found) for key, found in sorted(values.items())},
        "window": WINDOW,
    }
    write_json(arguments.output, {"fitted_on": about, "quantiles": quantiles}, indent=None)


if __name__ == "__main__":
    main()
