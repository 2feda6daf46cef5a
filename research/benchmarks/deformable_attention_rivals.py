"""Other ways to write multi-scale deformable attention, and a layer to put it into.

Arguments as `loupe.ops.ms_deform_attn`: value (B, S, M, D), shapes, locations (B, Q, M, L, P, 2),
weights (B, Q, M, L, P) -> (B, Q, M*D).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Shapes = list[tuple[int, int]]


def with_grid_sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The form that every published code base falls back on."""
    batch, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    grids = 2 * locations - 1
    samples = []
    parts = value.split([height * width for height, width in shapes], dim=1)
    for level, (part, (height, width)) in enumerate(zip(parts, shapes, strict=True)):
        maps = part.flatten(2).transpose(1, 2).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(functional.grid_sample(maps, grid, align_corners=False))
    mixing = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.stack(samples, dim=-2).flatten(-2) * mixing).sum(-1)
    return output.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def corner_rows(shapes: Shapes, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel index and weight of the four corners of every point, (B, Q, M, L, P, 4) each."""
    sizes = torch.tensor([[w, h] for h, w in shapes], device=locations.device)
    areas = sizes.prod(-1)
    starts = (areas.cumsum(0) - areas)[:, None, None]
    corners = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=locations.device)
    places = locations * sizes[:, None] - 0.5
    lowest = places.floor()
    fraction = (places - lowest)[..., None, :]
    share = torch.where(corners.bool(), fraction, 1 - fraction).prod(-1)
    columns_rows = lowest.long()[..., None, :] + corners
    limits = sizes[:, None, None, :]
    inside = ((columns_rows >= 0) & (columns_rows < limits)).all(-1)
    clamped = columns_rows.clamp_min(0).minimum(limits - 1)
    index = starts + clamped[..., 1] * limits[..., 0] + clamped[..., 0]
    return index, share * inside * weights[..., None]


def with_embedding_bag(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """One bag of 4*L*P weighted rows per (image, query, head)."""
    batch, pixels, heads, channels = value.shape
    queries = locations.shape[1]
    index, share = corner_rows(shapes, locations, weights)
    image = torch.arange(batch, device=value.device).view(-1, 1, 1, 1, 1, 1)
    head = torch.arange(heads, device=value.device).view(-1, 1, 1, 1)
    rows = ((image * pixels + index) * heads + head).flatten(3).flatten(0, 2)
    output = functional.embedding_bag(
        rows,
        value.reshape(-1, channels),
        per_sample_weights=share.flatten(3).flatten(0, 2),
        mode="sum",
    )
    return output.view(batch, queries, heads * channels)


def with_gather(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Index all corner rows, then one weighted sum: what deformops does on a CPU."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    index, share = corner_rows(shapes, locations, weights)
    index = index.flatten(3).permute(0, 2, 1, 3).flatten(2)  # (B, M, Q*4LP)
    slices = value.transpose(1, 2)
    rows = slices.gather(2, index[..., None].expand(-1, -1, -1, channels))
    rows = rows.view(batch, heads, queries, -1, channels)
    output = torch.einsum("bmqkd,bqmk->bqmd", rows, share.flatten(3))
    return output.reshape(batch, queries, heads * channels)


RIVALS: dict[str, Callable[..., Tensor]] = {
    "grid_sample": with_grid_sample,
    "embedding_bag": with_embedding_bag,
    "gather": with_gather,
}


def fused_with(name: str) -> Callable[..., Tensor]:
    """A rival behind the softmax and the location arithmetic that our fused form has inside."""

    def attend(
        value: Tensor, shapes: Shapes, reference: Tensor, offsets: Tensor, logits: Tensor
    ) -> Tensor:
        sizes = offsets.new_tensor([[w, h] for h, w in shapes])
        locations = reference[:, :, None, :, None] + offsets / sizes[:, None]
        weights = logits.softmax(-1).unflatten(-1, (len(shapes), offsets.shape[-2]))
        return RIVALS[name](value, shapes, locations, weights)

    return attend


class EncoderLayer(nn.Module):
    """A pixel-decoder layer without condition: deformable attention, feed-forward block."""

    def __init__(self, heads: int, channels: int, levels: int, points: int) -> None:
        super().__init__()
        width = heads * channels
        self.sizes = (heads, levels, points)
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        angles = torch.arange(heads) * (2 * torch.pi / heads)
        ring = torch.stack([angles.cos(), angles.sin()], -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, points + 1)[:, None]
        with torch.no_grad():
            bias = (ring[:, None, None] * steps).expand(heads, levels, points, 2)
            self.offsets.bias.copy_(bias.flatten())
        self.logits = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm_attention = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )

    def forward(
        self,
        memory: Tensor,
        position: Tensor,
        reference: Tensor,
        shapes: Shapes,
        attend: Callable[..., Tensor],
    ) -> Tensor:
        """(B, S, M*D) -> (B, S, M*D), sampling through `attend`."""
        heads, levels, points = self.sizes
        query = memory + position
        offsets = self.offsets(query).unflatten(-1, (heads, levels, points, 2))
        logits = self.logits(query).unflatten(-1, (heads, levels * points))
        value = self.value(memory).unflatten(-1, (heads, -1))
        sampled = attend(value, shapes, reference, offsets, logits)
        memory = self.norm_attention(memory + self.output(sampled))
        return self.norm(memory + self.feed_forward(memory))
