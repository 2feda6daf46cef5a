"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3) as a module.

    out(q) = sum over heads m of W_m [ sum over l, p of A_mlqp * W'_m value_l(ref_q + offset_mlqp) ]

A is a softmax over the L P points of a head; A and the offsets are linear functions of the query.
Parameters have the names of the original `MSDeformAttn`.
B images, Q queries, S tokens of all levels, M heads, L levels, P points, C channels, D = C / M.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from loupe.ops import ms_deform_attn_fused


class DeformableAttention(nn.Module):
    """Each query looks at a few learned points around its reference, on every level."""

    def __init__(self, *, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is no multiple of {num_heads} heads")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        # What samples; an export puts plain PyTorch in its place.
        self.operator = ms_deform_attn_fused
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts with uniform weights and points on a ring, 1 to P pixels away."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        ring = torch.stack([angle.cos(), angle.sin()], dim=1)
        ring = ring / ring.abs().max(dim=1, keepdim=True).values
        radius = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        ring = ring[:, None, None] * radius[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        value: Tensor,
        shapes: Sequence[tuple[int, int]],
        value_valid: Tensor | None = None,
    ) -> Tensor:
        """Samples `value` around `reference`.

        Args:
            query: (B, Q, C).
            reference: (B, Q, L, 2), x and y in [0, 1].
            value: (B, S, C), the levels one after the other, row-major.
            shapes: (h, w) of each level; their products add up to S.
            value_valid: (B, S) bool, False = padding, read as zero; None = all valid.

        Returns:
            (B, Q, C).
        """
        B, Q, C = query.shape
        value = self.value_proj(value)
        if value_valid is not None:
            value = value.masked_fill(~value_valid[..., None], 0.0)
        heads = (B, Q, self.num_heads)
        offsets = self.sampling_offsets(query).view(*heads, self.num_levels, self.num_points, 2)
        logits = self.attention_weights(query).view(*heads, self.num_levels * self.num_points)
        value = value.view(B, -1, self.num_heads, C // self.num_heads)
        sampled = self.operator(value, shapes, reference, offsets, logits)
        return self.output_proj(sampled)
