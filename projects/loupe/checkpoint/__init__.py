"""Weights: reading and writing them strictly, and the names that released models give them."""

from loupe.checkpoint.adapters import has_adapters, merge_adapters
from loupe.checkpoint.detectron2_paths import register_shipped_weights
from loupe.checkpoint.files import (
    encoder_weights,
    load_into,
    load_metadata,
    load_weights,
    save_weights,
)
from loupe.checkpoint.formats import read_torch, write_torch
from loupe.checkpoint.released import (
    EMPTY_WEIGHT,
    ENCODER_NAMES,
    NAMES,
    from_original_encoder,
    from_released,
    is_original_encoder,
    to_released,
)
from loupe.checkpoint.released_expert import (
    clip_weights,
    from_released_expert,
    is_expert,
    is_released_expert,
    sam_weights,
    to_released_expert,
)
from loupe.checkpoint.weights import CheckpointError, Weights

__all__ = [
    "EMPTY_WEIGHT",
    "ENCODER_NAMES",
    "NAMES",
    "CheckpointError",
    "Weights",
    "clip_weights",
    "encoder_weights",
    "from_original_encoder",
    "from_released",
    "from_released_expert",
    "has_adapters",
    "is_expert",
    "is_original_encoder",
    "is_released_expert",
    "load_into",
    "load_metadata",
    "load_weights",
    "merge_adapters",
    "read_torch",
    "register_shipped_weights",
    "sam_weights",
    "save_weights",
    "to_released",
    "to_released_expert",
    "write_torch",
]
