"""Names of IFDL-VLM's stage 1, of the original SAM and of CLIP, and ours for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from loupe.checkpoint.files import load_weights
from loupe.checkpoint.released import rename
from loupe.checkpoint.weights import CheckpointError, Weights, first_of

# Original SAM -> transformers' SamModel. `*` stands for a number; the first row that fits the
# beginning of a name is used.
SAM_NAMES = (
    ("image_encoder.blocks.*.norm*", "vision_encoder.layers.*.layer_norm*"),
    ("image_encoder.blocks", "vision_encoder.layers"),
    ("image_encoder.patch_embed.proj", "vision_encoder.patch_embed.projection"),
    ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    ("image_encoder.neck.0", "vision_encoder.neck.conv1"),
    ("image_encoder.neck.1", "vision_encoder.neck.layer_norm1"),
    ("image_encoder.neck.2", "vision_encoder.neck.conv2"),
    ("image_encoder.neck.3", "vision_encoder.neck.layer_norm2"),
    (
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.shared_embedding.positional_embedding",
    ),
    ("prompt_encoder.point_embeddings", "prompt_encoder.point_embed"),
    ("prompt_encoder.not_a_point_embed", "prompt_encoder.not_a_point_embed"),
    ("prompt_encoder.no_mask_embed", "prompt_encoder.no_mask_embed"),
    ("prompt_encoder.mask_downscaling.0", "prompt_encoder.mask_embed.conv1"),
    ("prompt_encoder.mask_downscaling.1", "prompt_encoder.mask_embed.layer_norm1"),
    ("prompt_encoder.mask_downscaling.3", "prompt_encoder.mask_embed.conv2"),
    ("prompt_encoder.mask_downscaling.4", "prompt_encoder.mask_embed.layer_norm2"),
    ("prompt_encoder.mask_downscaling.6", "prompt_encoder.mask_embed.conv3"),
    (
        "mask_decoder.transformer.layers.*.norm*",
        "mask_decoder.transformer.layers.*.layer_norm*",
    ),
    ("mask_decoder.transformer.norm_final_attn", "mask_decoder.transformer.layer_norm_final_attn"),
    ("mask_decoder.transformer", "mask_decoder.transformer"),
    ("mask_decoder.iou_token", "mask_decoder.iou_token"),
    ("mask_decoder.mask_tokens", "mask_decoder.mask_tokens"),
    ("mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
    ("mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
    ("mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
    *(
        (f"mask_decoder.{head}.layers.{theirs}", f"mask_decoder.{head}.{ours}")
        for head in ("output_hypernetworks_mlps.*", "iou_prediction_head")
        for theirs, ours in ((0, "proj_in"), (1, "layers.0"), (2, "proj_out"))
    ),
)
# Where the parts of SAM lie in the expert.
_PLACES = {
    "vision_encoder": "segmentation_encoder.vision",
    "prompt_encoder": "mask_prompting.prompt_encoder",
    "mask_decoder": "mask_prompting.mask_decoder",
}
# Released stage 1 -> ours.
EXPERT_NAMES = (
    ("clip_model.vision_model", "backbone.vision"),
    ("cls_projection", "evidence.verdict_head"),
    ("seg_projection.0", "evidence.patch_projection"),
    ("sida_fc1", "evidence.verdict_projection"),
    ("attention_layer", "evidence.attention"),
    *(
        (f"visual_model.{theirs}", _PLACES[ours.partition(".")[0]] + ours[ours.index(".") :])
        for theirs, ours in SAM_NAMES
    ),
)
# transformers' SamModel holds the matrix of positions twice.
_POSITION = "prompt_encoder.shared_embedding.positional_embedding"
_SECOND_POSITION = "shared_image_embedding.positional_embedding"
# A table 0, 1, 2, ... that some versions of transformers save.
_COUNTING = "position_ids"


def is_released_expert(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are a stage 1 of IFDL-VLM in its own naming."""
    return any(name.startswith(("clip_model.", "visual_model.")) for name in weights)


def is_expert(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are an expert in our naming."""
    return any(name.startswith("evidence.") for name in weights)


def from_released_expert(weights: Mapping[str, Tensor]) -> Weights:
    """Renames a released stage 1, consuming every key.

    Raises:
        CheckpointError: Names keys that no row of the table fits.
    """
    weights = {name: v for name, v in weights.items() if not name.endswith(_COUNTING)}
    return _renamed(weights, EXPERT_NAMES, "not a stage 1 of IFDL-VLM: its table has no place for")


def to_released_expert(weights: Mapping[str, Tensor]) -> Weights:
    """The inverse of `from_released_expert`.

    Raises:
        CheckpointError: Names keys that the released model has no place for: those of another
            tower than CLIP, of a neck on the backbone, of adapters.
    """
    inverse = tuple((ours, theirs) for theirs, ours in EXPERT_NAMES)
    return _renamed(weights, inverse, "no place in the released stage 1 for")


def sam_weights(path: str | Path) -> Weights:
    """Reads SAM for transformers' SamModel, in its own naming or the original."""
    weights = load_weights(path)
    if any(name.startswith("image_encoder.") for name in weights):
        weights = _renamed(weights, SAM_NAMES, f"{path} is not SAM: its table has no place for")
    for name, other in ((_POSITION, _SECOND_POSITION), (_SECOND_POSITION, _POSITION)):
        if name in weights:
            weights.setdefault(other, weights[name])
    return weights


def clip_weights(path: str | Path) -> Weights:
    """Reads CLIP's vision tower for transformers' CLIPVisionModel; the text tower is left out."""
    weights = load_weights(path)
    tower = "vision_model."
    ours = {name.removeprefix(tower): v for name, v in weights.items() if name.startswith(tower)}
    weights = ours or weights
    return {name: v for name, v in weights.items() if not name.endswith(_COUNTING)}


def _renamed(
    weights: Mapping[str, Tensor], table: tuple[tuple[str, str], ...], message: str
) -> Weights:
    names = {name: rename(name, table) for name in weights}
    unknown = [name for name, found in names.items() if found is None]
    if unknown:
        raise CheckpointError(f"{message} {len(unknown)} keys, {first_of(unknown)}")
    return {found: weights[name] for name, found in names.items() if found is not None}
