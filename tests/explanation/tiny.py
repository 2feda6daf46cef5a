"""Tiny models for the tests of explanations: each is made from scratch in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from loupe.explanation.adapters import add_adapters
from loupe.explanation.building import trained_names
from loupe.explanation.explainer import Explainer
from loupe.explanation.region_features import RegionTower
from loupe.explanation.word_tokenizer import IMAGE, word_tokenizer

CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
LANGUAGE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def tiny_llava(
    clip: dict[str, Any], language: dict[str, Any], image_id: int, alpha: float = 0.5
) -> nn.Module:
    """A LLaVA with random weights and a `RegionTower`."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**clip),
        text_config=LlamaConfig(rms_norm_eps=1e-6, tie_word_embeddings=False, **language),
        image_token_index=image_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    vlm = LlavaForConditionalGeneration(config).eval()
    vlm.model.vision_tower = RegionTower(vlm.model.vision_tower, alpha)
    return vlm


def explainer_of(
    vlm: nn.Module,
    image_id: int,
    *,
    tokenizer: Any = None,
    lora: dict[str, Any] | None = None,
    guide: nn.Module | None = None,
    **changes: Any,
) -> Explainer:
    """An `Explainer` of a model; with `lora` its adapters train, otherwise everything."""
    if lora is not None:
        add_adapters(vlm, lora["r"], lora["alpha"], 0.0)
        trained = trained_names(vlm, projector=False)
    else:
        trained = [f"vlm.{name}" for name, _ in vlm.named_parameters()]
    vision = vlm.config.vision_config
    arguments = {
        "template": "words",
        "settings": {"alpha": vlm.model.vision_tower.alpha, "template": "words"},
        "background": "mean",
        "mask_source": "item" if guide is None else "guide",
        "max_new_tokens": 40,
        "patch_size": vision.image_size,
        "pixel_mean": (127.5,) * 3,
        "pixel_std": (127.5,) * 3,
        "image_tokens": (vision.image_size // vision.patch_size) ** 2,
    } | changes
    return Explainer(
        vlm=vlm,
        tokenizer=tokenizer,
        guide=guide,
        image_id=image_id,
        trained=trained,
        **arguments,
    )


def worded_explainer(texts: list[str], **changes: Any) -> Explainer:
    """A tiny explainer that knows the words of these texts."""
    tokenizer = word_tokenizer(texts)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    alpha = changes.pop("alpha", 0.5)
    vlm = tiny_llava(CLIP, LANGUAGE | {"vocab_size": len(tokenizer)}, image_id, alpha)
    return explainer_of(vlm, image_id, tokenizer=tokenizer, **changes)
