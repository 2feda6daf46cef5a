"""Reading, checking, converting and writing weights.

No pickled code is ever run; every key of a file must find its place, and every parameter its key.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from loupe.model_zoo import ShippedWeightsError, is_shipped, shipped_file

Weights = dict[str, Tensor]

# Released Loupe (and, without its first word, the original Perception Encoder) -> ours.
# `*` stands for a number. The first row that fits the beginning of a name is used.
ENCODER_NAMES = (
    ("backbone.class_embedding", "backbone.vit.cls_token"),
    ("backbone.positional_embedding", "backbone.vit.pos_embed"),
    ("backbone.conv1", "backbone.vit.patch_embed.proj"),
    ("backbone.ln_pre", "backbone.vit.norm_pre"),
    ("backbone.ln_post", "backbone.vit.norm"),
    (
        "backbone.transformer.resblocks.*.attn.in_proj_weight",
        "backbone.vit.blocks.*.attn.qkv.weight",
    ),
    ("backbone.transformer.resblocks.*.attn.in_proj_bias", "backbone.vit.blocks.*.attn.qkv.bias"),
    ("backbone.transformer.resblocks.*.attn.out_proj", "backbone.vit.blocks.*.attn.proj"),
    ("backbone.transformer.resblocks.*.ln_1", "backbone.vit.blocks.*.norm1"),
    ("backbone.transformer.resblocks.*.ln_2", "backbone.vit.blocks.*.norm2"),
    ("backbone.transformer.resblocks.*.ls_1.gamma", "backbone.vit.blocks.*.gamma_1"),
    ("backbone.transformer.resblocks.*.ls_2.gamma", "backbone.vit.blocks.*.gamma_2"),
    ("backbone.transformer.resblocks.*.mlp.c_fc", "backbone.vit.blocks.*.mlp.fc1"),
    ("backbone.transformer.resblocks.*.mlp.c_proj", "backbone.vit.blocks.*.mlp.fc2"),
    ("backbone.attn_pool.probe", "backbone.vit.attn_pool.latent"),
    ("backbone.attn_pool.attn.out_proj", "backbone.vit.attn_pool.proj"),
    ("backbone.attn_pool.layernorm", "backbone.vit.attn_pool.norm"),
    ("backbone.attn_pool.mlp.c_fc", "backbone.vit.attn_pool.mlp.fc1"),
    ("backbone.attn_pool.mlp.c_proj", "backbone.vit.attn_pool.mlp.fc2"),
)
HEAD_NAMES = (
    ("classifier.classifier.layers.0", "classifier.image_head.0"),
    ("classifier.classifier.layers.1", "classifier.image_head.2"),
    ("classifier.patch_classifier.layers.0", "classifier.patch_head.0"),
    ("classifier.patch_classifier.layers.1", "classifier.patch_head.2"),
    ("classifier.fuser.fuse", "classifier.fusion"),
    ("segmentor.fpn.scale_layers.*.*.conv1", "segmenter.feature_pyramid.scales.*.*.resample"),
    ("segmentor.fpn.scale_layers.*.*.conv2", "segmenter.feature_pyramid.scales.*.*.depthwise"),
    ("segmentor.fpn.scale_layers.*.*.norm", "segmenter.feature_pyramid.scales.*.*.norm"),
    ("segmentor.pixel_decoder.level_embed", "segmenter.pixel_decoder.level_embedding"),
    ("segmentor.pixel_decoder.input_projections", "segmenter.pixel_decoder.input_projections"),
    (
        "segmentor.pixel_decoder.encoder.layers.*.self_attn",
        "segmenter.pixel_decoder.layers.*.deformable_attention",
    ),
    (
        "segmentor.pixel_decoder.encoder.layers.*.self_attn_layer_norm",
        "segmenter.pixel_decoder.layers.*.norm",
    ),
    (
        "segmentor.pixel_decoder.encoder.layers.*.cross_attn",
        "segmenter.pixel_decoder.layers.*.condition.attention",
    ),
    (
        "segmentor.pixel_decoder.encoder.layers.*.cross_attn_layer_norm",
        "segmenter.pixel_decoder.layers.*.condition.norm",
    ),
    (
        "segmentor.pixel_decoder.encoder.layers.*.fc1",
        "segmenter.pixel_decoder.layers.*.feed_forward.mlp.0",
    ),
    (
        "segmentor.pixel_decoder.encoder.layers.*.fc2",
        "segmenter.pixel_decoder.layers.*.feed_forward.mlp.2",
    ),
    (
        "segmentor.pixel_decoder.encoder.layers.*.final_layer_norm",
        "segmenter.pixel_decoder.layers.*.feed_forward.norm",
    ),
    ("segmentor.pixel_decoder.adapter_1", "segmenter.pixel_decoder.lateral"),
    ("segmentor.pixel_decoder.layer_1", "segmenter.pixel_decoder.output"),
    ("segmentor.pixel_decoder.mask_projection", "segmenter.pixel_decoder.mask_projection"),
    ("segmentor.mask2former_decoder.queries_features", "segmenter.mask_decoder.query_features"),
    ("segmentor.mask2former_decoder.queries_embedder", "segmenter.mask_decoder.query_position"),
    ("segmentor.mask2former_decoder.level_embed", "segmenter.mask_decoder.level_embedding"),
    (
        "segmentor.mask2former_decoder.decoder.layers.*.cross_attn",
        "segmenter.mask_decoder.layers.*.cross_attention",
    ),
    (
        "segmentor.mask2former_decoder.decoder.layers.*.cross_attn_layer_norm",
        "segmenter.mask_decoder.layers.*.cross_norm",
    ),
    (
        "segmentor.mask2former_decoder.decoder.layers.*.self_attn",
        "segmenter.mask_decoder.layers.*.self_attention",
    ),
    (
        "segmentor.mask2former_decoder.decoder.layers.*.self_attn_layer_norm",
        "segmenter.mask_decoder.layers.*.self_norm",
    ),
    (
        "segmentor.mask2former_decoder.decoder.layers.*.fc1",
        "segmenter.mask_decoder.layers.*.feed_forward.mlp.0",
    ),
    (
        "segmentor.mask2former_decoder.decoder.layers.*.fc2",
        "segmenter.mask_decoder.layers.*.feed_forward.mlp.2",
    ),
    (
        "segmentor.mask2former_decoder.decoder.layers.*.final_layer_norm",
        "segmenter.mask_decoder.layers.*.feed_forward.norm",
    ),
    ("segmentor.mask2former_decoder.decoder.layernorm", "segmenter.mask_decoder.norm"),
    (
        "segmentor.mask2former_decoder.decoder.mask_predictor.mask_embedder.0.0",
        "segmenter.mask_decoder.mask_head.0",
    ),
    (
        "segmentor.mask2former_decoder.decoder.mask_predictor.mask_embedder.1.0",
        "segmenter.mask_decoder.mask_head.2",
    ),
    (
        "segmentor.mask2former_decoder.decoder.mask_predictor.mask_embedder.2.0",
        "segmenter.mask_decoder.mask_head.4",
    ),
    ("segmentor.class_predictor", "segmenter.mask_decoder.class_head"),
)
NAMES = ENCODER_NAMES + HEAD_NAMES
# Tensors that are joined or split: where a file has one of a group, it must have all.
RELEASED_GROUPS = (
    ("segmentor.label_embedding.0", "segmentor.label_embedding.1"),
    *(tuple(f".self_attn.{letter}_proj.{end}" for letter in "qkv") for end in ("weight", "bias")),
)
OUR_GROUPS = tuple(
    tuple(f"backbone.vit.attn_pool.{part}.{end}" for part in ("q", "kv"))
    for end in ("weight", "bias")
)
# Class weights of the released criterion: a constant (forged 1, no object 0.1), not learned.
EMPTY_WEIGHT = "segmentor.criterion.empty_weight"


class CheckpointError(ValueError):
    """A file that does not fit; the message names every key at fault."""


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
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: damaged, no torch file, or it holds more than tensors, and reading that "
            "could run code; refused. Ask for a .safetensors file, or save the state_dict alone"
        ) from error
    except Exception as error:  # torch and safetensors raise many types for a damaged file.
        raise CheckpointError(
            f"{path}: not readable as weights ({error}); expected .safetensors, or a torch file "
            "that holds tensors only"
        ) from error
    for key in ("model", "state_dict", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise CheckpointError(f"{path}: holds no table of tensors (nor `model` or `state_dict`)")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _file(path: str | Path) -> Path:
    if not is_shipped(str(path)):
        return Path(path)
    try:
        return shipped_file(str(path))
    except ShippedWeightsError as error:
        raise CheckpointError(str(error)) from error


def save_weights(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes `.safetensors`, or a torch file `{"model": weights}` for any other ending."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"model": tensors}, path)


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
        CheckpointError: Names all missing, unexpected and misshapen keys.
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
        lines = [f"{source} does not fit the model:"]
        lines += [f"  missing: {k}" for k in missing]
        lines += [f"  unexpected: {k}" for k in unexpected]
        lines += [f"  misshapen: {k}" for k in misshapen]
        lines += [
            "Use the config the weights were trained with (MODEL.*, INPUT.SIZE); "
            "MODEL.NEW_PARTS names parts that may be missing as a whole."
        ]
        raise CheckpointError("\n".join(lines))
    with torch.no_grad():
        for name, value in own.items():
            if name in weights:
                value.copy_(weights[name])


def encoder_weights(path: str | Path, vit: nn.Module) -> Weights:
    """Reads a Perception Encoder, in the original naming or timm's, or that of a Loupe.

    timm resizes the position table where the grid differs; blocks beyond the depth of the model and
    the final projection, which Loupe does not use, are left out.
    """
    weights = load_weights(path)
    if is_original_encoder(weights):
        weights = from_original_encoder(weights)
    ours = {k.removeprefix("backbone.vit."): v for k, v in weights.items() if "backbone.vit." in k}
    weights = ours or weights
    unused = ("head.", "rope.", *(f"blocks.{i}." for i in range(len(vit.blocks), 100)))
    weights = {k: v for k, v in weights.items() if not k.startswith(unused)}
    table = weights.get("pos_embed")
    if table is not None and table.shape[1] != vit.pos_embed.shape[1]:
        weights["pos_embed"] = resample_abs_pos_embed(
            table, list(vit.patch_embed.grid_size), num_prefix_tokens=vit.num_prefix_tokens
        )
    return weights


def is_original_encoder(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are a Perception Encoder in its original naming."""
    return "visual.conv1.weight" in weights or "conv1.weight" in weights


def from_original_encoder(weights: Mapping[str, Tensor]) -> Weights:
    """Renames an original Perception Encoder to timm's names.

    The text tower of a CLIP file and the final projection, which Loupe does not use, are left out.

    Raises:
        CheckpointError: Names the keys that have no place.
    """
    if "visual.conv1.weight" in weights:
        weights = {k[7:]: v for k, v in weights.items() if k.startswith("visual.")}
    encoder = {f"backbone.{k}": v for k, v in weights.items() if k != "proj"}
    return {k.removeprefix("backbone.vit."): v for k, v in from_released(encoder).items()}


def from_released(weights: Mapping[str, Tensor]) -> Weights:
    """Renames the weights of released Loupe, consuming every key.

    Raises:
        CheckpointError: Names the keys that no row of the table fits.
    """
    rest = {k.removeprefix("loupe."): v for k, v in weights.items()}
    ours: Weights = {}
    _check_groups(rest, RELEASED_GROUPS)
    if "segmentor.label_embedding.0" in rest:
        pair = [rest.pop(f"segmentor.label_embedding.{i}") for i in range(2)]
        ours["segmenter.condition_embeddings"] = torch.stack(pair)[:, None]
    for end in ("weight", "bias"):
        stacked = rest.pop(f"backbone.attn_pool.attn.in_proj_{end}", None)
        if stacked is not None:
            query, key_value = stacked.split([len(stacked) // 3, 2 * len(stacked) // 3])
            ours[f"backbone.vit.attn_pool.q.{end}"] = query
            ours[f"backbone.vit.attn_pool.kv.{end}"] = key_value
        for name in [k for k in rest if k.endswith(f".self_attn.q_proj.{end}")]:
            stem = name.removesuffix(f"q_proj.{end}")
            joined = torch.cat([rest.pop(f"{stem}{x}_proj.{end}") for x in "qkv"])
            rest[f"{stem}in_proj_{end}"] = joined
    rest.pop(EMPTY_WEIGHT, None)
    unknown = []
    for name, value in rest.items():
        renamed = _rename(name, NAMES)
        if renamed is None:
            unknown.append(name)
            continue
        if renamed.endswith((".cls_token", ".pos_embed")):
            value = value.reshape(1, -1, value.shape[-1])
        ours[renamed] = value
    if unknown:
        raise CheckpointError("not a released Loupe; unknown keys:\n  " + "\n  ".join(unknown))
    return ours


def to_released(weights: Mapping[str, Tensor]) -> Weights:
    """The inverse of `from_released`.

    Raises:
        CheckpointError: Names the keys that released Loupe has no place for (a box head, say).
    """
    rest = dict(weights)
    theirs: Weights = {}
    _check_groups(rest, OUR_GROUPS)
    embeddings = rest.get("segmenter.condition_embeddings")
    if embeddings is not None and embeddings.shape[1] == 1:
        del rest["segmenter.condition_embeddings"]
        for i in range(2):
            theirs[f"segmentor.label_embedding.{i}"] = embeddings[i, 0]
        theirs[EMPTY_WEIGHT] = torch.tensor([1.0, 0.1])
    for end in ("weight", "bias"):
        query = rest.pop(f"backbone.vit.attn_pool.q.{end}", None)
        if query is not None:
            key_value = rest.pop(f"backbone.vit.attn_pool.kv.{end}")
            theirs[f"backbone.attn_pool.attn.in_proj_{end}"] = torch.cat([query, key_value])
    unknown = []
    inverse = [(ours, released) for released, ours in NAMES]
    for name, value in rest.items():
        renamed = _rename(name, inverse)
        if renamed is None:
            unknown.append(name)
        elif ".self_attn.in_proj_" in renamed:
            stem, end = renamed.split("in_proj_")
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                theirs[f"{stem}{letter}_proj.{end}"] = part
        elif renamed == "backbone.class_embedding":
            theirs[renamed] = value.flatten()
        elif renamed == "backbone.positional_embedding":
            theirs[renamed] = value[0]
        else:
            theirs[renamed] = value
    if unknown:
        raise CheckpointError("no place in released Loupe for:\n  " + "\n  ".join(unknown))
    return theirs


def _check_groups(weights: Mapping[str, Tensor], groups: Sequence[tuple[str, ...]]) -> None:
    """Raises CheckpointError if a file has some names (or endings of names) of a group, not all."""
    missing = [
        stem + other
        for group in groups
        for name in weights
        for member in group
        if name.endswith(member)
        for stem in [name.removesuffix(member)]
        for other in group
        if stem + other not in weights
    ]
    if missing:
        raise CheckpointError("keys are missing:\n  " + "\n  ".join(sorted(set(missing))))


def _rename(name: str, table: Sequence[tuple[str, str]]) -> str | None:
    for old, renamed in table:
        pattern = re.escape(old).replace(r"\*", r"(\d+)")
        match = re.match(rf"{pattern}(?=\.|$)", name)
        if match:
            for number in match.groups():
                renamed = renamed.replace("*", number, 1)
            return renamed + name[match.end() :]
    return None
