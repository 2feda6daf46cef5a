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

from loupe.commands.command_line import run_command


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
    """Converts one file."""
    from loupe.checkpoint import (
        from_original_encoder,
        from_released,
        from_released_expert,
        is_expert,
        is_original_encoder,
        is_released_expert,
        load_weights,
        merge_adapters,
        save_weights,
        to_released,
        to_released_expert,
    )

    weights = load_weights(arguments.source)
    if arguments.merge_adapters:
        converted = merge_adapters(weights)
    elif arguments.to_released:
        converted = to_released_expert(weights) if is_expert(weights) else to_released(weights)
    elif is_released_expert(weights):
        converted = from_released_expert(weights)
    elif is_original_encoder(weights):
        converted = from_original_encoder(weights)
    else:
        converted = from_released(weights)
    if arguments.encoder:
        encoder = from_original_encoder(load_weights(arguments.encoder))
        converted |= {f"backbone.vit.{name}": value for name, value in encoder.items()}
    save_weights(converted, arguments.target)
    print(f"{arguments.target}: {len(converted)} tensors from {len(weights)}")
    return 0


main = partial(run_command, "convert", __doc__, add_arguments, run)
