"""Merging trained adapters (`loupe.modeling.lora`) into the weights that they adapt."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from loupe.checkpoint.weights import CheckpointError, Weights

SCALE = ".adapter_scale"
_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def has_adapters(weights: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint has adapters beside the weights."""
    return any(name.endswith(SCALE) for name in weights)


def merge_adapters(weights: Mapping[str, Tensor]) -> Weights:
    """The same model without adapters: W + scale B A in the place of W.

    Raises:
        CheckpointError: There are no adapters, or one is not whole.
    """
    scales = [name for name in weights if name.endswith(SCALE)]
    if len(scales) != 1:
        raise CheckpointError("there are no adapters to merge: MODEL.LORA.RANK was 0")
    scale = weights[scales[0]].double()
    merged: Weights = {}
    for name, value in weights.items():
        if name.endswith((SCALE, _DOWN, _UP)):
            continue
        stem, found, end = name.partition(_BASE)
        if found and end == "weight":
            lacking = [stem + part for part in (_DOWN, _UP) if stem + part not in weights]
            if lacking:
                raise CheckpointError(f"an adapter is not whole: {', '.join(lacking)} is missing")
            change = scale * (weights[stem + _UP].double() @ weights[stem + _DOWN].double())
            value = (value.double() + change).to(value.dtype)
        merged[f"{stem}.{end}" if found else name] = value
    return merged
