"""Perception Encoder (arXiv 2504.13181) through timm: the encoder that Loupe freezes (Sec. 2.1).

B images, C channels, H W pixels, h w patches, N tokens.
"""

from __future__ import annotations

import timm
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.checkpoint import encoder_weights, load_into

FAMILIES = ("vit_pe_core_", "vit_pe_spatial_")


class PerceptionEncoder(Backbone):
    """A timm Perception Encoder that returns its patches and its pooled feature in one pass.

    Args:
        name: `vit_pe_core_*` or `vit_pe_spatial_*`.
        image_size: Side of the square image the position table is made for; 0 = published size.
            Any other grid is accepted at run time (the table is then resized by timm).
        weights: "" = random, "hub" = timm's published weights, else a file (see
            `loupe.checkpoint.encoder_weights`).
        stem: "patch" or "residual" (see `ResidualStem`).
        depth: Number of blocks kept, from the first; 0 = all.
        overrides: timm arguments that differ from the published model (`patch_size`, `embed_dim`,
            `num_heads`).

    Raises:
        ValueError: `name` is no Perception Encoder of timm, or the stem does not fit the patch.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        image_size: int = 0,
        weights: str = "",
        stem: str = "patch",
        depth: int = 0,
        overrides: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        known = [model for family in FAMILIES for model in timm.list_models(family + "*")]
        if name not in known:
            raise ValueError(
                f"MODEL.PERCEPTION_ENCODER.NAME is {name!r}; timm {timm.__version__} has "
                + ", ".join(known)
            )
        self.name = name
        sizes = {"img_size": image_size} if image_size else {}
        self.vit = timm.create_model(
            name,
            pretrained=weights == "hub",
            num_classes=0,
            dynamic_img_size=True,
            **sizes,
            **(overrides or {}),
        )
        if depth:
            self.vit.blocks = self.vit.blocks[:depth]
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        self.embed_dim: int = self.vit.embed_dim
        self.grid_size: tuple[int, int] = self.vit.patch_embed.grid_size
        if stem == "residual":
            self.vit.patch_embed.proj = ResidualStem(self.embed_dim, self.patch_size)
        elif stem != "patch":
            raise ValueError(f"MODEL.PERCEPTION_ENCODER.STEM is {stem!r}; use patch or residual")
        if weights not in ("", "hub"):
            load_into(self.vit, encoder_weights(weights, self.vit), source=weights)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict:
        """Reads MODEL.PERCEPTION_ENCODER and INPUT.SIZE."""
        encoder = cfg.MODEL.PERCEPTION_ENCODER
        overrides = {
            "patch_size": encoder.PATCH_SIZE,
            "embed_dim": encoder.EMBED_DIM,
            "num_heads": encoder.NUM_HEADS,
        }
        return {
            "name": encoder.NAME,
            "image_size": cfg.INPUT.SIZE,
            # MODEL.WEIGHTS brings the encoder along, unless it is declared not to.
            "weights": ""
            if cfg.MODEL.WEIGHTS and "backbone" not in cfg.MODEL.NEW_PARTS
            else encoder.WEIGHTS,
            "stem": encoder.STEM,
            "depth": encoder.DEPTH,
            "overrides": {key: value for key, value in overrides.items() if value},
        }

    @property
    def size_divisibility(self) -> int:
        """Image sides must be multiples of this (pixels)."""
        return self.patch_size

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Shape of the patch features."""
        return {"patches": ShapeSpec(channels=self.embed_dim, stride=self.patch_size)}

    def forward(self, images: Tensor, patch_valid: Tensor | None = None) -> dict[str, Tensor]:
        """Encodes normalised images.

        Args:
            images: (B, 3, H, W), both sides multiples of the patch size.
            patch_valid: (B, h, w) bool, False = padding that no token may attend to; None = all
                valid (and the faster kernels).

        Returns:
            `patches` (B, C, h, w) after the last norm, and `pooled` (B, C): the attention pool of
            core models, the mean of the valid patches for spatial ones, which have no pool.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"image of {height} x {width} px: both sides must be multiples of the patch size "
                f"{self.patch_size}; set INPUT.SIZE to such a multiple"
            )
        mask = self._token_mask(patch_valid)
        h, w = height // self.patch_size, width // self.patch_size
        tokens = self.vit.forward_features(images, attn_mask=mask)
        patches = tokens[:, self.vit.num_prefix_tokens :]
        patches = patches.transpose(1, 2).reshape(len(images), self.embed_dim, h, w)
        return {"patches": patches, "pooled": self._pool(tokens, patches, mask, patch_valid)}

    def _token_mask(self, patch_valid: Tensor | None) -> Tensor | None:
        """(B, 1, 1, N) bool over all tokens; prefix tokens are always valid."""
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


# Second differences along four directions, and their sum: what is left of an image when its
# smooth content is removed (the idea of the SRM residuals of Fridrich and Kodovsky, 2012).
RESIDUAL_KERNELS = (
    ((0, 0, 0), (1, -2, 1), (0, 0, 0)),
    ((0, 1, 0), (0, -2, 0), (0, 1, 0)),
    ((1, 0, 0), (0, -2, 0), (0, 0, 1)),
    ((0, 0, 1), (0, -2, 0), (1, 0, 0)),
    ((-1, 2, -1), (2, -4, 2), (-1, 2, -1)),
)
NUM_RESIDUALS = 3 * len(RESIDUAL_KERNELS)
# A quarter of a grey level, so that flat cells have a logarithm.
ENERGY_FLOOR = 0.002


class ResidualStem(nn.Module):
    """Local energies of high-pass residuals in place of the patch embedding.

    A small encoder trained from scratch on few images finds no forgery traces through a linear
    patch embedding. Here it is given the logarithm of the residuals' energy in cells of 4 px, and
    in cells of 8 px for each of the four pixels of a 2 x 2 raster (which colour filter arrays and
    resampling make unequal); both as they are, and relative to the whole image: a pasted region
    has another noise level than the rest.

    Args:
        embed_dim: Width of the tokens.
        patch_size: 8, 16 or 32.
    """

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        if patch_size not in (8, 16, 32):
            raise ValueError(
                f"STEM: residual needs a patch size of 8, 16 or 32, not {patch_size}; "
                "use STEM: patch or an encoder with such a patch"
            )
        kernels = torch.tensor(RESIDUAL_KERNELS, dtype=torch.float32)[:, None]
        self.register_buffer("kernels", kernels.repeat(3, 1, 1, 1), persistent=False)
        cells = 3 + 2 * NUM_RESIDUALS
        self.cells = nn.Sequential(nn.Conv2d(cells, 96, 3, stride=2, padding=1), nn.GELU())
        layers: list[nn.Module] = [
            nn.Conv2d(96 + 8 * NUM_RESIDUALS, embed_dim, 3, padding=1),
            nn.GELU(),
        ]
        for _ in range(patch_size.bit_length() - 4):
            layers += [nn.Conv2d(embed_dim, embed_dim, 3, stride=2, padding=1), nn.GELU()]
        self.tokens = nn.Sequential(*layers, nn.Conv2d(embed_dim, embed_dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w)."""
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        energy = F.conv2d(padded, self.kernels, groups=3).abs()
        fine = _log_energy(energy, 4)
        raster = _log_energy(F.pixel_unshuffle(energy, 2), 4)
        colour = F.avg_pool2d(images, 4)
        x = self.cells(torch.cat([colour, fine, _relative(fine)], dim=1))
        return self.tokens(torch.cat([x, raster, _relative(raster)], dim=1))


def _log_energy(energy: Tensor, cell: int) -> Tensor:
    """Mean over square cells, as a logarithm of about zero mean and unit variance."""
    return (F.avg_pool2d(energy, cell) + ENERGY_FLOOR).log() / 1.5 + 2.0


def _relative(features: Tensor) -> Tensor:
    """Each channel relative to its mean and deviation over the image."""
    mean = features.mean(dim=(2, 3), keepdim=True)
    deviation = features.std(dim=(2, 3), keepdim=True)
    return (features - mean) / (deviation + 0.1)


@BACKBONE_REGISTRY.register()
def build_perception_encoder(
    cfg: CfgNode, input_shape: ShapeSpec | None = None
) -> PerceptionEncoder:
    """Detectron2's entry: `MODEL.BACKBONE.NAME: build_perception_encoder`."""
    return PerceptionEncoder(cfg, input_shape)
