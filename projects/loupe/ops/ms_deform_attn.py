"""Multi-scale deformable attention, on whatever path `backends` chose for the value's device.

    output[b, q, m] = sum over levels l and points p of
        weights[b, q, m, l, p] * bilinear(value[b, level l, m], locations[b, q, m, l, p])

(Deformable DETR, arXiv 2010.04159, equation 3.) Letters: B images, S pixels of all levels, Q
queries, M heads, D channels of one head, L levels, P points per level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loupe.ops.backends import runs_compiled
from loupe.ops.library import compute_type
from loupe.ops.reference import ms_deform_attn_fused_reference, ms_deform_attn_reference


def _check(
    value: Tensor, shapes: Sequence[Sequence[int]], expected: dict[str, tuple[Tensor, tuple]]
) -> None:
    if any(side < 1 for shape in shapes for side in shape):
        raise ValueError(f"the levels are {list(shapes)}; each side must be at least 1")
    pixels = sum(height * width for height, width in shapes)
    if value.shape[1] != pixels:
        raise ValueError(
            f"value has {value.shape[1]} pixels, but the levels {list(shapes)} have {pixels}; pass "
            "the (h, w) of each level in the order in which they lie in value"
        )
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}; it must be {shape}")
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device}, value on {value.device}; move one")


def ms_deform_attn(
    value: Tensor, shapes: Sequence[Sequence[int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Sums bilinear samples of the value, each with its weight.

    Positions, weights and sums are float32 (float64 for a float64 value), also under autocast.

    Args:
        value: (B, S, M, D) of any floating type; the levels one after the other, row by row.
        shapes: (h, w) of each level, Python integers.
        locations: (B, Q, M, L, P, 2) x, y; 0 and 1 are the outer edges of the level. Outside, and
            where a location is NaN, the value counts as zero.
        weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M*D) of the value's type.

    Raises:
        ValueError: shapes do not fit together, or tensors are on different devices.
    """
    batch, _, heads, _ = value.shape
    queries, levels, points = locations.shape[1], len(shapes), locations.shape[-2]
    point_shape = (batch, queries, heads, levels, points)
    _check(
        value,
        shapes,
        {"locations": (locations, (*point_shape, 2)), "weights": (weights, point_shape)},
    )
    if not runs_compiled(value.device.type):
        return ms_deform_attn_reference(value, shapes, locations, weights)
    compute = compute_type(value)
    flat_shapes = [size for shape in shapes for size in shape]
    return torch.ops.loupe.ms_deform_attn(
        value, flat_shapes, locations.to(compute), weights.to(compute)
    )


def ms_deform_attn_fused(
    value: Tensor,
    shapes: Sequence[Sequence[int]],
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """As `ms_deform_attn`, with the sampling locations and the softmax computed inside.

    Args:
        value: (B, S, M, D) of any floating type; the levels one after the other, row by row.
        shapes: (h, w) of each level, Python integers.
        reference: (B, Q, L, 2) x, y of each query in [0, 1].
        offsets: (B, Q, M, L, P, 2) x, y from the reference, in pixels of the sampled level.
        logits: (B, Q, M, L*P); their softmax over the last axis are the weights.

    Returns:
        (B, Q, M*D) of the value's type.

    Raises:
        ValueError: shapes do not fit together, or tensors are on different devices.
    """
    batch, _, heads, _ = value.shape
    queries, levels, points = offsets.shape[1], len(shapes), offsets.shape[-2]
    _check(
        value,
        shapes,
        {
            "reference": (reference, (batch, queries, levels, 2)),
            "offsets": (offsets, (batch, queries, heads, levels, points, 2)),
            "logits": (logits, (batch, queries, heads, levels * points)),
        },
    )
    if not runs_compiled(value.device.type):
        return ms_deform_attn_fused_reference(value, shapes, reference, offsets, logits)
    compute = compute_type(value)
    flat_shapes = [size for shape in shapes for size in shape]
    return torch.ops.loupe.ms_deform_attn_fused(
        value, flat_shapes, reference.to(compute), offsets.to(compute), logits.to(compute)
    )
