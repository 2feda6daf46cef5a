"""Perception Encoder (arXiv 2504.13181) through timm: the encoder that Loupe freezes (Sec. 2.1).

B images, C channels, H W pixels, h w patches, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.checkpoint import encoder_weights, load_into
from loupe.modeling.canvas import valid_patches
from loupe.modeling.forensic.patch_embedding import STEMS as FORENSIC_STEMS
from loupe.modeling.forensic.patch_embedding import ForensicPatchEmbedding
from loupe.modeling.patch_backbone import PatchBackbone
from loupe.modeling.rotary_attention import use_rotary_attention

FAMILIES = ("vit_pe_core_", "vit_pe_spatial_")
# How names of the ViT's parts begin in the whole model.
VIT = "backbone.vit."
STEMS = ("patch", *FORENSIC_STEMS)


class PerceptionEncoder(PatchBackbone):
    """A timm Perception Encoder that returns its patches and its pooled feature in one pass.

    Args:
        name: `vit_pe_core_*` or `vit_pe_spatial_*`.
        image_size: Side of the square image the position table is made for; 0 = published size.
            Any other grid is accepted at run time (the table is then resized by timm).
        weights: "" = random, "hub" = timm's published weights, else a file (see
            `loupe.checkpoint.encoder_weights`).
        stem: One of STEMS: timm's linear patch embedding, or a forensic one.
        depth: Number of blocks kept, from the first; 0 = all.
        new_parts: Parts of the ViT that may be missing from the file of weights as a whole.
        precision: "float32"; or "bfloat16", for an encoder that is not trained: its matrix products
            are taken in that type, and their weights are held in it, in half of the memory.
        overrides: timm arguments that differ from the published model (`patch_size`, `embed_dim`,
            `num_heads`).

    Raises:
        ValueError: `name` is no Perception Encoder of timm, or the stem does not fit the patch.
    """

    def __init__(
        self,
        *,
        name: str,
        image_size: int,
        weights: str,
        stem: str,
        depth: int,
        new_parts: Sequence[str],
        precision: str,
        overrides: dict[str, Any],
    ) -> None:
        super().__init__()
        known = [model for family in FAMILIES for model in timm.list_models(family + "*")]
        if name not in known:
            raise ValueError(
                f"MODEL.PERCEPTION_ENCODER.NAME is {name!r}; timm {timm.__version__} has "
                + ", ".join(known)
            )
        self.name = name
        sizes: dict[str, Any] = {"img_size": image_size} if image_size else {}
        model = timm.create_model(
            name,
            pretrained=weights == "hub",
            num_classes=0,
            dynamic_img_size=True,
            **sizes,
            **overrides,
        )
        self.vit = cast(Any, model)  # timm's classes tell little of their parts
        if depth:
            self.vit.blocks = self.vit.blocks[:depth]
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        self.embed_dim: int = self.vit.embed_dim
        self.grid_size: tuple[int, int] = self.vit.patch_embed.grid_size
        if stem not in STEMS:
            raise ValueError(
                f"MODEL.PERCEPTION_ENCODER.STEM is {stem!r}; use one of {', '.join(STEMS)}"
            )
        self.forensic = stem != "patch"
        if self.forensic:
            self.vit.patch_embed = ForensicPatchEmbedding(
                embed_dim=self.embed_dim,
                patch_size=self.vit.patch_embed.patch_size,
                grid_size=self.grid_size,
                kind=stem,
            )
        if weights not in ("", "hub"):
            found = encoder_weights(weights, self.vit)
            load_into(self.vit, found, new_parts=new_parts, source=weights)
        use_rotary_attention(self.vit)
        self.half = precision == "bfloat16"
        if self.half:
            for layer in self.vit.blocks.modules():
                if isinstance(layer, nn.Linear):
                    layer.to(torch.bfloat16)

    def forward(self, images: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """Encodes normalised images.

        Args:
            images: (B, 3, H, W), both sides multiples of the patch size.
            valid: (B, H, W) bool, True = image, False = padding; no token attends to a patch
                without a valid pixel. None = all valid (and the faster kernels).

        Returns:
            `patches` (B, C, h, w) after the last norm, and `pooled` (B, C): the attention pool of
            core models, the mean of the valid patches for spatial ones, which have no pool.
        """
        self.require_whole_patches(images)
        height, width = images.shape[-2:]
        patch_valid = None if valid is None else valid_patches(valid, self.patch_size)
        mask = self._token_mask(patch_valid)
        h, w = height // self.patch_size, width // self.patch_size
        embedded = ForensicPatchEmbedding.with_mask(images, valid) if self.forensic else images
        tokens = self._tokens(embedded, mask)
        patches = tokens[:, self.vit.num_prefix_tokens :]
        patches = patches.transpose(1, 2).reshape(images.shape[0], self.embed_dim, h, w)
        return {"patches": patches, "pooled": self._pool(tokens, patches, mask, patch_valid)}

    def _tokens(self, embedded: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, C) after the last norm."""
        if not self.half:
            return self.vit.forward_features(embedded, attn_mask=mask)
        with torch.autocast(embedded.device.type, torch.bfloat16):
            tokens = self.vit.forward_features(embedded, attn_mask=mask)
        return tokens.float()

    def _token_mask(self, patch_valid: Tensor | None) -> Tensor | None:
        """(B, 1, 1, N) bool over all tokens, True = attend; prefix tokens are always valid."""
        if patch_valid is None:
            return None
        return F.pad(patch_valid.flatten(1), (self.vit.num_prefix_tokens, 0), value=True)[
            :, None, None
        ]

    def _pool(
        self, tokens: Tensor, patches: Tensor, mask: Tensor | None, patch_valid: Tensor | None
    ) -> Tensor:
        if self.vit.attn_pool is not None:
            return self.vit.fc_norm(self.vit.attn_pool(tokens, attn_mask=mask))
        if patch_valid is None:
            return patches.mean(dim=(2, 3))
        weight = patch_valid[:, None].to(patches.dtype)
        return (patches * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp(min=1)
