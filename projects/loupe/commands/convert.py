"""Turns checkpoints of released Loupe, IFDL-VLM and the original Perception Encoder into ours.

    loupe convert released.pt loupe.safetensors
    loupe convert --encoder PE-Core-L14-336.pt released.pt loupe.safetensors
    loupe convert PE-Core-L14-336.pt encoder.safetensors
    loupe convert --to-released loupe.safetensors released.pt
    loupe convert ifdl_stage1.pth expert.safetensors                # and back, as above
    loupe convert --merge-adapters model_best.pth merged.safetensors

Released checkpoints of a frozen encoder hold no encoder; `--encoder` adds the original one. A file
of the encoder alone is renamed to timm's names, for MODEL.PERCEPTION_ENCODER.WEIGHTS (which takes
the original names, too). Every key is used, or the command says which is not.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from loupe.commands.command_line import run_command

if TYPE_CHECKING:
    from loupe.checkpoint import Weights

_READABLE = (
    "give released Loupe, stage 1 of IFDL-VLM or the original Perception Encoder; weights in our "
    "names need no conversion (--to-released goes the other way)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("source", help="file to read: .pt, .pth, .bin or .safetensors")
    parser.add_argument("target", help="file to write: .safetensors, .pt or .pth")
    parser.add_argument("--encoder", help="original Perception Encoder to add")
    parser.add_argument("--to-released", action="store_true", help="from our names to theirs")
    parser.add_argument(
        "--merge-adapters",
        action="store_true",
        help="put what MODEL.LORA trained into the weights, which then need MODEL.LORA.RANK 0",
    )


def run(arguments: argparse.Namespace) -> int:
    """Converts one file.

    Raises:
        CheckpointError: A file cannot be converted; names it.
    """
    from loupe.checkpoint import (
        CheckpointError,
        from_original_encoder,
        load_weights,
        save_weights,
    )

    file = arguments.source
    weights = load_weights(file)
    try:
        converted = renamed(weights, arguments)
        if arguments.encoder:
            file = arguments.encoder
            encoder = from_original_encoder(load_weights(file))
            converted |= {f"backbone.vit.{name}": value for name, value in encoder.items()}
    except CheckpointError as error:
        message = str(error) if str(error).startswith(file) else f"{file}: {error}"
        raise CheckpointError(message) from error
    save_weights(converted, arguments.target)
    print(f"{arguments.target}: {len(converted)} tensors from {len(weights)}")
    return 0


def renamed(weights: Weights, arguments: argparse.Namespace) -> Weights:
    """The weights as the command line wants them.

    Raises:
        CheckpointError: They are not what that takes.
    """
    from loupe.checkpoint import (
        CheckpointError,
        from_original_encoder,
        from_released,
        from_released_expert,
        is_expert,
        is_original_encoder,
        is_released_expert,
        merge_adapters,
        to_released,
        to_released_expert,
    )

    if arguments.merge_adapters:
        return merge_adapters(weights)
    if arguments.to_released:
        return to_released_expert(weights) if is_expert(weights) else to_released(weights)
    try:
        if is_released_expert(weights):
            return from_released_expert(weights)
        if is_original_encoder(weights):
            return from_original_encoder(weights)
        return from_released(weights)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_READABLE}") from error


main = partial(run_command, "convert", __doc__, add_arguments, run)
