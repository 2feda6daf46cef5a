"""Turns checkpoints of released Loupe and of the original Perception Encoder into ours, and back.

    tools/convert_checkpoint.py released.pt loupe.safetensors
    tools/convert_checkpoint.py released.pt loupe.safetensors --encoder PE-Core-L14-336.pt
    tools/convert_checkpoint.py PE-Core-L14-336.pt encoder.safetensors
    tools/convert_checkpoint.py loupe.safetensors released.pt --to-released

Released checkpoints of a frozen encoder hold no encoder; `--encoder` adds the original one. A file
of the encoder alone is renamed to timm's names, for MODEL.PERCEPTION_ENCODER.WEIGHTS (which takes
the original names, too). Every key is used, or the tool says which is not.
"""

from __future__ import annotations

import argparse

from loupe.checkpoint import (
    from_original_encoder,
    from_released,
    is_original_encoder,
    load_weights,
    save_weights,
    to_released,
)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="file to read: .pt, .pth, .bin or .safetensors")
    parser.add_argument("target", help="file to write: .safetensors, .pt or .pth")
    parser.add_argument("--encoder", help="original Perception Encoder to add")
    parser.add_argument("--to-released", action="store_true", help="from our names to theirs")
    return parser.parse_args(words)


def main(arguments: argparse.Namespace) -> None:
    """Converts one file."""
    weights = load_weights(arguments.source)
    if arguments.to_released:
        converted = to_released(weights)
    elif is_original_encoder(weights):
        converted = from_original_encoder(weights)
    else:
        converted = from_released(weights)
    if arguments.encoder:
        encoder = from_original_encoder(load_weights(arguments.encoder))
        converted |= {f"backbone.vit.{name}": value for name, value in encoder.items()}
    save_weights(converted, arguments.target)
    print(f"{arguments.target}: {len(converted)} tensors from {len(weights)}")
