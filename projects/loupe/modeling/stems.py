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


# Quantisation: the coefficients asked (the lower ones, others are mostly zero) and the steps tried.
HIGHEST_FREQUENCY = 6
STEPS = (*range(2, 17), *range(18, 33, 2))
# Beyond this a normalised pixel has the lowest or highest level.
CLIPPED = 0.996
# So many coefficients of no period stand beside those of an image, lest few decide.
PRIOR_COUNT = 8.0
# Sides of the neighbourhoods, in blocks, over which coefficients are judged together.
NEIGHBOURHOODS = (3, 7, 13)


class ForensicStem(nn.Module):
    """Local statistics of residuals and block spectra in place of the patch embedding.

    A small encoder trained from scratch on few images finds no forgery traces through a linear
    patch embedding. Here it is given what forensics looks at, and learns what to make of it: a
    pasted region has another noise, another resampling and another compression than the rest.

    Args:
        embed_dim: Width of the tokens.
        patch_size: 8, 16 or 32.
        quantisation: Also look for the steps of earlier JPEGs.
    """

    def __init__(self, embed_dim: int, patch_size: int, quantisation: bool = False) -> None:
        super().__init__()
        if patch_size not in (8, 16, 32):
            raise ValueError(
                f"STEM: forensic needs a patch size of 8, 16 or 32, not {patch_size}; "
                "use STEM: patch or an encoder with such a patch"
            )
        self.residuals = ResidualBranch(embed_dim, patch_size)
        self.spectrum = SpectrumBranch(embed_dim, patch_size)
        self.quantisation = QuantisationBranch(embed_dim, patch_size) if quantisation else None
        self.patch_valid: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w).

        `patch_valid` (B, h, w), set by the encoder because timm passes images alone, keeps padding
        out of the statistics of the image.
        """
        valid = self.patch_valid
        tokens = self.residuals(images, valid) + self.spectrum(images, valid)
        return tokens if self.quantisation is None else tokens + self.quantisation(images)


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
            luma = _luma(images)
            half = BLOCK // 2
            shifted = F.pad(luma[..., half:, half:], (0, half, 0, half), mode="replicate")
            features = []
            for grid in (luma, shifted):
                size = F.conv2d(grid, self.kernels, stride=BLOCK).abs()
                mean = _log_mean(size, self.blocks)
                zeros = F.avg_pool2d(_normalised_log(size), self.blocks)
                features += [mean, zeros, _relative(mean, valid)]
            return torch.cat(features, dim=1)


class QuantisationBranch(nn.Module):
    """Steps of the JPEGs that the image went through, and the places that do not share them.

    A coefficient that was once quantised by a step q lies near its multiples, so that
    cos(2 pi c / q) is near 1. Its mean over the image, the characteristic function of the
    coefficient's distribution at 1 / q, is the image's *period*: above 0 for the steps of its
    JPEGs, below for what the shape of the distribution explains. A region from elsewhere, or moved
    off the grid of blocks, does not share it (double quantisation: Lin et al. 2009). The cosine
    less its mean, times the period, says how much more or less periodic a place is than the image.

    Blocks with a clipped pixel count for nothing: clipping moves their coefficients, so that bright
    skies look foreign. Nor do those with padding, which is exactly 0, as no level of 8 bits is.
    """

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        low = [
            BLOCK * v + u - 1
            for v in range(BLOCK)
            for u in range(BLOCK)
            if 0 < u + v <= HIGHEST_FREQUENCY
        ]
        self.blocks = patch_size // BLOCK
        self.register_buffer("kernels", _cosine_kernels()[low], persistent=False)
        steps = torch.tensor(STEPS, dtype=torch.float32)[:, None, None]
        self.register_buffer("steps", steps, persistent=False)
        # Of all periods and of those above 0.
        channels = 2 * (len(low) + len(STEPS) + 2 * len(NEIGHBOURHOODS))
        self.places = nn.Conv2d(channels, embed_dim, 1)
        self.image = nn.Linear(len(low) * len(STEPS), embed_dim)
        self.tokens = nn.Sequential(
            nn.GELU(),
            nn.Conv2d(embed_dim, embed_dim, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(embed_dim, embed_dim, 1),
        )
        # Silent at first, so that an encoder trained without it can learn to hear it.
        nn.init.zeros_(self.tokens[-1].weight)
        nn.init.zeros_(self.tokens[-1].bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], padding 0 -> (B, C, h, w)."""
        places, period = self._statistics(images)
        return self.tokens(self.places(places) + self.image(period)[:, :, None, None])

    @torch.no_grad()
    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Excess of each place (B, S, h, w); period of each coefficient and step (B, P)."""
        with torch.autocast(images.device.type, enabled=False):
            excess, spread, period = self.excess(images.float())
            above = (period > 0).float()
            features = [
                *self._sums(excess, spread),
                *self._sums(excess * above, spread * above),
            ]
            return torch.cat(features, dim=1), period.flatten(1)

    def excess(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How periodic each block is beside the image, by coefficient and step.

        Args:
            images: (B, 3, H, W) float32 in [-1, 1], padding 0.

        Returns:
            Excess and its variance (but for a factor), (B, F, Q, H / 8, W / 8), and the image's
            period, (B, F, Q, 1, 1) in [-1, 1].
        """
        coefficients = F.conv2d(127.5 * _luma(images), self.kernels, stride=BLOCK)[:, :, None]
        unusable = ((images.abs() > CLIPPED) | (images == 0)).any(dim=1, keepdim=True)
        usable = 1 - F.max_pool2d(unusable.float(), BLOCK)
        # What a step makes zero has every period, and says nothing.
        weight = (coefficients.abs() > 0.5 * self.steps) * usable[:, :, None]
        wave = torch.cos(coefficients * (2 * math.pi / self.steps)) * weight
        count = weight.sum(dim=(3, 4), keepdim=True)
        total = wave.sum(dim=(3, 4), keepdim=True)
        period = total / (count + PRIOR_COUNT)
        # Less what chance gives (a cosine's variance is a half), which is nothing to go by.
        chance = 0.5 / (count + PRIOR_COUNT)
        period = period * (1 - chance / period.square().clamp(min=1e-9)).clamp(min=0)
        excess = (wave - weight * total / count.clamp(min=1)) * period
        return excess, weight * period.square(), period

    def _sums(self, excess: Tensor, spread: Tensor) -> list[Tensor]:
        """Over steps, over coefficients, and over both in neighbourhoods of several sizes."""
        features = [
            _surprise(excess.sum(dim), spread.sum(dim), self.blocks, self.blocks) for dim in (2, 1)
        ]
        excess = excess.sum(dim=(1, 2))[:, None]
        spread = spread.sum(dim=(1, 2))[:, None]
        for side in NEIGHBOURHOODS:
            features.append(_surprise(excess, spread, side, self.blocks))
            near = F.avg_pool2d(spread, side, 1, side // 2, count_include_pad=False)
            features.append(F.avg_pool2d(torch.log1p(near), self.blocks))
        return features


def _surprise(excess: Tensor, spread: Tensor, side: int, blocks: int) -> Tensor:
    """Excess in standard deviations over `side` x `side` blocks, averaged over patches.

    Where `side` is that of a patch, patches themselves are the neighbourhoods.
    """
    stride = side if side == blocks else 1
    near, spread = (
        side * side * F.avg_pool2d(value, side, stride, (side - stride) // 2)
        for value in (excess, spread)
    )
    surprise = near / (spread + 1.0).sqrt()
    return surprise if side == blocks else F.avg_pool2d(surprise, blocks)


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, device=images.device)[:, None, None]
    return (images.float() * weights).sum(dim=1, keepdim=True)


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
