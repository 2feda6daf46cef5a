"""A stem that sees the traces of processing, for small encoders trained from scratch.

B images, C channels, H W pixels, h w patches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
# Side of a block of the cosine transform, that of JPEG, and its coefficients but for the mean.
BLOCK = 8
NUM_COEFFICIENTS = BLOCK * BLOCK - 1
LUMA = (0.299, 0.587, 0.114)
# A quarter of a grey level, so that flat cells have a logarithm.
ENERGY_FLOOR = 0.002


class ForensicStem(nn.Module):
    """Local statistics of residuals and block spectra in place of the patch embedding.

    A small encoder trained from scratch on few images finds no forgery traces through a linear
    patch embedding. Here it is given what forensics looks at, and learns what to make of it: a
    pasted region has another noise, another resampling and another compression than the rest.

    Args:
        embed_dim: Width of the tokens.
        patch_size: 8, 16 or 32.
    """

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        if patch_size not in (8, 16, 32):
            raise ValueError(
                f"STEM: forensic needs a patch size of 8, 16 or 32, not {patch_size}; "
                "use STEM: patch or an encoder with such a patch"
            )
        self.residuals = ResidualBranch(embed_dim, patch_size)
        self.spectrum = SpectrumBranch(embed_dim, patch_size)
        self.patch_valid: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w).

        `patch_valid` (B, h, w), set by the encoder because timm passes images alone, keeps padding
        out of the statistics of the image.
        """
        valid = self.patch_valid
        return self.residuals(images, valid) + self.spectrum(images, valid)


class ResidualBranch(nn.Module):
    """Energies of high-pass residuals: the noise and its correlations.

    Their logarithms in cells of 4 px, and in cells of 8 px for each of the four pixels of a 2 x 2
    raster (which colour filter arrays and resampling make unequal); both as they are, and relative
    to the whole image.
    """

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        kernels = torch.tensor(RESIDUAL_KERNELS, dtype=torch.float32)[:, None]
        self.register_buffer("kernels", kernels.repeat(3, 1, 1, 1), persistent=False)
        self.cells = nn.Sequential(
            nn.Conv2d(3 + 2 * NUM_RESIDUALS, 96, 3, stride=2, padding=1), nn.GELU()
        )
        layers: list[nn.Module] = [
            nn.Conv2d(96 + 8 * NUM_RESIDUALS, embed_dim, 3, padding=1),
            nn.GELU(),
        ]
        for _ in range(patch_size.bit_length() - 4):
            layers += [nn.Conv2d(embed_dim, embed_dim, 3, stride=2, padding=1), nn.GELU()]
        self.tokens = nn.Sequential(*layers, nn.Conv2d(embed_dim, embed_dim, 1))

    def forward(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w); `valid` as in `ForensicStem`."""
        fine, raster = self._energies(images)
        x = torch.cat([F.avg_pool2d(images, 4), fine, _relative(fine, valid)], dim=1)
        return self.tokens(torch.cat([self.cells(x), raster, _relative(raster, valid)], dim=1))

    @torch.no_grad()
    def _energies(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # Never in half precision: its steps near 1 are larger than the traces.
        with torch.autocast(images.device.type, enabled=False):
            padded = F.pad(images.float(), (1, 1, 1, 1), mode="replicate")
            energy = F.conv2d(padded, self.kernels, groups=3).abs()
            return _log_mean(energy, 4), _log_mean(F.pixel_unshuffle(energy, 2), 4)


class SpectrumBranch(nn.Module):
    """Energies of the 8 x 8 cosine transform of luma: resampling and compression.

    On the image's own grid of blocks, which is that of its last JPEG if it was not cropped, and on
    one shifted by half a block. The logarithm of the mean tells the spectrum; the mean of the
    logarithm falls where coefficients were quantised to zero.
    """

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.blocks = patch_size // BLOCK
        self.register_buffer("kernels", _cosine_kernels(), persistent=False)
        self.tokens = nn.Sequential(
            nn.Conv2d(6 * NUM_COEFFICIENTS, embed_dim, 1),
            nn.GELU(),
            nn.Conv2d(embed_dim, embed_dim, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(embed_dim, embed_dim, 1),
        )

    def forward(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w); `valid` as in `ForensicStem`."""
        return self.tokens(self._energies(images, valid))

    @torch.no_grad()
    def _energies(self, images: Tensor, valid: Tensor | None) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            weights = torch.tensor(LUMA, device=images.device)[:, None, None]
            luma = (images.float() * weights).sum(dim=1, keepdim=True)
            half = BLOCK // 2
            shifted = F.pad(luma[..., half:, half:], (0, half, 0, half), mode="replicate")
            features = []
            for grid in (luma, shifted):
                size = F.conv2d(grid, self.kernels, stride=BLOCK).abs()
                mean = _log_mean(size, self.blocks)
                zeros = F.avg_pool2d(_normalised_log(size), self.blocks)
                features += [mean, zeros, _relative(mean, valid)]
            return torch.cat(features, dim=1)


def _cosine_kernels() -> Tensor:
    """(63, 1, 8, 8) float32: the orthonormal two-dimensional cosines but for the constant."""
    place = torch.arange(BLOCK, dtype=torch.float64)
    waves = torch.cos(math.pi * (2 * place + 1) * place[:, None] / (2 * BLOCK))
    waves *= math.sqrt(2 / BLOCK)
    waves[0] /= math.sqrt(2)
    products = torch.einsum("uy,vx->uvyx", waves, waves).reshape(-1, 1, BLOCK, BLOCK)
    return products[1:].float()


def _log_mean(energy: Tensor, cell: int) -> Tensor:
    return _normalised_log(F.avg_pool2d(energy, cell))


def _normalised_log(energy: Tensor) -> Tensor:
    """Logarithm, of about zero mean and unit variance for photographs."""
    return (energy + ENERGY_FLOOR).log() / 1.5 + 2.0


def _relative(features: Tensor, valid: Tensor | None) -> Tensor:
    """Each channel relative to its mean and deviation over the image, padding left out."""
    if valid is None:
        weight = torch.ones_like(features[:1, :1])
    else:
        weight = F.interpolate(valid[:, None].to(features.dtype), features.shape[2:])
    total = weight.sum(dim=(2, 3), keepdim=True)
    mean = (features * weight).sum(dim=(2, 3), keepdim=True) / total
    centred = features - mean
    variance = (centred.square() * weight).sum(dim=(2, 3), keepdim=True) / total
    return centred / (variance.sqrt() + 0.1)
