"""Low-rank adapters (LoRA, arXiv 2106.09685) in a backbone: between frozen and trained.

    y = W x + (alpha / r) B A x        A (r, in), B (out, r); W is frozen, B starts at 0

peft does the work, and is imported only where MODEL.LORA.RANK asks for it. `merge_adapters` of
`loupe.checkpoint` puts the product into W, so that a trained model needs neither peft nor this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# The projections of attention, as timm's and as transformers' towers call them.
ATTENTION = r".*(\.attn\.(qkv|proj|q_proj|k_proj|v_proj)|\.self_attn\.(q|k|v|out)_proj)"


def add_adapters(backbone: nn.Module, *, rank: int, alpha: float) -> nn.Module:
    """Freezes a backbone and puts adapters into all its attention layers, in place.

    Args:
        backbone: With loaded weights.
        rank: r; 0 = leave the backbone alone.
        alpha: Scale of the adapters, divided by the rank.

    Raises:
        ValueError: An attention layer reads the weights of its projection itself, so that an
            adapter would be passed by.
    """
    if not rank:
        return backbone
    from peft import LoraConfig, inject_adapter_in_model

    for name, module in backbone.named_modules():
        joins_bias = getattr(module, "q_bias", None) is not None
        if joins_bias and not getattr(module, "qkv_bias_separate", False):
            raise ValueError(
                f"MODEL.LORA.RANK is {rank}, but {name} applies its weights itself and would "
                "pass by an adapter; use another MODEL.VIT.NAME, or MODEL.LORA.RANK 0"
            )
    backbone.requires_grad_(False)
    # peft divides by the rank and takes fractions, too; its annotation says a whole number.
    scale: Any = alpha
    settings = LoraConfig(r=rank, lora_alpha=scale, lora_dropout=0.0, target_modules=ATTENTION)
    inject_adapter_in_model(settings, backbone)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name)
    # Saved with the weights: merging needs it.
    backbone.register_buffer("adapter_scale", torch.tensor(alpha / rank))
    return backbone
