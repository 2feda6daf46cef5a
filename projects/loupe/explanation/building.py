"""From the configuration to an `Explainer`: the one place where keys meet arguments."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from loupe.checkpoint import load_into, load_weights
from loupe.explanation.adapters import add_adapters
from loupe.explanation.bases import Base, BaseError, join, load_base
from loupe.explanation.region_features import (
    EncoderTower,
    MergedRegionTower,
    RegionTower,
    merges,
)

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# A LLaVA's projector, and a Qwen2-VL's merger.
_PROJECTORS = ("multi_modal_projector", ".visual.tower.merger.")
# Stands for the image in vocabularies that have no token of that name: reserved, never written.
_IMAGE_TOKENS = ("<image>", "<|image_pad|>", "<reponame>")


def explainer_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `Explainer`.

    Raises:
        BaseError: The base model is not there, or keys contradict each other.
    """
    keys = cfg.MODEL.EXPLAINER
    base = load_base(keys.BASE, _TYPES[keys.DTYPE])
    guide = build_guide(cfg) if keys.GUIDE_WEIGHTS else None
    if keys.MASK_SOURCE == "guide" and guide is None:
        raise BaseError(
            "MODEL.EXPLAINER.MASK_SOURCE is guide; MODEL.EXPLAINER.GUIDE_WEIGHTS names no weights"
        )
    image_id = image_token(base.tokenizer)
    vlm, tokens, patch_size = with_tower(base, guide, image_id, keys, cfg.INPUT.SIZE)
    add_adapters(vlm, keys.LORA_RANK, keys.LORA_ALPHA, keys.LORA_DROPOUT)
    return {
        "vlm": vlm,
        "tokenizer": base.tokenizer,
        "guide": guide,
        "template": keys.TEMPLATE,
        "image_id": image_id,
        "image_tokens": tokens,
        "trained": trained_names(vlm, projector=keys.TRAIN_PROJECTOR or not base.sees),
        "settings": {
            "alpha": keys.ALPHA,
            "background": keys.BACKGROUND,
            "template": keys.TEMPLATE,
            "base": keys.BASE.rstrip("/").rpartition("/")[2],
            "digest": base.digest,
            "grid": 0 if base.sees else keys.GRID,
            "tower": "" if base.sees or guide is None else encoder_digest(guide),
            "lora_alpha": keys.LORA_ALPHA,
            "tell_region": keys.TELL_REGION,
        }
        | ({"blended": "after the merger"} if merges(base.model) else {}),
        "tell_region": keys.TELL_REGION,
        "background": keys.BACKGROUND,
        "mask_source": keys.MASK_SOURCE,
        "max_new_tokens": keys.MAX_NEW_TOKENS,
        "patch_size": patch_size,
        "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
    }


def encoder_digest(guide: nn.Module) -> str:
    """A short hash of a Loupe's encoder: adapters that see by one encoder do not fit another.

    Classifier, segmenter and rule of the same file may change; the adapters never see them.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(guide.get_submodule("backbone").state_dict().items()):
        sha.update(f"{name} {tuple(tensor.shape)}".encode())
        sha.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def build_guide(cfg: CfgNode) -> nn.Module:
    """The Loupe that a configuration describes, with the weights of GUIDE_WEIGHTS."""
    weights = cfg.MODEL.EXPLAINER.GUIDE_WEIGHTS
    own = cfg.clone()
    own.defrost()
    own.MODEL.META_ARCHITECTURE, own.MODEL.WEIGHTS, own.MODEL.NEW_PARTS = "Loupe", weights, []
    guide = build_model(own).eval()
    load_into(guide, load_weights(weights), source=weights)
    return guide.requires_grad_(False)


def with_tower(
    base: Base, guide: nn.Module | None, image_id: int, keys: CfgNode, side: int
) -> tuple[nn.Module, int, int]:
    """The base with a `RegionTower`; the number of its tokens; the unit of the canvas in pixels.

    Args:
        base: The model to explain with.
        guide: The detector, whose encoder a language model alone sees by.
        image_id: The image's token.
        keys: MODEL.EXPLAINER.
        side: Of the canvas of a Qwen2-VL, which has no size of its own: INPUT.SIZE.

    Raises:
        BaseError: A language model alone has no detector whose encoder it could see by, or the
            canvas is no multiple of a Qwen2-VL's squares.
    """
    model: Any = base.model
    if merges(model):
        vision = model.config.vision_config
        square = vision.patch_size * vision.spatial_merge_size
        if side % square:
            raise BaseError(
                f"INPUT.SIZE is {side}; a Qwen2-VL needs a multiple of {square}, such as "
                f"{max(1, round(side / square)) * square}"
            )
        model.model.visual = MergedRegionTower(model.model.visual, keys.ALPHA)
        return model, (side // square) ** 2, side
    if base.sees:
        vision = model.config.vision_config
        model.model.vision_tower = RegionTower(model.model.vision_tower, keys.ALPHA)
        return model, (vision.image_size // vision.patch_size) ** 2, vision.image_size
    if guide is None:
        raise BaseError(
            "MODEL.EXPLAINER.BASE is a language model alone, which needs an encoder to see by; "
            "name a Loupe in MODEL.EXPLAINER.GUIDE_WEIGHTS"
        )
    backbone: Any = guide.backbone
    tokens = keys.GRID**2
    tower = RegionTower(EncoderTower(backbone, keys.GRID), keys.ALPHA)
    vlm = join(model, tower, backbone.embed_dim, tokens, image_id)
    return vlm, tokens, backbone.size_divisibility


def image_token(tokenizer: Any) -> int:
    """The token that stands for the image.

    Raises:
        BaseError: The vocabulary has none that could.
    """
    vocabulary = tokenizer.get_vocab()
    for token in _IMAGE_TOKENS:
        if token in vocabulary:
            return int(vocabulary[token])
    raise BaseError(f"the tokenizer has none of {', '.join(_IMAGE_TOKENS)} to stand for the image")


def trained_names(vlm: nn.Module, *, projector: bool) -> list[str]:
    """Names, in an `Explainer`, of the adapters and of the projector if it trains."""
    return [
        f"vlm.{name}"
        for name, _ in vlm.named_parameters()
        if "lora_" in name or (projector and any(part in name for part in _PROJECTORS))
    ]
