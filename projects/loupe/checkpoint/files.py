"""Reading, checking and writing weights.

No pickled code is ever run; every key of a file must find its place, and every parameter its key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from loupe.checkpoint.formats import (
    read_safetensors,
    read_torch,
    write_safetensors,
    write_torch,
)
from loupe.checkpoint.released import from_original_encoder, is_original_encoder
from loupe.checkpoint.weights import MOST_NAMED, CheckpointError, Weights
from loupe.model_zoo import ShippedWeightsError, is_shipped, shipped_file

if TYPE_CHECKING:
    from timm.models.eva import Eva


def load_weights(path: str | Path) -> Weights:
    """Reads the tensors of a `.safetensors`, `.pt`, `.pth` or `.bin` file onto the CPU.

    Args:
        path: A file, or `loupe://FILE` for weights of the repository.

    Raises:
        CheckpointError: The file is missing, damaged, or holds more than tensors.
    """
    path = _file(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check MODEL.WEIGHTS or the path given")
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    for key in ("model", "state_dict", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise CheckpointError(f"{path}: holds no table of tensors (nor `model` or `state_dict`)")
    return {name.removeprefix("module."): value for name, value in content.items()}


def load_metadata(path: str | Path) -> dict[str, str]:
    """What a `.safetensors` file says beside its tensors; nothing of other files."""
    path = _file(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    with safe_open(path, "pt") as content:
        return content.metadata() or {}


def _file(path: str | Path) -> Path:
    if not is_shipped(str(path)):
        return Path(path)
    try:
        return shipped_file(str(path))
    except ShippedWeightsError as error:
        raise CheckpointError(str(error)) from error


def save_weights(
    weights: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes `.safetensors`, or a torch file `{"model": weights}` for any other ending.

    Args:
        weights: to write.
        path: the file.
        metadata: words that a `.safetensors` file carries beside its tensors.
    """
    path = Path(path)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    if path.suffix == ".safetensors":
        write_safetensors(tensors, path, metadata)
    else:
        write_torch({"model": tensors}, path)


def load_into(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    new_parts: Sequence[str] = (),
    source: str = "checkpoint",
) -> None:
    """Loads weights strictly; nothing is changed unless all of them fit.

    Args:
        module: The model.
        weights: Its state dict.
        new_parts: Parts (`segmenter`, or a longer path) that may be absent from the file as a whole
            and then keep their starting values: how a stage-1 checkpoint feeds stage 2.
        source: Where the weights come from, for the message.

    Raises:
        CheckpointError: Counts the missing, unexpected and misshapen keys, and names the first of
            each.
    """
    own = module.state_dict()
    unknown = [part for part in new_parts if not any(k.startswith(part + ".") for k in own)]
    if unknown:
        raise CheckpointError(f"MODEL.NEW_PARTS names {unknown}, which the model does not have")
    prefixes = [part + "." for part in new_parts]
    absent = tuple(p for p in prefixes if not any(k.startswith(p) for k in weights))
    missing = [k for k in own if k not in weights and not k.startswith(absent)]
    unexpected = [k for k in weights if k not in own]
    misshapen = [
        f"{k} is {tuple(weights[k].shape)} in the file, {tuple(v.shape)} in the model"
        for k, v in own.items()
        if k in weights and weights[k].shape != v.shape
    ]
    if missing or unexpected or misshapen:
        counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(misshapen)} misshapen"
        lines = [
            f"{source} does not fit the model ({counts} of its {len(own)} keys); use the config "
            "the weights were trained with (--config-file, MODEL.*, INPUT.SIZE), or other weights; "
            "MODEL.NEW_PARTS names parts that may be missing as a whole",
            *_listed("missing", missing),
            *_listed("unexpected", unexpected),
            *_listed("misshapen", misshapen),
        ]
        raise CheckpointError("\n".join(lines))
    with torch.no_grad():
        for name, value in own.items():
            if name in weights:
                value.copy_(weights[name])


def _listed(what: str, keys: Sequence[str]) -> list[str]:
    """A line for each of the first keys, and one that counts the others."""
    more = len(keys) - MOST_NAMED
    lines = [f"  {what}: {key}" for key in keys[:MOST_NAMED]]
    return [*lines, f"  {what}: {more} more"] if more > 0 else lines


def encoder_weights(path: str | Path, vit: Eva) -> Weights:
    """Reads a Perception Encoder, in the original naming or timm's, or that of a Loupe.

    timm resizes the position table where the grid differs; blocks beyond the depth of the model and
    the final projection, which Loupe does not use, are left out.
    """
    weights = load_weights(path)
    if is_original_encoder(weights):
        try:
            weights = from_original_encoder(weights)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    ours = {k.removeprefix("backbone.vit."): v for k, v in weights.items() if "backbone.vit." in k}
    weights = ours or weights
    unused = ("head.", "rope.", *(f"blocks.{i}." for i in range(len(vit.blocks), 100)))
    weights = {k: v for k, v in weights.items() if not k.startswith(unused)}
    table, own = weights.get("pos_embed"), vit.pos_embed
    if table is not None and own is not None and table.shape[1] != own.shape[1]:
        weights["pos_embed"] = resample_abs_pos_embed(
            table, list(vit.patch_embed.grid_size), num_prefix_tokens=vit.num_prefix_tokens
        )
    return weights
