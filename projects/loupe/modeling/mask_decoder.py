"""Mask2Former's masked-attention decoder (arXiv 2112.01527), with an optional box head.

B images, Q queries, C channels, S tokens of one level, h w cells, H W size of the mask features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.modeling.layers import FeedForward, Mlp, sine_position, xavier_
from loupe.structures import MaskOutput

NUM_LEVELS = 3


class MaskDecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward; each followed by its norm."""

    def __init__(self, *, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.cross_attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.cross_norm = nn.LayerNorm(dim)
        self.self_attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.self_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ffn_dim)
        xavier_(self)

    def forward(
        self,
        queries: Tensor,
        query_position: Tensor,
        memory: Tensor,
        memory_position: Tensor,
        blocked: Tensor,
    ) -> Tensor:
        """Updates the queries.

        Args:
            queries: (B, Q, C).
            query_position: (Q, C).
            memory: (B, S, C).
            memory_position: (S, C).
            blocked: (B, Q, S) bool, True = the query may not look there.
        """
        seen, _ = self.cross_attention(
            queries + query_position,
            memory + memory_position,
            memory,
            attn_mask=blocked.repeat_interleave(self.num_heads, dim=0),
            need_weights=False,
        )
        queries = self.cross_norm(queries + seen)
        positioned = queries + query_position
        told, _ = self.self_attention(positioned, positioned, queries, need_weights=False)
        return self.feed_forward(self.self_norm(queries + told))


class MaskDecoder(nn.Module):
    """Queries that find regions: each ends as a class (forged or no object) and a mask.

    Args:
        dim: Width of memory and mask features.
        num_queries: Queries per image.
        num_layers: Layers; there is one prediction more than layers.
        num_heads: Attention heads.
        ffn_dim: Hidden width of the feed-forward blocks.
        predict_boxes: Adds a box to each prediction.
    """

    def __init__(
        self,
        *,
        dim: int = 256,
        num_queries: int = 20,
        num_layers: int = 9,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        predict_boxes: bool = False,
    ) -> None:
        super().__init__()
        self.query_features = nn.Embedding(num_queries, dim)
        self.query_position = nn.Embedding(num_queries, dim)
        self.level_embedding = nn.Embedding(NUM_LEVELS, dim)
        self.layers = nn.ModuleList(
            MaskDecoderLayer(dim=dim, num_heads=num_heads, ffn_dim=ffn_dim)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, 2)
        self.mask_head = Mlp(dim, dim, dim, dim)
        self.box_head = Mlp(dim, dim, dim, 4) if predict_boxes else None

    def forward(
        self, mask_features: Tensor, memory: Sequence[Tensor], patch_valid: Tensor | None = None
    ) -> list[MaskOutput]:
        """Decodes the queries.

        Args:
            mask_features: (B, C, H, W).
            memory: Three maps (B, C, h, w), coarse first; layer i looks at map i mod 3.
            patch_valid: (B, h, w) bool of the patch grid, False = padding.

        Returns:
            One output before the first layer and one after each; the last is the prediction.
        """
        shapes = [(level.shape[2], level.shape[3]) for level in memory]
        tokens = [
            level.flatten(2).transpose(1, 2) + self.level_embedding.weight[i]
            for i, level in enumerate(memory)
        ]
        positions = [
            sine_position(h, w, mask_features.shape[1], mask_features.device).to(mask_features)
            for h, w in shapes
        ]
        queries = self.query_features.weight.expand(len(mask_features), -1, -1)
        outputs = [self._predict(queries, mask_features)]
        for i, layer in enumerate(self.layers):
            level = i % len(shapes)
            blocked = _blocked(outputs[-1].mask_logits, shapes[level], patch_valid)
            queries = layer(
                queries, self.query_position.weight, tokens[level], positions[level], blocked
            )
            outputs.append(self._predict(queries, mask_features))
        return outputs

    def _predict(self, queries: Tensor, mask_features: Tensor) -> MaskOutput:
        queries = self.norm(queries)
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_head(queries), mask_features)
        boxes = None if self.box_head is None else self.box_head(queries).float().sigmoid()
        return MaskOutput(self.class_head(queries), masks, boxes)


@torch.no_grad()
def _blocked(mask_logits: Tensor, shape: tuple[int, int], patch_valid: Tensor | None) -> Tensor:
    """(B, Q, h * w) bool: where the last mask says "not here", or where there is only padding.

    A query that would be blocked everywhere looks everywhere (but never at padding).
    """
    logits = F.interpolate(mask_logits.float(), size=shape, mode="bilinear", align_corners=False)
    blocked = (logits.sigmoid() < 0.5).flatten(2)
    if patch_valid is None:
        return blocked & ~blocked.all(dim=2, keepdim=True)
    valid = F.interpolate(patch_valid[:, None].float(), size=shape, mode="nearest")
    padding = (valid < 0.5).flatten(2)
    blocked = blocked | padding
    return torch.where(blocked.all(dim=2, keepdim=True), padding, blocked)
