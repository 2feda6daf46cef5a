"""Conditional pixel decoder (Sec. 2.2): Mask2Former's pixel decoder, conditioned on the image.

Each layer is post-norm, on x (B, S, C), the tokens of three levels:

    x = LN(x + deformable attention(x + position, x))
    x = LN(x + condition)           one of the two below, or none
    x = LN(x + W2 ReLU(W1 x))

The condition is c = p e_1 + (1 - p) e_0, with the probability p that the image is forged and two
learned embeddings. "token", as released: c attends to all pixels, and the result is added to every
pixel. "pixel": each pixel attends to the two embeddings, weighted by 1 - p and p.

B images, C channels (C_in of the pyramid), S tokens of three levels, T condition tokens,
h w cells of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.modeling.deformable_attention import DeformableAttention
from loupe.modeling.layers import FeedForward, recomputed, sine_position, xavier_

# The encoder sees the three coarser maps of the pyramid; the finest joins afterwards.
NUM_LEVELS = 3
NORM_GROUPS = 32


class PixelFeatures(NamedTuple):
    """Output of the pixel decoder.

    Attributes:
        mask_features: (B, C, 4h, 4w), to be multiplied with the queries' mask embeddings.
        memory: three maps (B, C, h', w'), coarse first, for the mask decoder to attend to.
    """

    mask_features: Tensor
    memory: list[Tensor]


class Condition(NamedTuple):
    """How likely the image is forged, as the pixel decoder takes it.

    Attributes:
        embeddings: (2, T, C); row 0 = authentic, row 1 = forged.
        probability: (B,) in [0, 1], 1 = forged.
    """

    embeddings: Tensor
    probability: Tensor


class TokenCondition(nn.Module):
    """The interpolated embedding attends to all pixels; the result is added to each (released)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, condition: Condition, valid: Tensor | None) -> Tensor:
        """(B, S, C) -> (B, S, C); `valid` (B, S) bool, False = padding, not attended to."""
        authentic, forged = condition.embeddings.to(x.dtype)
        p = condition.probability.to(x.dtype)[:, None, None]
        query = p * forged + (1 - p) * authentic
        ignored = None if valid is None else ~valid
        pooled, _ = self.attention(query, x, x, key_padding_mask=ignored, need_weights=False)
        return self.norm(x + pooled.mean(dim=1, keepdim=True))


class PixelCondition(nn.Module):
    """Each pixel attends to the two embeddings, weighted by their probabilities."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, condition: Condition, valid: Tensor | None) -> Tensor:
        """(B, S, C) -> (B, S, C); padding tokens are computed too, their outputs never used."""
        B, S, _ = x.shape
        T = condition.embeddings.shape[1]
        tokens = condition.embeddings.to(x.dtype).flatten(0, 1).expand(B, -1, -1)
        p = condition.probability.to(x.dtype)
        # Adding log p to the attention's logits multiplies its weights by p; the floor keeps the
        # gradient finite for a hard 0.
        prior = torch.stack([1 - p, p], dim=1).clamp(min=1e-4).log()
        prior = prior.repeat_interleave(T, dim=1)[:, None].expand(B, S, 2 * T)
        prior = prior.repeat_interleave(self.attention.num_heads, dim=0)
        attended, _ = self.attention(x, tokens, tokens, attn_mask=prior, need_weights=False)
        return self.norm(x + attended)


CONDITIONS = {"token": TokenCondition, "pixel": PixelCondition, "none": None}


class PixelDecoderLayer(nn.Module):
    """Deformable attention, condition, feed-forward; each followed by its norm."""

    def __init__(
        self, *, dim: int, num_heads: int, num_points: int, ffn_dim: int, condition: str
    ) -> None:
        super().__init__()
        self.deformable_attention = DeformableAttention(
            dim=dim, num_heads=num_heads, num_levels=NUM_LEVELS, num_points=num_points
        )
        self.norm = nn.LayerNorm(dim)
        kind = CONDITIONS[condition]
        self.condition = kind(dim, num_heads) if kind else None
        self.feed_forward = FeedForward(dim, ffn_dim)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        shapes: Sequence[tuple[int, int]],
        condition: Condition | None,
        valid: Tensor | None,
    ) -> Tensor:
        """(B, S, C) -> (B, S, C); see `ConditionalPixelDecoder.forward`."""
        sampled = self.deformable_attention(x + position, reference, x, shapes, valid)
        x = self.norm(x + sampled)
        if self.condition is not None and condition is not None:
            x = self.condition(x, condition, valid)
        return self.feed_forward(x)


def _projection(dim_in: int, dim: int, *, bias: bool) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim_in, dim, 1, bias=bias), nn.GroupNorm(NORM_GROUPS, dim))


class ConditionalPixelDecoder(nn.Module):
    """Turns the pyramid into mask features and memory, conditioned on the image's probability.

    Args:
        dim_in: Width of the pyramid.
        dim: Width of the decoder, a multiple of 32.
        num_layers: Encoder layers.
        num_heads: Attention heads.
        num_points: Sampling points per level and head.
        ffn_dim: Hidden width of the feed-forward blocks.
        condition: "token", "pixel" or "none".
        checkpointing: See `recomputed`.
    """

    def __init__(
        self,
        *,
        dim_in: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        num_points: int,
        ffn_dim: int,
        condition: str,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        if condition not in CONDITIONS:
            raise ValueError(
                f"MODEL.SEGMENTER.CONDITION_ATTENTION is {condition!r}; use one of {[*CONDITIONS]}"
            )
        if dim % NORM_GROUPS:
            raise ValueError(f"MODEL.SEGMENTER.FEATURE_DIM is {dim}; use a multiple of 32")
        self.input_projections = nn.ModuleList(
            _projection(dim_in, dim, bias=True) for _ in range(NUM_LEVELS)
        )
        layers = [
            PixelDecoderLayer(
                dim=dim,
                num_heads=num_heads,
                num_points=num_points,
                ffn_dim=ffn_dim,
                condition=condition,
            )
            for _ in range(num_layers)
        ]
        self.layers = nn.ModuleList(layers)
        self.lateral = _projection(dim_in, dim, bias=False)
        self.output = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.GroupNorm(NORM_GROUPS, dim), nn.ReLU()
        )
        self.mask_projection = nn.Conv2d(dim, dim, 1)
        xavier_(self)
        for layer in layers:
            layer.deformable_attention.reset_parameters()
        self.level_embedding = nn.Parameter(torch.randn(NUM_LEVELS, dim))

    @property
    def projections(self) -> list[nn.Module]:
        """What each map of the pyramid passes first, the finest map first."""
        return [self.lateral, *reversed(self.input_projections)]

    def forward(
        self,
        pyramid: Sequence[Tensor],
        condition: Condition | None = None,
        patch_valid: Tensor | None = None,
    ) -> PixelFeatures:
        """Decodes the pyramid.

        Args:
            pyramid: Four maps after `projections`, finest first, (B, C, h, w) each.
            condition: Embeddings and probability; None skips the conditional attention.
            patch_valid: (B, h, w) bool, False = padding; None = all valid.
        """
        finest, *coarser = pyramid
        levels = coarser[::-1]
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        x = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        position = self._positions(shapes, x.device).to(x.dtype)
        reference = _reference_points(shapes, x.device).expand(x.shape[0], -1, -1, -1)
        valid = None if patch_valid is None else _valid_tokens(patch_valid, shapes)
        for layer in self.layers:
            inputs = (x, position, reference, shapes, condition, valid)
            x = recomputed(layer, *inputs, enabled=self.checkpointing)
        memory = [
            tokens.transpose(1, 2).reshape(x.shape[0], -1, h, w)
            for tokens, (h, w) in zip(x.split([h * w for h, w in shapes], 1), shapes, strict=True)
        ]
        mask_features = finest + F.interpolate(
            memory[-1], size=finest.shape[-2:], mode="bilinear", align_corners=False
        )
        return PixelFeatures(self.mask_projection(self.output(mask_features)), memory)

    def _positions(self, shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
        """(S, C): sine code of each level plus the level's learned vector."""
        dim = self.level_embedding.shape[1]
        return torch.cat(
            [
                sine_position(h, w, dim, device) + level
                for (h, w), level in zip(shapes, self.level_embedding, strict=True)
            ]
        )


def _reference_points(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """(1, S, L, 2): each token's own centre, x and y in [0, 1], the same on every level."""
    centres = []
    for h, w in shapes:
        y = (torch.arange(h, device=device, dtype=torch.float32) + 0.5) / h
        x = (torch.arange(w, device=device, dtype=torch.float32) + 0.5) / w
        centres.append(torch.cartesian_prod(y, x).flip(1))
    return torch.cat(centres)[None, :, None].expand(-1, -1, len(shapes), -1)


def _valid_tokens(patch_valid: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """(B, h, w) bool -> (B, S) bool, True where the token of a level is image."""
    valid = patch_valid[:, None].float()
    return torch.cat(
        [F.interpolate(valid, size=shape, mode="nearest").flatten(1) > 0.5 for shape in shapes], 1
    )
