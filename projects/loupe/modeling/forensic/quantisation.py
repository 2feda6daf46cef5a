"""Quantisation steps of the JPEGs that an image went through, and blocks that do not share them.

JPEG rounds the coefficient c of each frequency to multiples of a step q. Decoded and transformed
again, c lies near such a multiple, so that cos(2 pi c / q) is near 1. Its mean over the blocks of
an image is the characteristic function of the coefficient's distribution at 1 / q. Here it is the
*period* P(f, q) of frequency f and step q:

    P(f, q) = sum_b w_b cos(2 pi c_b / q) / (sum_b w_b + PRIOR_COUNT)

It is above 0 for the steps of the image's last JPEG, and of earlier ones whose steps were coarser,
and below 0 where the shape of the distribution alone explains the values. A region
from elsewhere, or moved off the grid of blocks, does not share it: the aligned and non-aligned
double JPEG of Lin et al. (Pattern Recognition 42, 2009) and of Bianchi and Piva (IEEE TIFS 7(3),
2012); estimating the step goes back to Fan and de Queiroz (IEEE TIP 12(2), 2003). How much more or
less periodic a block b is than its image:

    excess_b = sum over f, q of P(f, q) w_b (cos(2 pi c_b / q) - mean of f, q)
    variance_b = sum over f, q of P(f, q)^2 w_b         (times 1/2, a cosine's variance, left out)

The z-score, excess / sqrt(variance + 1) summed over a neighbourhood, is far below 0 in a region
that does not share the image's steps.

The weight w_b is 1 for usable coefficients and 0 for
- blocks with a clipped pixel: clipping moves their coefficients, so that bright skies look foreign;
- blocks that reach into padding;
- |c| <= q / 2: coefficients that round to 0 fit any step.

The statistics need pixels as the JPEG decoder gave them: no resizing between file and network.

B images, F frequencies, Q steps, H W pixels, h w patches; blocks are squares of 8 px.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.modeling.canvas import valid_patches
from loupe.modeling.forensic.pixels import GREY_LEVELS, luma
from loupe.modeling.forensic.spectrum import BLOCK, cosine_kernels
from loupe.modeling.layers import ZeroInitConvs

# Frequencies u + v up to this are used; higher coefficients are mostly 0.
HIGHEST_FREQUENCY = 6
# Steps tried, in grey levels.
STEPS = (*range(2, 17), *range(18, 33, 2))
# Beyond this a normalised pixel has level 0 or 255, which are -1 and 1 (254 is .992).
CLIPPED = 0.996
# Prior count: shrinks the period towards 0 when few coefficients are usable.
PRIOR_COUNT = 8.0
# Sides, in blocks, of the neighbourhoods over which coefficients are judged together.
NEIGHBOURHOODS = (3, 7, 13)


class Excess(NamedTuple):
    """How much more periodic than its image each block is, and the variance of that by chance.

    Attributes:
        excess: (B, K, H / 8, W / 8), for K frequencies or K steps.
        variance: Likewise; a constant factor of 1/2 is left out.
    """

    excess: Tensor
    variance: Tensor


class QuantisationBranch(nn.Module):
    """Z-scores of blocks, and the periods of the image, as tokens.

    Args:
        embed_dim: Width of the tokens.
        patch_size: 8, 16 or 32 pixels.
    """

    kernels: Tensor
    steps: Tensor

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        low = [
            BLOCK * v + u - 1
            for v in range(BLOCK)
            for u in range(BLOCK)
            if 0 < u + v <= HIGHEST_FREQUENCY
        ]
        self.blocks = patch_size // BLOCK
        self.register_buffer("kernels", cosine_kernels()[low], persistent=False)
        steps = torch.tensor(STEPS, dtype=torch.float32)[:, None, None]
        self.register_buffer("steps", steps, persistent=False)
        # For all periods and for those above 0: z-scores by frequency and by step, and for each
        # neighbourhood a z-score and the logarithm of its variance.
        channels = 2 * (len(low) + len(STEPS) + 2 * len(NEIGHBOURHOODS))
        self.places = nn.Conv2d(channels, embed_dim, 1)
        self.image = nn.Linear(len(low) * len(STEPS), embed_dim)
        self.tokens = ZeroInitConvs(embed_dim)

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        """(B, 3, H, W), (B, H, W) bool -> (B, C, h, w)."""
        places, period = self.statistics(images, valid)
        return self.tokens(self.places(places) + self.image(period.flatten(1))[:, :, None, None])

    @torch.no_grad()
    def statistics(self, images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """What the branch learns from: of patches (B, S, h, w), and the period (B, F, Q)."""
        with torch.autocast(images.device.type, enabled=False):
            by_sign, period = self._excess(images.float(), valid)
            block_valid = valid_patches(valid, BLOCK)[:, None].float()
            features = []
            for by_frequency, by_step in by_sign:
                for blocks in (by_frequency, by_step):
                    features.append(_z_scores(blocks, self.blocks, self.blocks))
                total = Excess(*(part.sum(dim=1, keepdim=True) for part in by_frequency))
                for side in NEIGHBOURHOODS:
                    features.append(_z_scores(total, side, self.blocks))
                    # At the image's edge: the mean over the blocks that are there.
                    variance, present = (
                        F.avg_pool2d(value, side, 1, side // 2)
                        for value in (total.variance, block_valid)
                    )
                    variance = torch.log1p(variance / present.clamp(min=1e-6))
                    features.append(F.avg_pool2d(variance, self.blocks))
            return torch.cat(features, dim=1), period

    @torch.no_grad()
    def excess(self, images: Tensor, valid: Tensor) -> tuple[Excess, Tensor]:
        """The branch's measurement without its network.

        Args:
            images: (B, 3, H, W) float32 in [-1, 1].
            valid: (B, H, W) bool, False = padding.

        Returns:
            The excess (K = 2: over all periods, over those above 0); and the period (B, F, Q) in
            [-1, 1].
        """
        by_sign, period = self._excess(images, valid)
        parts = [
            torch.stack([by_frequency[i].sum(dim=1) for by_frequency, _ in by_sign], dim=1)
            for i in range(2)
        ]
        return Excess(*parts), period

    def _excess(self, images: Tensor, valid: Tensor) -> tuple[list[tuple[Excess, Excess]], Tensor]:
        """Excess by frequency (K = F) and by step (K = Q), and the period (B, F, Q).

        Twice: over all periods, and over those above 0.
        """
        unusable = (images.abs() > CLIPPED).any(dim=1, keepdim=True) | ~valid[:, None]
        usable = 1 - F.max_pool2d(unusable.float(), BLOCK)
        coefficients = F.conv2d(GREY_LEVELS * luma(images), self.kernels, stride=BLOCK)
        # 0 is no multiple that counts, of any step.
        coefficients = (coefficients * usable)[:, :, None]
        weight = (coefficients.abs() > 0.5 * self.steps).float()
        wave = (coefficients * (2 * math.pi / self.steps)).cos_().mul_(weight)
        count, total = weight.sum(dim=(3, 4)), wave.sum(dim=(3, 4))
        period = total / (count + PRIOR_COUNT)
        # Subtract the expected squared mean of n random cosines, 1 / (2 n), from the square.
        chance = 0.5 / (count + PRIOR_COUNT)
        period = period * (1 - chance / period.square().clamp(min=1e-9)).clamp(min=0)
        mean = total / count.clamp(min=1)
        periods = torch.stack([period, period.clamp(min=0)], dim=1)
        by_frequency, by_step = (
            _weighted_excess(wave, weight, periods, mean, kept) for kept in ("f", "q")
        )
        return list(zip(by_frequency, by_step, strict=True)), period


def _weighted_excess(
    wave: Tensor, weight: Tensor, periods: Tensor, mean: Tensor, kept: str
) -> list[Excess]:
    """Sums over steps (`kept` "f") or over frequencies ("q"), for each of R sets of periods.

    Args:
        wave: (B, F, Q, H / 8, W / 8), weighted cosines.
        weight: Likewise, 1 = usable.
        periods: (B, R, F, Q).
        mean: (B, F, Q) of the cosines.
        kept: The axis that stays.
    """
    sum_over = f"bfqhw,brfq->br{kept}hw"
    # All products with the weights at once: the weights are much to read.
    factors = torch.cat([periods * mean[:, None], periods.square()], dim=1)
    expected, variance = torch.einsum(sum_over, weight, factors).chunk(2, dim=1)
    excess = torch.einsum(sum_over, wave, periods) - expected
    return [Excess(*one) for one in zip(excess.unbind(1), variance.unbind(1), strict=True)]


def _z_scores(blocks: Excess, side: int, patch: int) -> Tensor:
    """(B, K, h, w): excess in standard deviations over `side` x `side` blocks, mean of a patch.

    If `side` equals `patch` (blocks per side of a patch), each patch is its own neighbourhood.
    """
    stride = side if side == patch else 1
    excess, variance = (
        side * side * F.avg_pool2d(value, side, stride, (side - stride) // 2) for value in blocks
    )
    scores = excess / (variance + 1.0).sqrt()
    return scores if side == patch else F.avg_pool2d(scores, patch)
