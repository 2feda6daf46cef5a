"""Draws a contact sheet of a data set, the forged regions outlined.

    loupe visualize "synthetic://train?size=128" --output sheet.png

It shows the first images of the set, or some at random.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from loupe.commands.command_line import positive, run_command
from loupe.writing import OutputError, unwritable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("dataset", help="a data set's name, a folder in a known format or a list")
    parser.add_argument("--output", type=Path, required=True, help="the sheet, .png or .jpg")
    parser.add_argument("--images", type=positive, default=32, help="number of images")
    parser.add_argument("--columns", type=positive, default=8, help="images per row")
    parser.add_argument("--tile", type=positive, default=160, help="side of a tile in pixels")
    parser.add_argument("--forged-only", action="store_true", help="leave authentic images out")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="draw the images at random")


def run(arguments: argparse.Namespace) -> int:
    """Loads, chooses, draws, saves.

    Raises:
        OutputError: The sheet cannot be written under that name.
    """
    import numpy as np
    from PIL import Image

    from loupe.data.sources.catalog import load_dataset
    from loupe.data.training.sheet import draw_sheet

    check_output(arguments.output)
    entries = load_dataset(arguments.dataset)
    if arguments.forged_only:
        entries = [entry for entry in entries if entry["label"] == 1]
    if arguments.shuffle is not None:
        order = np.random.default_rng(arguments.shuffle).permutation(len(entries))
        entries = [entries[index] for index in order]
    if not entries:
        raise ValueError(f"{arguments.dataset}: there is no image to show; choose another set")
    sheet = draw_sheet(entries[: arguments.images], arguments.tile, arguments.columns)
    Image.fromarray(sheet).save(arguments.output)
    print(f"{arguments.output}: {min(arguments.images, len(entries))} of {len(entries)} images")
    return 0


def check_output(file: Path) -> None:
    """Checks before anything is drawn that a picture can be written to a file.

    Raises:
        OutputError: Its ending is no picture's, or its folder cannot be made.
    """
    from PIL import Image

    Image.init()
    if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
        raise OutputError(f"{file}: this ending is no picture's; give --output as {file.stem}.png")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(file.parent, "--output", error) from error


main = partial(run_command, "visualize", __doc__, add_arguments, run)
