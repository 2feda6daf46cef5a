"""Mask2Former's masked-attention decoder (arXiv 2112.01527), with an optional box head.

Layer i updates the queries from level i mod 3 of the memory. A query attends only where its last
mask was above 0.5 (Eq. 2 of that paper): softmax(M + Q K^T) V with M = 0 there and -inf elsewhere.

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
        attended: Tensor,
    ) -> Tensor:
        """Updates the queries.

        Args:
            queries: (B, Q, C).
            query_position: (Q, C).
            memory: (B, S, C).
            memory_position: (S, C).
            attended: (B, Q, S) bool, True = the query attends to that token.
        """
        from_memory, _ = self.cross_attention(
            queries + query_position,
            memory + memory_position,
            memory,
            attn_mask=(~attended).repeat_interleave(self.num_heads, dim=0),
            need_weights=False,
        )
        queries = self.cross_norm(queries + from_memory)
        positioned = queries + query_position
        from_queries, _ = self.self_attention(positioned, positioned, queries, need_weights=False)
        return self.feed_forward(self.self_norm(queries + from_queries))


class MaskDecoder(nn.Module):
    """Queries that find regions: each predicts a class (forged or no object) and a mask.

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
        dim: int,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        predict_boxes: bool,
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
        self,
        mask_features: Tensor,
        memory: Sequence[Tensor],
        patch_valid: Tensor | None = None,
        *,
        final_only: bool = False,
    ) -> list[MaskOutput]:
        """Decodes the queries.

        Args:
            mask_features: (B, C, H, W).
            memory: Three maps (B, C, h, w), coarse first.
            patch_valid: (B, h, w) bool of the patch grid, False = padding; None = all valid.
            final_only: Leave out what only losses read: classes and boxes of earlier depths.

        Returns:
            One output before the first layer and one after each; the last is the prediction, and
            the only one with `final_only`.
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
        queries = self.query_features.weight.expand(mask_features.shape[0], -1, -1)
        normed, masks = self._masks(queries, mask_features)
        outputs = [] if final_only and self.layers else [self._output(normed, masks)]
        for i, layer in enumerate(self.layers):
            level = i % len(shapes)
            attended = _attended(masks, shapes[level], patch_valid)
            queries = layer(
                queries, self.query_position.weight, tokens[level], positions[level], attended
            )
            normed, masks = self._masks(queries, mask_features)
            if not final_only or i == len(self.layers) - 1:
                outputs.append(self._output(normed, masks))
        return outputs

    def _masks(self, queries: Tensor, mask_features: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised queries (B, Q, C), and their mask logits (B, Q, H, W)."""
        queries = self.norm(queries)
        return queries, torch.einsum("bqc,bchw->bqhw", self.mask_head(queries), mask_features)

    def _output(self, queries: Tensor, masks: Tensor) -> MaskOutput:
        boxes = None if self.box_head is None else self.box_head(queries).float().sigmoid()
        return MaskOutput(self.class_head(queries), masks, boxes)


@torch.no_grad()
def _attended(mask_logits: Tensor, shape: tuple[int, int], patch_valid: Tensor | None) -> Tensor:
    """Where each query attends: where its last mask is, and where there is image.

    A query whose mask is nowhere attends to the whole image: a softmax over nothing is NaN.

    Args:
        mask_logits: (B, Q, H, W).
        shape: (h, w) of the level.
        patch_valid: (B, h', w') bool, False = padding; None = all valid.

    Returns:
        (B, Q, h * w) bool.
    """
    logits = F.interpolate(mask_logits.float(), size=shape, mode="bilinear", align_corners=False)
    # Not `>= 0.5`: NaN of a diverged network attends, and fails in the loss, where it is reported.
    attended = ~(logits.sigmoid() < 0.5).flatten(2)
    valid = torch.ones_like(attended[:, :1])
    if patch_valid is not None:
        valid = F.interpolate(patch_valid[:, None].float(), size=shape, mode="nearest")
        valid = (valid > 0.5).flatten(2)
        attended = attended & valid
    # As `where`, which runtimes of ONNX do not have for booleans.
    return attended | (valid & ~attended.any(dim=2, keepdim=True))
