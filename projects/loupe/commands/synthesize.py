"""Writes a data set of synthetic forgeries: OUTPUT/{train,valid,test} with a manifest.csv each.

The three splits share no photograph. Half of the images are authentic.

Example:
    python tools/make_synthetic_dataset.py --output datasets/synthetic --train 2000 --valid 200 \
        --test 400 --size 256 --seed 0
"""

from __future__ import annotations

import argparse
from pathlib import Path

from loupe.data.sources.export import write_synthetic
from loupe.data.sources.photographs import SPLITS


def parse_arguments() -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the data set")
    for split, count in zip(SPLITS, (2000, 200, 400), strict=True):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"images for {split}")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument(
        "--difficulty", type=int, default=100, help="0 (strong traces only) to 100 (any)"
    )
    return parser.parse_args()


def main() -> None:
    """Writes the splits that have images."""
    arguments = parse_arguments()
    for split in SPLITS:
        count = getattr(arguments, split)
        if count <= 0:
            continue
        folder = arguments.output / split
        try:
            manifest = write_synthetic(
                folder, split, count, arguments.size, arguments.seed, arguments.difficulty
            )
        except (FileExistsError, RuntimeError, ValueError) as error:
            raise SystemExit(f"error: {error}") from None
        print(f"{manifest}: {count} images, {count // 2} of them forged")
