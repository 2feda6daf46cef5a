"""Writes the model as a graph that runs without Loupe, and checks it.

    loupe export --output exported
    loupe export --output exported --size 512 --quantise dynamic
    loupe export --output exported --config-file FILE --weights FILE --format onnx,torch-export

Writes model.onnx, model.pt2 or both (any number of images of SIZE x SIZE pixels, float32 RGB from 0
to 255) and export.json: each file's largest differences from PyTorch. A difference of a probability
or a pixel above 1e-4 is an error. int8 files are made of model.onnx and are not held to that;
export.json says what they lose.

    loupe predict IMAGES... --output DIR --engine onnxruntime --graph exported/model.onnx

uses it. docs/export.md has speeds, and what a graph of one size is good for.

Exit status: 0 = written and checked, 2 = nothing was done, or the check failed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loupe.commands.command_line import (
    DEFAULT_CONFIG,
    UsageError,
    add_config_options,
    positive,
    read_config,
    run_command,
    some_of,
)
from loupe.writing import locked_folder

if TYPE_CHECKING:
    from torch import Tensor

_TOLERANCE = 1e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--format",
        type=some_of("loupe.export.graph", "FORMATS"),
        default=["onnx"],
        help="onnx (default), torch-export, or both with a comma between",
    )
    parser.add_argument("--size", type=positive, default=512, help="side of the images (512)")
    parser.add_argument("--quantise", choices=("dynamic", "static"), help="also write int8")
    parser.add_argument("--images", nargs="*", default=[], help="to check with, and to calibrate")
    add_config_options(parser, DEFAULT_CONFIG)


def run(arguments: argparse.Namespace) -> int:
    """Exports, checks and writes what was found.

    Raises:
        UsageError: The options do not go together.
    """
    from loupe.export.graph import ONNX

    if arguments.quantise and ONNX not in arguments.format:
        raise UsageError("--quantise rounds the weights of model.onnx; add onnx to --format")
    with locked_folder(arguments.output, "--output"):
        return export(arguments)


def export(arguments: argparse.Namespace) -> int:
    """Exports into a folder that is this run's own; returns the exit status.

    Raises:
        ValueError: A graph differs from PyTorch.
    """
    cfg = read_config(arguments)
    from loupe.export.graph import FORMATS, ONNX, difference, example_images, quantise, write_graph
    from loupe.export.network import ExportedLoupe
    from loupe.inference import LoupePredictor
    from loupe.model_zoo import digest_of
    from loupe.writing import write_json

    predictor = LoupePredictor(cfg, arguments.weights)
    size = (arguments.size, arguments.size)
    network = ExportedLoupe(predictor.model, size)
    told = {"size": str(arguments.size), "weights": digest_of(predictor.cfg.MODEL.WEIGHTS)}
    files = write_graph(network, arguments.output, arguments.format, told)
    print(*files, sep="\n")
    images = windows_of(arguments.images, arguments.size) if arguments.images else None
    checked = example_images(size) if images is None else images
    found = {file.name: difference(network, file, checked)._asdict() for file in files}
    if arguments.quantise:
        graph = arguments.output / FORMATS[ONNX]
        smaller = arguments.output / f"model_int8_{arguments.quantise}.onnx"
        quantise(graph, smaller, checked if arguments.quantise == "static" else None)
        found[smaller.name] = difference(network, smaller, checked)._asdict()
    write_json(arguments.output / "export.json", told | {"differences": found})
    for name, values in found.items():
        print(name, *(f"{key} {value:.2g}" for key, value in values.items()))
    for file in files:
        own = found[file.name]
        # Not "above": NaN is no agreement either.
        if not all(own[name] <= _TOLERANCE for name in ("probability", "forgery_map")):
            raise ValueError(
                f"{file}: differs from PyTorch by {own}, more than {_TOLERANCE}; do not use it, "
                "and report the versions of torch, onnx and onnxruntime"
            )
    return 0


def windows_of(files: Sequence[str], side: int) -> Tensor:
    """(B, 3, side, side): the middle of each image; smaller images are left out.

    Raises:
        ValueError: None is large enough.
    """
    import torch

    from loupe.data.images.decoding import read_image
    from loupe.inference import find_images

    windows = []
    for file in find_images(list(files)):
        image = read_image(file)
        top, left = ((length - side) // 2 // 8 * 8 for length in image.shape[:2])
        if min(top, left) >= 0:
            window = image[top : top + side, left : left + side]
            windows.append(torch.from_numpy(window.copy()).permute(2, 0, 1))
    if not windows:
        raise ValueError(f"--images: none has {side} x {side} pixels; give larger ones, or --size")
    return torch.stack(windows).float()


main = partial(run_command, "export", __doc__, add_arguments, run)
