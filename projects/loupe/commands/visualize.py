"""Draws a contact sheet of a data set, the forged regions outlined.

Example:
    python tools/visualize_data.py "synthetic://train?size=128" --output sheet.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from loupe.data.sources.catalog import load_dataset
from loupe.data.sources.pairing import DatasetError
from loupe.data.training.sheet import draw_sheet


def parse_arguments() -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="a data set's name, a folder in a known format or a list")
    parser.add_argument("--output", type=Path, required=True, help="the sheet, .png or .jpg")
    parser.add_argument("--images", type=int, default=32, help="number of images")
    parser.add_argument("--columns", type=int, default=8, help="images per row")
    parser.add_argument("--tile", type=int, default=160, help="side of a tile in pixels")
    parser.add_argument("--forged-only", action="store_true", help="leave authentic images out")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="draw the images at random")
    return parser.parse_args()


def main() -> None:
    """Loads, chooses, draws, saves."""
    arguments = parse_arguments()
    try:
        entries = load_dataset(arguments.dataset)
    except DatasetError as error:
        raise SystemExit(f"error: {error}") from None
    if arguments.forged_only:
        entries = [entry for entry in entries if entry["label"] == 1]
    if arguments.shuffle is not None:
        order = np.random.default_rng(arguments.shuffle).permutation(len(entries))
        entries = [entries[index] for index in order]
    if not entries:
        raise SystemExit(f"error: {arguments.dataset}: there is no image to show")
    sheet = draw_sheet(entries[: arguments.images], arguments.tile, arguments.columns)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(arguments.output)
    print(f"{arguments.output}: {min(arguments.images, len(entries))} of {len(entries)} images")
