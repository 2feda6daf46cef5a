"""Says what can be measured of an image and of what the detector marks in it.

    loupe explain photograph.jpg
    loupe explain folder *.jpg --output explanations
    loupe explain photograph.jpg --mask mask.png             # any map: 255 = forged
    loupe explain photograph.jpg --write                     # and a text by a language model

INPUT: images, folders and patterns. Prints plain sentences, each with its number and how unusual it
is among authentic photographs. With --output also writes explanations.json: every fact with value,
unit and percentile; an earlier one is replaced. The map is that of the detector, or of any tool by
--mask.

--write needs pip install 'loupe[explain]'. Its text stands apart from the measured facts; where it
contradicts them, or was cut, a line says so. No network is used.

Exit status: 0 = all images explained, 1 = some could not be, 2 = nothing was done.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loupe.commands.command_line import (
    DEFAULT_CONFIG,
    UsageError,
    add_config_options,
    add_image_options,
    read_config,
    run_command,
)

if TYPE_CHECKING:
    import numpy as np

    from loupe.explanation.writer import Writer
    from loupe.structures import Prediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_image_options(parser, workers=False)
    parser.add_argument("--output", type=Path, help="folder for explanations.json")
    parser.add_argument("--mask", type=Path, help="a map of one image, in place of the detector's")
    parser.add_argument("--write", action="store_true", help="also a text by a language model")
    parser.add_argument(
        "--explainer",
        type=Path,
        metavar="FILE",
        help="configuration of the language model; default: the small explainer",
    )
    add_config_options(parser, DEFAULT_CONFIG)


def run(arguments: argparse.Namespace) -> int:
    """Explains every image."""
    cfg = read_config(arguments)
    from loupe.data.images.errors import UnreadableImageError
    from loupe.inference import LoupePredictor, find_images
    from loupe.writing import locked_folder, write_json

    if arguments.quiet and arguments.output is None:
        raise UsageError("--quiet without --output says nothing; give --output DIR")
    names = find_images(arguments.inputs)
    if arguments.mask is not None and len(names) != 1:
        raise UsageError(f"--mask belongs to one image, and there are {len(names)}")
    out = arguments.output
    with nullcontext() if out is None else locked_folder(out, "--output"):
        writer = load_writer(arguments.explainer) if arguments.write else None
        predictor = LoupePredictor(cfg, arguments.weights)
        explained: dict[str, Any] = {}
        failed = 0
        for file in names:
            try:
                explained[file] = content = explain_file(predictor, file, arguments.mask, writer)
            except UnreadableImageError as error:
                failed += 1
                print(f"error: {error}", file=sys.stderr)
                continue
            if not arguments.quiet:
                print(as_text(file, content))
        if out is not None and explained:
            write_json(out / "explanations.json", explained)
    return 2 if failed == len(names) else 1 if failed else 0


def load_writer(config_file: Path | None) -> Writer:
    """The language model of a configuration; by default the small one."""
    from loupe.config import load_config
    from loupe.explanation.writer import Writer
    from loupe.model_zoo import CONFIGS

    return Writer.from_config(load_config(config_file or CONFIGS / "explain_tiny.yaml"))


def explain_file(
    predictor: Any, file: str, mask: Path | None, writer: Writer | None
) -> dict[str, Any]:
    """What is measured of one image, and what is written of it."""
    from loupe.data.images.decoding import read_image
    from loupe.explanation.facts import measure

    image = read_image(file)
    prediction = predictor(file)
    if mask is not None:
        prediction = with_map(prediction, mask, image)
    facts = measure(image, prediction, file=Path(file).read_bytes())
    content: dict[str, Any] = {"facts": [fact._asdict() for fact in facts]}
    if writer is not None:
        content["text"] = writer.write(image, prediction)._asdict()
    return content


def as_text(file: str, content: dict[str, Any]) -> str:
    """The sentences on one image."""
    lines = [file, *(f"  {fact['sentence']}" for fact in content["facts"])]
    if "text" in content:
        lines.append("  Written by a language model, not measured:")
        lines += [f"    {line}" for line in (content["text"]["text"], *content["text"]["warnings"])]
    return "\n".join(lines)


def with_map(prediction: Prediction, mask: Path, image: np.ndarray) -> Prediction:
    """The prediction with a map of another tool; its patch map no longer applies.

    Raises:
        UsageError: The map has another size.
    """
    from loupe.data.images.masks import read_mask

    other = read_mask(mask)
    if other.shape != image.shape[:2]:
        raise UsageError(
            f"{mask} is {other.shape[1]} x {other.shape[0]}, the image {image.shape[1]} x "
            f"{image.shape[0]}; give a map of the image's size"
        )
    return prediction._replace(forgery_map=other, patch_map=None)


main = partial(run_command, "explain", __doc__, add_arguments, run)
