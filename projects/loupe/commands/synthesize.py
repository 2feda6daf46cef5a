"""Writes a data set of synthetic forgeries: OUTPUT/{train,valid,test} with a manifest.csv each.

    loupe synthesize --output datasets/synthetic --train 2000 --valid 200 --test 400 --size 256

The three splits share no photograph. Half of the images are authentic.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from loupe.commands.command_line import UsageError, positive, run_command, whole

COUNTS = {"train": 2000, "valid": 200, "test": 400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--output", type=Path, required=True, help="folder of the data set")
    for split, count in COUNTS.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"images for {split}")
    parser.add_argument(
        "--size", type=positive, default=256, help="side of the images in pixels, at least 32 (256)"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument(
        "--difficulty", type=whole(0, 100), default=100, help="0 (strong traces only) to 100 (any)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the splits that have images."""
    from loupe.data.sources.export import write_synthetic
    from loupe.data.sources.synthetic import SMALLEST

    if arguments.size < SMALLEST:
        raise UsageError(f"--size is {arguments.size}; it must be at least {SMALLEST}")
    for split in COUNTS:
        count = getattr(arguments, split)
        if count <= 0:
            continue
        folder = arguments.output / split
        try:
            manifest = write_synthetic(
                folder, split, count, arguments.size, arguments.seed, arguments.difficulty
            )
        except RuntimeError as error:  # There are no photographs; it says how to get them.
            raise ValueError(str(error)) from error
        print(f"{manifest}: {count} images, {count // 2} of them forged")
    return 0


main = partial(run_command, "synthesize", __doc__, add_arguments, run)
