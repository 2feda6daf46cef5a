"""Random problems for the operator's tests."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """Arguments of both forms of the operator, of the same sizes but not the same result."""

    value: Tensor
    shapes: list[tuple[int, int]]
    locations: Tensor
    weights: Tensor
    reference: Tensor
    offsets: Tensor
    logits: Tensor

    @property
    def plain(self) -> tuple:
        """Arguments of `ms_deform_attn`."""
        return self.value, self.shapes, self.locations, self.weights

    @property
    def fused(self) -> tuple:
        """Arguments of `ms_deform_attn_fused`."""
        return self.value, self.shapes, self.reference, self.offsets, self.logits


def make_problem(
    shapes: list[tuple[int, int]],
    batch: int = 2,
    queries: int = 7,
    heads: int = 3,
    channels: int = 5,
    points: int = 2,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """Values of order 1; a good share of the points lies outside the levels."""
    generator = torch.Generator().manual_seed(seed)
    levels, pixels = len(shapes), sum(height * width for height, width in shapes)
    compute = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=compute)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=compute)

    return Problem(
        value=normal(batch, pixels, heads, channels).to(dtype),
        shapes=shapes,
        locations=1.6 * uniform(batch, queries, heads, levels, points, 2) - 0.3,
        weights=uniform(batch, queries, heads, levels, points),
        reference=uniform(batch, queries, levels, 2),
        offsets=1.5 * normal(batch, queries, heads, levels, points, 2),
        logits=normal(batch, queries, heads, levels * points),
    )


# Sizes that reach every branch: the template for three and four levels, the general path with whole
# and broken vectors, few queries beside many pixels, one query, one pixel, one point.
SIZES = {
    "three levels of four points": {"shapes": [(6, 4), (3, 5), (2, 2)], "queries": 19}
    | {"channels": 32, "points": 4},
    "four levels of four points": {"shapes": [(6, 4), (3, 5), (2, 2), (1, 1)], "queries": 17}
    | {"channels": 32, "points": 4, "heads": 1},
    "odd everything": {"shapes": [(5, 3), (1, 4)], "queries": 23, "channels": 7, "points": 3},
    "many channels": {"shapes": [(4, 4)], "queries": 6, "channels": 70, "points": 5},
    "few queries": {"shapes": [(16, 15), (8, 7)], "queries": 3, "channels": 32, "points": 4},
    "one query": {"shapes": [(4, 5)], "queries": 1, "batch": 1, "points": 4},
    "one pixel": {"shapes": [(1, 1)], "queries": 9, "channels": 1, "points": 1},
    "many points": {"shapes": [(3, 3), (2, 2)], "queries": 2, "points": 101, "heads": 1},
}
