"""The sum of the forensic branches, in the place of a ViT's patch embedding.

B images, C channels of the tokens, H W pixels, h w patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loupe.modeling.forensic.copies import CopyBranch
from loupe.modeling.forensic.quantisation import QuantisationBranch
from loupe.modeling.forensic.residuals import ResidualBranch
from loupe.modeling.forensic.spectrum import SpectrumBranch

# MODEL.PERCEPTION_ENCODER.STEM: the branches that a stem adds to residuals and spectrum.
STEMS = {
    "forensic": (),
    "forensic-jpeg": ("quantisation",),
    "forensic-copies": ("quantisation", "copies"),
}
# These stems need unscaled 8-bit values: PIXEL_MEAN and PIXEL_STD of 127.5.
WITH_GREY_LEVELS = ("forensic-jpeg", "forensic-copies")
PATCH_SIZES = (8, 16, 32)


class ForensicStem(nn.Module):
    """Tokens of residuals and spectrum, and of the further branches that a stem's name adds.

    Args:
        embed_dim: Width of the tokens.
        patch_size: One of PATCH_SIZES.
        kind: One of STEMS.

    Raises:
        ValueError: The patch is not made of whole 8 x 8 blocks.
    """

    def __init__(self, embed_dim: int, patch_size: int, kind: str) -> None:
        super().__init__()
        if patch_size not in PATCH_SIZES:
            raise ValueError(
                f"a forensic STEM needs a patch size of 8, 16 or 32, not {patch_size}; "
                "use STEM: patch or an encoder with such a patch"
            )
        added = STEMS[kind]
        self.residuals = ResidualBranch(embed_dim, patch_size)
        self.spectrum = SpectrumBranch(embed_dim, patch_size)
        self.quantisation = (
            QuantisationBranch(embed_dim, patch_size) if "quantisation" in added else None
        )
        self.copies = CopyBranch(embed_dim, patch_size) if "copies" in added else None

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], (B, H, W) bool -> (B, C, h, w)."""
        tokens = self.residuals(images, valid) + self.spectrum(images, valid)
        for branch in (self.quantisation, self.copies):
            if branch is not None:
                tokens = tokens + branch(images, valid)
        return tokens


class ForensicPatchEmbedding(nn.Module):
    """A forensic stem with the interface of `timm.layers.PatchEmbed`.

    timm's ViT hands one tensor to its patch embedding. So the mask travels in that tensor, as a
    fourth channel of the image (1 = image, 0 = padding): an argument of the call, which concurrent
    calls cannot mix up. `with_mask` joins the two and `forward` takes them apart.

    Args:
        embed_dim: Width of the tokens.
        patch_size: Sides of a patch, equal.
        grid_size: (h, w) that the ViT's position table is made for.
        kind: See `ForensicStem`.
    """

    def __init__(
        self, *, embed_dim: int, patch_size: tuple[int, int], grid_size: tuple[int, int], kind: str
    ) -> None:
        super().__init__()
        self.patch_size, self.grid_size = patch_size, grid_size
        self.proj = ForensicStem(embed_dim, patch_size[0], kind)

    @staticmethod
    def with_mask(images: Tensor, valid: Tensor | None) -> Tensor:
        """(B, 3, H, W), (B, H, W) bool or None = all valid -> (B, 4, H, W)."""
        if valid is None:
            valid = torch.ones_like(images[:, 0])
        return torch.cat([images, valid[:, None].to(images.dtype)], dim=1)

    def forward(self, masked: Tensor) -> Tensor:
        """(B, 4, H, W) of `with_mask` -> (B, h, w, C), the layout of timm's dynamic sizes."""
        images, mask = masked.split([3, 1], dim=1)
        return self.proj(images, mask[:, 0] > 0.5).permute(0, 2, 3, 1)
