"""Any plain vision transformer of timm as backbone: DINOv2, DINOv3, SigLIP, CLIP, DeiT, ...

Perception Encoders with forensic stems, depth or own sizes have a class of their own (`backbone`).

B images, C channels, H W pixels, h w patches, N tokens.
"""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor
from torch.nn import functional as F

from loupe.checkpoint import encoder_weights, load_into
from loupe.modeling.canvas import valid_patches
from loupe.modeling.patch_backbone import PatchBackbone


class PlainViT(PatchBackbone):
    """A vision transformer of timm that returns its patches and one feature of the whole image.

    Args:
        name: Of timm: `vit_small_patch14_reg4_dinov2`, `vit_large_patch16_dinov3`, ...
        image_size: Side of the square image that the position table is made for; 0 = published.
        weights: "" = random, "hub" = timm's published weights, else a file with timm's names.
        depth: Number of blocks kept, from the first; 0 = all.

    Raises:
        ValueError: timm has no such model, or it is no plain vision transformer.
    """

    # timm's models do not say what they hold.
    vit: Any

    def __init__(self, *, name: str, image_size: int, weights: str, depth: int) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = timm.list_models(f"{name.split('_')[0]}_*")[:10]
            raise ValueError(
                f"MODEL.VIT.NAME is {name!r}, which timm {timm.__version__} does not have; it has "
                f"{', '.join(near) or 'vit_*'}, ..."
            )
        sizes: dict[str, Any] = {"img_size": image_size} if image_size else {}
        try:
            self.vit = timm.create_model(
                name, pretrained=weights == "hub", num_classes=0, dynamic_img_size=True, **sizes
            )
        except TypeError as error:  # Other families do not know the argument.
            raise ValueError(f"MODEL.VIT.NAME {name!r} is no plain transformer: {error}") from error
        if not hasattr(self.vit, "blocks") or not hasattr(self.vit, "num_prefix_tokens"):
            raise ValueError(f"MODEL.VIT.NAME {name!r} is no plain vision transformer")
        if depth:
            self.vit.blocks = self.vit.blocks[:depth]
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        self.embed_dim: int = self.vit.embed_dim
        self.grid_size: tuple[int, int] = tuple(self.vit.patch_embed.grid_size)
        self.has_class_token = getattr(self.vit, "cls_token", None) is not None
        if weights not in ("", "hub"):
            load_into(self.vit, encoder_weights(weights, self.vit), source=weights)

    @property
    def pixel_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of 0..255 RGB pixels that the published weights expect."""
        published = self.vit.pretrained_cfg
        return [255 * m for m in published["mean"]], [255 * s for s in published["std"]]

    def forward(self, images: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """Encodes normalised images.

        Args:
            images: (B, 3, H, W), both sides multiples of the patch size.
            valid: (B, H, W) bool, False = padding, whose patches nothing attends to; None = all
                valid.

        Returns:
            `patches` (B, C, h, w) after the last norm, and `pooled` (B, C): the attention pool
            where the model has one, else the class token, else the mean of the valid patches.
        """
        self.require_whole_patches(images)
        height, width = images.shape[-2:]
        patch_valid = None if valid is None else valid_patches(valid, self.patch_size)
        prefix, mask = self.vit.num_prefix_tokens, None
        if patch_valid is not None:
            mask = F.pad(patch_valid.flatten(1), (prefix, 0), value=True)[:, None, None]
        tokens = self.vit.forward_features(images, attn_mask=mask)
        shape = (len(images), self.embed_dim, height // self.patch_size, width // self.patch_size)
        patches = tokens[:, prefix:].transpose(1, 2).reshape(shape)
        if getattr(self.vit, "attn_pool", None) is not None:
            pooled = self.vit.fc_norm(self.vit.attn_pool(tokens, attn_mask=mask))
        elif self.has_class_token:
            pooled = tokens[:, 0]
        elif patch_valid is None:
            pooled = patches.mean(dim=(2, 3))
        else:
            weight = patch_valid[:, None].to(patches.dtype)
            pooled = (patches * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))
        return {"patches": patches, "pooled": pooled}
