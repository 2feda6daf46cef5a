"""Multi-scale deformable attention in plain PyTorch: the definition, and the fallback.

Letters: B images, S pixels of all levels together, Q queries, M heads, D channels of one head,
L levels, P points sampled per level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def sampling_locations(
    reference: Tensor, offsets: Tensor, shapes: Sequence[Sequence[int]]
) -> Tensor:
    """Where each query samples, as a fraction of each level's width and height.

    Args:
        reference: (B, Q, L, 2) x, y of the query, in [0, 1].
        offsets: (B, Q, M, L, P, 2) x, y in pixels of the level.
        shapes: (h, w) of each level.

    Returns:
        (B, Q, M, L, P, 2) x, y; 0 and 1 are the outer edges of the level.
    """
    sizes = offsets.new_tensor([[width, height] for height, width in shapes])
    return reference[:, :, None, :, None, :] + offsets / sizes[:, None, :]


def attention_weights(logits: Tensor, levels: int) -> Tensor:
    """Softmax over all points of a head.

    Args:
        logits: (B, Q, M, L*P).
        levels: L.

    Returns:
        (B, Q, M, L, P); sums to 1 over the last two axes.
    """
    return logits.softmax(-1).unflatten(-1, (levels, -1))


def ms_deform_attn_reference(
    value: Tensor, shapes: Sequence[Sequence[int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples, with `grid_sample`.

    Args:
        value: (B, S, M, D), the levels one after the other, each row by row.
        shapes: (h, w) of each level; the products add up to S.
        locations: (B, Q, M, L, P, 2) x, y; 0 and 1 are the outer edges of the level.
        weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M*D). Outside a level the value is zero.
    """
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    if batch * queries == 0:
        # Zero gradients, not none: the sums tie the empty result to its inputs.
        nothing = 0 * (value.sum() + locations.sum() + weights.sum())
        return nothing.to(value.dtype).expand(batch, queries, heads * channels)
    compute = value.dtype if value.dtype == torch.float64 else torch.float32
    maps = value.to(compute).permute(0, 2, 3, 1).flatten(0, 1)  # (B*M, D, S)
    # grid_sample would spread a NaN; 3 is outside, so that it counts as zero and gets no gradient.
    grids = (2 * locations.to(compute) - 1).nan_to_num(nan=3.0, posinf=3.0, neginf=-3.0)
    grids = grids.transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P, 2)
    samples = []
    start = 0
    for level, (height, width) in enumerate(shapes):
        feature_map = maps[:, :, start : start + height * width].unflatten(2, (height, width))
        samples.append(functional.grid_sample(feature_map, grids[:, :, level], align_corners=False))
        start += height * width
    mixing = weights.to(compute).transpose(1, 2).reshape(-1, 1, queries, levels * points)
    output = (torch.cat(samples, dim=-1) * mixing).sum(-1)  # (B*M, D, Q)
    return output.reshape(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)


def ms_deform_attn_fused_reference(
    value: Tensor,
    shapes: Sequence[Sequence[int]],
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """As `ms_deform_attn_reference`, from raw offsets and logits.

    Args:
        value: (B, S, M, D).
        shapes: (h, w) of each level.
        reference: (B, Q, L, 2) x, y in [0, 1].
        offsets: (B, Q, M, L, P, 2) in pixels of the level.
        logits: (B, Q, M, L*P).

    Returns:
        (B, Q, M*D).
    """
    compute = value.dtype if value.dtype == torch.float64 else torch.float32
    locations = sampling_locations(reference.to(compute), offsets.to(compute), shapes)
    weights = attention_weights(logits.to(compute), len(shapes))
    return ms_deform_attn_reference(value, shapes, locations, weights)
