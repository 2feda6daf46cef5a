"""Encoders of the expert: CLIP and SAM of transformers, or the backbone for both.

This is the only module that imports transformers, and only when such an encoder is built
(`pip install loupe[expert]`). Nothing is downloaded unless the weights are called "hub".

B images, C width, D width of the segmentation features, H W pixels, h w cells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.checkpoint import clip_weights, load_into, sam_weights
from loupe.modeling.canvas import valid_patches
from loupe.modeling.patch_backbone import PatchBackbone

# Published sizes; any other is a folder with a `config.json` of transformers.
CLIP_SIZES: dict[str, dict[str, int]] = {
    "vit_b_32": {"patch_size": 32, "image_size": 224},
    "vit_b_16": {"patch_size": 16, "image_size": 224},
    "vit_l_14": {"patch_size": 14, "image_size": 224},
    "vit_l_14_336": {"patch_size": 14, "image_size": 336},
}
_CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
SAM_SIZES: dict[str, dict[str, Any]] = {
    "vit_b": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "vit_l": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "vit_h": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16},
}
HUB = {
    "vit_b_32": "openai/clip-vit-base-patch32",
    "vit_b_16": "openai/clip-vit-base-patch16",
    "vit_l_14": "openai/clip-vit-large-patch14",
    "vit_l_14_336": "openai/clip-vit-large-patch14-336",
    "vit_b": "facebook/sam-vit-base",
    "vit_l": "facebook/sam-vit-large",
    "vit_h": "facebook/sam-vit-huge",
}
# Statistics of 0..255 RGB pixels that SAM was trained with.
SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class ClipTower(PatchBackbone):
    """CLIP's vision tower: patches and class token of the last layer, without its last norm.

    Args:
        vision: transformers' `CLIPVisionModel`.
    """

    vision: Any

    def __init__(self, vision: Any) -> None:
        super().__init__()
        self.vision = vision
        # IFDL-VLM does not use it, and the checkpoints hold it.
        vision.post_layernorm.requires_grad_(False)
        config = vision.config
        self.patch_size: int = config.patch_size
        self.embed_dim: int = config.hidden_size
        self.grid_size: tuple[int, int] = (config.image_size // config.patch_size,) * 2

    def forward(self, images: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """Encodes normalised images.

        Args:
            images: (B, 3, H, W), both sides multiples of the patch size.
            valid: (B, H, W) bool, False = padding, whose patches nothing attends to; None = all
                valid.

        Returns:
            `patches` (B, C, h, w) and `pooled` (B, C), the class token.
        """
        self.require_whole_patches(images)
        h, w = (side // self.patch_size for side in images.shape[-2:])
        tokens = self.vision.embeddings(images, interpolate_pos_encoding=(h, w) != self.grid_size)
        mask = None
        if valid is not None:
            attend = valid_patches(valid, self.patch_size).flatten(1)
            attend = F.pad(attend, (1, 0), value=True)[:, None, None]
            # Added to the attention logits, which every implementation of attention takes.
            mask = torch.zeros(attend.shape, dtype=tokens.dtype, device=tokens.device)
            mask = mask.masked_fill(~attend, torch.finfo(tokens.dtype).min)
            mask = mask.expand(-1, -1, attend.shape[-1], -1)
        tokens = self.vision.pre_layrnorm(tokens)
        tokens = self.vision.encoder(inputs_embeds=tokens, attention_mask=mask).last_hidden_state
        patches = tokens[:, 1:].transpose(1, 2).reshape(len(images), self.embed_dim, h, w)
        return {"patches": patches, "pooled": tokens[:, 0]}


class SamEncoder(nn.Module):
    """SAM's image encoder on raw pixels: it has statistics of its own.

    Args:
        vision: transformers' `SamVisionEncoder`.
    """

    vision: Any
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, vision: Any) -> None:
        super().__init__()
        self.vision = vision
        self.image_size: int = vision.config.image_size
        self.register_buffer("pixel_mean", torch.tensor(SAM_MEAN).view(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(SAM_STD).view(3, 1, 1), False)

    def forward(self, pixels: Tensor, valid: Tensor | None) -> Tensor:
        """Encodes images.

        Args:
            pixels: (B, 3, S, S), 0 to 255, S the size that the encoder was made for.
            valid: (B, S, S) bool, False = padding, which SAM sees as its mean colour.

        Returns:
            (B, D, S / 16, S / 16).

        Raises:
            ValueError: The canvas has another size.
        """
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"SAM takes {self.image_size} x {self.image_size} px, the canvas has "
                f"{pixels.shape[-2]} x {pixels.shape[-1]}; set INPUT.SIZE {self.image_size} and "
                "INPUT.RESIZE pad or squash"
            )
        images = (pixels - self.pixel_mean) / self.pixel_std
        if valid is not None:
            images = images * valid[:, None]
        return self.vision(images).last_hidden_state


class PatchNeck(nn.Module):
    """The backbone's patches as segmentation features: SAM's neck on another encoder.

    Args:
        dim: Width C of the backbone.
        dim_out: Width D of the features.
    """

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.neck = nn.Sequential(
            nn.Conv2d(dim, dim_out, 1, bias=False),
            LayerNorm2d(dim_out),
            nn.Conv2d(dim_out, dim_out, 3, padding=1, bias=False),
            LayerNorm2d(dim_out),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(B, C, h, w), 0 in padding -> (B, D, h, w)."""
        return self.neck(patches)


def build_clip_vision(name: str, weights: str) -> nn.Module:
    """CLIP's vision tower.

    Args:
        name: One of CLIP_SIZES, or a folder with the `config.json` of transformers.
        weights: "" = random, "hub", or a file or folder with `model.safetensors`.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if name in CLIP_SIZES:
        size: dict[str, Any] = CLIP_SIZES[name] | (_CLIP_LARGE if "_l_" in name else {})
        config = CLIPVisionConfig(**size)
    else:
        config = CLIPVisionConfig.from_pretrained(_folder("MODEL.EXPERT.CLIP_NAME", name))
    vision = CLIPVisionModel(config)
    if weights:
        file = _weights_file("MODEL.EXPERT.CLIP_WEIGHTS", name, weights)
        load_into(vision, clip_weights(file), source=str(file))
    return vision


def build_sam(name: str, weights: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    """SAM's image encoder, prompt encoder and mask decoder.

    Args:
        name: One of SAM_SIZES, or a folder with the `config.json` of transformers.
        weights: "" = random, "hub", or a file or folder with `model.safetensors`; the original
            `sam_vit_*.pth` will do, too.
    """
    from transformers import SamConfig, SamModel

    if name in SAM_SIZES:
        sizes = SAM_SIZES[name]
        step = sizes["num_hidden_layers"] // 4
        attend_everywhere = [step * number - 1 for number in range(1, 5)]
        config = SamConfig(vision_config=sizes | {"global_attn_indexes": attend_everywhere})
    else:
        config = SamConfig.from_pretrained(_folder("MODEL.EXPERT.SAM_NAME", name))
    # transformers' own default, 1e-6, is not what SAM was trained with.
    decoder: Any = config.mask_decoder_config
    decoder.layer_norm_eps = 1e-5
    model = SamModel(config)
    if weights:
        file = _weights_file("MODEL.EXPERT.SAM_WEIGHTS", name, weights)
        load_into(model, sam_weights(file), source=str(file))
    return model.vision_encoder, model.prompt_encoder, model.mask_decoder


def build_mask_decoder(
    *, dim: int, layers: int, heads: int, mlp_dim: int
) -> tuple[nn.Module, nn.Module]:
    """SAM's prompt encoder and mask decoder at any width, with PyTorch's starting values."""
    from transformers import SamConfig, SamModel

    config = SamConfig(
        # No image encoder is kept of this; the width of positions is half that of prompts.
        vision_config={"num_hidden_layers": 0, "hidden_size": 8, "num_pos_feats": dim // 2},
        prompt_encoder_config={"hidden_size": dim},
        mask_decoder_config={
            "hidden_size": dim,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "mlp_dim": mlp_dim,
            "iou_head_hidden_dim": dim,
            "layer_norm_eps": 1e-5,
        },
    )
    model: Any = SamModel(config)
    for part in (model.prompt_encoder, model.mask_decoder):
        for module in part.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    nn.init.normal_(model.prompt_encoder.shared_embedding.positional_embedding)
    return model.prompt_encoder, model.mask_decoder


def _folder(key: str, name: str) -> str:
    if not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"{key} is {name!r}; use one of {', '.join([*CLIP_SIZES, *SAM_SIZES])} or a folder "
            "with the config.json of transformers"
        )
    return name


def _weights_file(key: str, name: str, weights: str) -> Path:
    """The file of a name in the configuration.

    Raises:
        ValueError: "hub" for a size without a published name, or a folder without weights.
    """
    if weights == "hub":
        if name not in HUB:
            raise ValueError(f"{key} is 'hub', but {name!r} has no published name; give a file")
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(HUB[name], "model.safetensors"))
    path = Path(weights)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{key} is {weights!r}: {path} does not exist")
    return path
