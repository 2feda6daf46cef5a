"""Small layers that several parts share.

B batch, N tokens, C channels, h w grid cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Mlp(nn.Sequential):
    """Linear layers with an activation between them, none after the last.

    Args:
        widths: Input width, hidden widths, output width.
        activation: Class of the activation.
    """

    def __init__(self, *widths: int, activation: type[nn.Module] = nn.ReLU) -> None:
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), activation()]
        super().__init__(*layers[:-1])


def recomputed(function: Callable[..., Tensor], *inputs: Any, enabled: bool) -> Tensor:
    """`function(*inputs)`; if enabled, what it computes on the way is computed again for gradients.

    Memory against time: activation checkpointing (arXiv 1604.06174). `function` draws nothing.
    """
    if not enabled or not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


class FeedForward(nn.Module):
    """Post-norm feed-forward block of a transformer layer: LN(x + W2 ReLU(W1 x))."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.mlp = Mlp(dim, hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.norm(x + self.mlp(x))


class ZeroInitConvs(nn.Sequential):
    """Convolutions with a zero-initialised output (as in ControlNet, arXiv 2302.05543).

    Adding them to a trained model leaves its output unchanged until they learn.
    """

    def __init__(self, dim: int) -> None:
        inner, output = nn.Conv2d(dim, dim, 3, padding=1), nn.Conv2d(dim, dim, 1)
        super().__init__(nn.GELU(), inner, nn.GELU(), output)
        for parameter in output.parameters():
            nn.init.zeros_(parameter)


def sine_position(h: int, w: int, dim: int, device: torch.device) -> Tensor:
    """Sine position code of a grid, as in Mask2Former.

    Coordinates 1..n are scaled to (0, 2 pi]; the first half of the channels codes y, the second x;
    even channels are sines, odd ones cosines.

    Returns:
        (h * w, dim) float32, row-major.
    """
    channels = dim // 2
    frequency = torch.arange(channels, device=device, dtype=torch.float32)
    frequency = 10000.0 ** (2 * torch.div(frequency, 2, rounding_mode="floor") / channels)

    def axis(n: int) -> Tensor:
        coordinate = torch.arange(1, n + 1, device=device, dtype=torch.float32)
        angle = (coordinate / (n + 1e-6) * (2 * math.pi))[:, None] / frequency
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

    y = axis(h)[:, None].expand(h, w, channels)
    x = axis(w)[None].expand(h, w, channels)
    return torch.cat([y, x], dim=2).reshape(h * w, dim)


def xavier_(module: nn.Module) -> None:
    """Xavier-uniform for every tensor of two or more dimensions, in place."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
