"""A stem that sees the traces of processing, for small encoders trained from scratch.

B images, C channels, H W pixels, h w patches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.modeling.forensic.copies import CopyBranch
from loupe.modeling.layers import SilentConvs

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
# Excess and its variance, of blocks.
Pair = tuple[Tensor, Tensor]
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
        copies: Also look for parts that the image holds twice.
    """

    def __init__(
        self, embed_dim: int, patch_size: int, quantisation: bool = False, copies: bool = False
    ) -> None:
        super().__init__()
        if patch_size not in (8, 16, 32):
            raise ValueError(
                f"a forensic STEM needs a patch size of 8, 16 or 32, not {patch_size}; "
                "use STEM: patch or an encoder with such a patch"
            )
        self.residuals = ResidualBranch(embed_dim, patch_size)
        self.spectrum = SpectrumBranch(embed_dim, patch_size)
        self.quantisation = QuantisationBranch(embed_dim, patch_size) if quantisation else None
        self.copies = CopyBranch(embed_dim, patch_size) if copies else None
        self.patch_valid: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w).

        `patch_valid` (B, h, w), set by the encoder because timm passes images alone, keeps padding
        out of the statistics of the image.
        """
        valid = self.patch_valid
        tokens = self.residuals(images, valid) + self.spectrum(images, valid)
        if self.quantisation is not None:
            tokens = tokens + self.quantisation(images)
        if self.copies is not None:
            tokens = tokens + self.copies(127.5 * _luma(images), 1 - _padding(images))
        return tokens


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
    less its mean, times the period, says how much more or less periodic a block is than the image.

    Blocks with a clipped pixel count for nothing: clipping moves their coefficients, so that bright
    skies look foreign. Nor do those that reach into padding, which is exactly 0, as no level of 8
    bits is (with PIXEL_MEAN and PIXEL_STD of 127.5, which the encoder sees to).

    F coefficients, Q steps.
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
        self.tokens = SilentConvs(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], padding 0 -> (B, C, h, w)."""
        places, period = self.statistics(images)
        return self.tokens(self.places(places) + self.image(period.flatten(1))[:, :, None, None])

    @torch.no_grad()
    def statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the branch learns from: of patches (B, S, h, w), and the period (B, F, Q)."""
        with torch.autocast(images.device.type, enabled=False):
            sums, period = self._sums(images.float())
            # The share of blocks of a neighbourhood that are the image's.
            inside = (F.avg_pool2d(_padding(images), BLOCK) < 1).float()
            features = []
            for by_coefficient, by_step in sums:
                for pair in (by_coefficient, by_step):
                    features.append(_surprise(*pair, self.blocks, self.blocks))
                excess, variance = (value.sum(dim=1, keepdim=True) for value in by_coefficient)
                for side in NEIGHBOURHOODS:
                    features.append(_surprise(excess, variance, side, self.blocks))
                    near, share = (
                        F.avg_pool2d(value, side, 1, side // 2) for value in (variance, inside)
                    )
                    near = torch.log1p(near / share.clamp(min=1e-6))
                    features.append(F.avg_pool2d(near, self.blocks))
            return torch.cat(features, dim=1), period

    @torch.no_grad()
    def excess(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How much more periodic than the image each block is; `STEM: forensic-jpeg` without a net.

        Args:
            images: (B, 3, H, W) float32 in [-1, 1], padding 0.

        Returns:
            Excess and its variance (but for a factor), (B, 2, H / 8, W / 8) each: of all periods,
            of those above 0; and the period, (B, F, Q) in [-1, 1].
        """
        sums, period = self._sums(images)
        excess, variance = (
            torch.stack([pair[i].sum(dim=1) for pair, _ in sums], dim=1) for i in range(2)
        )
        return excess, variance, period

    def _sums(self, images: Tensor) -> tuple[list[tuple[Pair, Pair]], Tensor]:
        """Excess and variance of blocks over steps (B, F, ...) and over coefficients (B, Q, ...).

        Of all periods, of those above 0; and the period (B, F, Q).
        """
        coefficients = F.conv2d(127.5 * _luma(images), self.kernels, stride=BLOCK)[:, :, None]
        unusable = ((images.abs() > CLIPPED) | (images == 0)).any(dim=1, keepdim=True)
        usable = 1 - F.max_pool2d(unusable.float(), BLOCK)
        # What a step makes zero has every period, and says nothing.
        weight = (coefficients.abs() > 0.5 * self.steps) * usable[:, :, None]
        wave = (coefficients * (2 * math.pi / self.steps)).cos_().mul_(weight)
        count, total = weight.sum(dim=(3, 4)), wave.sum(dim=(3, 4))
        period = total / (count + PRIOR_COUNT)
        # Less what chance gives (a cosine's variance is a half), which is nothing to go by.
        chance = 0.5 / (count + PRIOR_COUNT)
        period = period * (1 - chance / period.square().clamp(min=1e-9)).clamp(min=0)
        mean = total / count.clamp(min=1)
        sums = [
            (
                _weighted_excess(wave, weight, part, mean, "f"),
                _weighted_excess(wave, weight, part, mean, "q"),
            )
            for part in (period, period.clamp(min=0))
        ]
        return sums, period


def _weighted_excess(wave: Tensor, weight: Tensor, period: Tensor, mean: Tensor, kept: str) -> Pair:
    """Excess and variance of blocks, summed over all but "f" (coefficients) or "q" (steps)."""
    sum_over = f"bfqhw,bfq->b{kept}hw"
    excess = torch.einsum(sum_over, wave, period) - torch.einsum(sum_over, weight, period * mean)
    return excess, torch.einsum(sum_over, weight, period.square())


def _surprise(excess: Tensor, variance: Tensor, side: int, blocks: int) -> Tensor:
    """Excess in standard deviations over `side` x `side` blocks, averaged over patches.

    Where `side` is that of a patch, patches themselves are the neighbourhoods.
    """
    stride = side if side == blocks else 1
    near, spread = (
        side * side * F.avg_pool2d(value, side, stride, (side - stride) // 2)
        for value in (excess, variance)
    )
    surprise = near / (spread + 1.0).sqrt()
    return surprise if side == blocks else F.avg_pool2d(surprise, blocks)


def _padding(images: Tensor) -> Tensor:
    """(B, 1, H, W), 1 = padding, which is exactly 0, as no level of 8 bits is."""
    return (images == 0).all(dim=1, keepdim=True).float()


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
