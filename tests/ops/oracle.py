"""Multi-scale deformable attention as a person would compute it: loops over everything, float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor


def bilinear(feature_map: np.ndarray, x: float, y: float) -> np.ndarray:
    """The (D,) value of an (h, w, D) map at a point in pixels; pixel centres are whole numbers."""
    height, width, channels = feature_map.shape
    result = np.zeros(channels)
    if not (math.isfinite(x) and math.isfinite(y)):
        return result
    for row, column in itertools.product(
        (math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)
    ):
        if 0 <= row < height and 0 <= column < width:
            share = (1 - abs(x - column)) * (1 - abs(y - row))
            result += share * feature_map[row, column]
    return result


def attention_oracle(
    value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """The operator's definition; arguments as `loupe.ops.ms_deform_attn`."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    values, places, shares = (
        tensor.detach().double().numpy() for tensor in (value, locations, weights)
    )
    output = np.zeros((batch, queries, heads, channels))
    for b, q, m in itertools.product(range(batch), range(queries), range(heads)):
        start = 0
        for level, (height, width) in enumerate(shapes):
            pixels = values[b, start : start + height * width, m]
            feature_map = pixels.reshape(height, width, channels)
            for point in range(points):
                x, y = places[b, q, m, level, point]
                sample = bilinear(feature_map, x * width - 0.5, y * height - 0.5)
                output[b, q, m] += shares[b, q, m, level, point] * sample
            start += height * width
    return torch.from_numpy(output.reshape(batch, queries, heads * channels))


def fused_oracle(
    value: Tensor,
    shapes: list[tuple[int, int]],
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """The fused operator's definition; arguments as `loupe.ops.ms_deform_attn_fused`."""
    levels, points = offsets.shape[3:5]
    locations = reference.detach().double()[:, :, None, :, None, :].expand_as(offsets).clone()
    for level, (height, width) in enumerate(shapes):
        locations[:, :, :, level, :, 0] += offsets[:, :, :, level, :, 0].detach().double() / width
        locations[:, :, :, level, :, 1] += offsets[:, :, :, level, :, 1].detach().double() / height
    exponentials = logits.detach().double().exp()
    weights = exponentials / exponentials.sum(-1, keepdim=True)
    return attention_oracle(value, shapes, locations, weights.unflatten(-1, (levels, points)))
