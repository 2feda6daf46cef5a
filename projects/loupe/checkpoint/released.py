"""Names of released Loupe and of the original Perception Encoder, and ours for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from loupe.checkpoint.weights import CheckpointError, Weights, first_of

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


def is_original_encoder(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are a Perception Encoder in its original naming."""
    return "visual.conv1.weight" in weights or "conv1.weight" in weights


def from_original_encoder(weights: Mapping[str, Tensor]) -> Weights:
    """Renames an original Perception Encoder to timm's names.

    The text tower of a CLIP file and the final projection, which Loupe does not use, are left out.

    Raises:
        CheckpointError: Names keys that have no place.
    """
    if "visual.conv1.weight" in weights:
        weights = {k[7:]: v for k, v in weights.items() if k.startswith("visual.")}
    encoder = {f"backbone.{k}": v for k, v in weights.items() if k != "proj"}
    return {k.removeprefix("backbone.vit."): v for k, v in from_released(encoder).items()}


def from_released(weights: Mapping[str, Tensor]) -> Weights:
    """Renames the weights of released Loupe, consuming every key.

    Raises:
        CheckpointError: Names keys that no row of the table fits.
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
        renamed = rename(name, NAMES)
        if renamed is None:
            unknown.append(name)
            continue
        if renamed.endswith((".cls_token", ".pos_embed")):
            value = value.reshape(1, -1, value.shape[-1])
        ours[renamed] = value
    if unknown:
        raise CheckpointError(
            f"not a released Loupe: {len(unknown)} unknown keys, {first_of(unknown)}"
        )
    return ours


def to_released(weights: Mapping[str, Tensor]) -> Weights:
    """The inverse of `from_released`.

    Raises:
        CheckpointError: Names keys that released Loupe has no place for (a box head, say).
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
        renamed = rename(name, inverse)
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
        raise CheckpointError(
            f"no place in released Loupe for {len(unknown)} keys, {first_of(unknown)}"
        )
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
        names = sorted(set(missing))
        raise CheckpointError(f"{len(names)} keys are missing, {first_of(names)}")


def rename(name: str, table: Sequence[tuple[str, str]]) -> str | None:
    """A name in the other naming, by the first row whose beginning fits; None = no row fits."""
    for old, renamed in table:
        pattern = re.escape(old).replace(r"\*", r"(\d+)")
        match = re.match(rf"{pattern}(?=\.|$)", name)
        if match:
            for number in match.groups():
                renamed = renamed.replace("*", number, 1)
            return renamed + name[match.end() :]
    return None
