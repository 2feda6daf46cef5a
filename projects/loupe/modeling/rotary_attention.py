"""Self-attention with rotary positions (RoFormer, arXiv 2104.09864), as timm's, in fewer passes.

A pair of neighbouring channels of a query or key is a complex number z, turned by the angle t of
its token: z exp(i t). timm computes that from real tensors, with negated, interleaved and joined
copies of queries and keys in every block. Here it is one complex product, in place where nothing
needs a gradient. Products and sums are the same, so results are equal, to the last bit where the
processor does not join a product and a sum.

B images, N tokens (those before the patches too), M heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RotaryTable(nn.Module):
    """Cosines and sines for all tokens, in the place of the encoder's `rope`.

    Args:
        rope: timm's, which knows the angles of a grid.
        num_prefix_tokens: Tokens before the patches, which are not turned.
    """

    def __init__(self, rope: Any, num_prefix_tokens: int) -> None:
        super().__init__()
        self.rope: Any = rope
        self.num_prefix_tokens = num_prefix_tokens

    def get_embed(self, shape: Sequence[int]) -> Tensor:
        """(N, D / 2, 2) float32, cosine and sine; `shape` is (h, w) of the patches."""
        sine, cosine = self.rope.get_embed(shape=shape).chunk(2, dim=-1)
        # timm has each angle twice, for both channels of a pair.
        table = torch.stack([cosine[:, ::2], sine[:, ::2]], dim=2).float()
        prefix = table.new_tensor([1.0, 0.0]).expand(self.num_prefix_tokens, table.shape[1], 2)
        return torch.cat([prefix, table])


class RotaryAttention(nn.Module):
    """Takes over the layers of a timm attention, with their names.

    Args:
        attention: One with a joint projection, a bias, and nothing between projection and rotation.

    Raises:
        ValueError: timm's attention has parts that this one does not know.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        between = (attention.q_norm, attention.k_norm, attention.norm)
        if (
            attention.qkv is None
            or attention.gate is not None
            or attention.rotate_half
            or not all(isinstance(part, nn.Identity) for part in between)
        ):
            raise ValueError(f"the encoder's attention is of an unknown kind: {attention}")
        self.num_heads: int = attention.num_heads
        self.qkv: nn.Module = attention.qkv
        self.proj: nn.Module = attention.proj

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Attends.

        Args:
            x: (B, N, C).
            rope: Of `RotaryTable`.
            attn_mask: (B, 1, 1, N) bool, True = attended to.
            is_causal: As timm's.

        Returns:
            (B, N, C).
        """
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))
        query_key, value = qkv[:, :, :2], qkv[:, :, 2]
        if rope is not None:
            query_key = rotate(query_key, rope)
        query, key = query_key.transpose(1, 3).unbind(2)
        attended = F.scaled_dot_product_attention(
            query, key, value.transpose(1, 2), attn_mask=attn_mask, is_causal=is_causal
        )
        return self.proj(attended.transpose(1, 2).flatten(2))


def rotate(query_key: Tensor, table: Tensor) -> Tensor:
    """Turns pairs of channels; computed in float32, and as one type in and out.

    Args:
        query_key: (B, N, 2, M, D), owned by the caller: where no gradient is needed, it is changed.
        table: (N, D / 2, 2).

    Returns:
        (B, N, 2, M, D).
    """
    pairs = query_key.unflatten(4, (-1, 2))
    turns = table[:, None, None]
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        # Compilers fuse real operations, and know few complex ones.
        (first, second), (cosine, sine) = pairs.float().unbind(5), turns.unbind(4)
        turned = [first * cosine - second * sine, second * cosine + first * sine]
        return torch.stack(turned, dim=5).flatten(4).to(query_key.dtype)
    numbers, angles = torch.view_as_complex(pairs.float()), torch.view_as_complex(turns)
    if numbers.requires_grad:
        numbers = numbers * angles
    else:
        numbers.mul_(angles)
    return torch.view_as_real(numbers).flatten(4).to(query_key.dtype)


def use_rotary_attention(vit: Any) -> None:
    """Replaces attentions and rotary positions of a timm encoder; its weights keep their names."""
    vit.rope = RotaryTable(vit.rope, vit.num_prefix_tokens)
    for block in vit.blocks:
        block.attn = RotaryAttention(block.attn)
