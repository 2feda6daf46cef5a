"""Weights: reading and writing them strictly, and the names that released models give them."""

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
from loupe.checkpoint.weights import CheckpointError, Weights

__all__ = [
    "EMPTY_WEIGHT",
    "ENCODER_NAMES",
    "NAMES",
    "CheckpointError",
    "Weights",
    "encoder_weights",
    "from_original_encoder",
    "from_released",
    "is_original_encoder",
    "load_into",
    "load_metadata",
    "load_weights",
    "read_torch",
    "register_shipped_weights",
    "save_weights",
    "to_released",
    "write_torch",
]
