"""Energies of the 8 x 8 cosine transform of luma: how an image was resampled and compressed.

JPEG transforms blocks of 8 x 8 pixels with the two-dimensional DCT-II,

    c_uv = sum over x, y of k_u(y) k_v(x) I(y, x),    k_u(y) = a_u cos(pi (2 y + 1) u / 16),

a_0 = sqrt(1/8), else sqrt(2/8), and rounds each c_uv to multiples of a step. Coefficients smaller
than half a step become 0. Two summaries of |c_uv| over the blocks of a patch:

    log mean |c|    the spectrum: resampling and blur lower its high frequencies
    mean log |c|    never above the first (Jensen); the more coefficients are 0, the lower

Both are taken on the image's own grid of blocks, which is that of its last JPEG unless it was
cropped since, and on a grid shifted by 4 px, for comparison: quantisation shows on the first only.

B images, C channels of the tokens, H W pixels, h w patches; 63 coefficients, all but the mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.modeling.canvas import valid_patches
from loupe.modeling.forensic.pixels import (
    cell_mean,
    log_mean,
    luma,
    normalised_log,
    relative_to_image,
)

# Side in pixels of a block of JPEG's cosine transform.
BLOCK = 8
NUM_COEFFICIENTS = BLOCK * BLOCK - 1


class SpectrumBranch(nn.Module):
    """Log mean and mean log of each coefficient's size, on both grids of blocks.

    Args:
        embed_dim: Width of the tokens.
        patch_size: 8, 16 or 32 pixels.
    """

    kernels: Tensor

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.register_buffer("kernels", cosine_kernels(), persistent=False)
        # On each of two grids: log mean, mean log, and the log mean relative to the image.
        self.tokens = nn.Sequential(
            nn.Conv2d(6 * NUM_COEFFICIENTS, embed_dim, 1),
            nn.GELU(),
            nn.Conv2d(embed_dim, embed_dim, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(embed_dim, embed_dim, 1),
        )

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        """(B, 3, H, W), (B, H, W) bool -> (B, C, h, w)."""
        return self.tokens(self.energies(images, valid_patches(valid, self.patch_size)))

    @torch.no_grad()
    def energies(self, images: Tensor, patch_valid: Tensor) -> Tensor:
        """(B, 3, H, W), (B, h, w) bool -> (B, 6 x 63, h, w) float32."""
        blocks = self.patch_size // BLOCK
        with torch.autocast(images.device.type, enabled=False):
            grey = luma(images)
            half = BLOCK // 2
            shifted = F.pad(grey[..., half:, half:], (0, half, 0, half), mode="replicate")
            features = []
            for grid in (grey, shifted):
                size = F.conv2d(grid, self.kernels, stride=BLOCK).abs_()
                mean = log_mean(size, blocks)
                mean_log = cell_mean(normalised_log(size), blocks)
                features += [mean, mean_log, relative_to_image(mean, patch_valid)]
            return torch.cat(features, dim=1)


def cosine_kernels() -> Tensor:
    """(63, 1, 8, 8) float32: the orthonormal two-dimensional cosines, without the constant.

    Row 8 u + v - 1 is vertical frequency u and horizontal frequency v.
    """
    place = torch.arange(BLOCK, dtype=torch.float64)
    waves = torch.cos(math.pi * (2 * place + 1) * place[:, None] / (2 * BLOCK))
    waves *= math.sqrt(2 / BLOCK)
    waves[0] /= math.sqrt(2)
    products = torch.einsum("uy,vx->uvyx", waves, waves).reshape(-1, 1, BLOCK, BLOCK)
    return products[1:].float()
