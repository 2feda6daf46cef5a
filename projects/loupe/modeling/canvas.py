"""The canvas of a batch: images of several sizes, at its top left, in one tensor.

B images, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def stack_padded(tensors: Sequence[Tensor], multiple: int) -> Tensor:
    """Stacks (..., H, W), padded with zeros to the largest sides and to multiples."""
    height, width = (multiple * -(-max(t.shape[i] for t in tensors) // multiple) for i in (-2, -1))
    return torch.stack(
        [F.pad(t, (0, width - t.shape[-1], 0, height - t.shape[-2])) for t in tensors]
    )


def valid_pixels(extents: Tensor, size: tuple[int, ...]) -> Tensor:
    """Where the canvas shows the image.

    Args:
        extents: (B, 2) share of the canvas' width and height that the image takes.
        size: (H, W) of the canvas.

    Returns:
        (B, H, W) float: 1 = image, 0 = padding.
    """
    height, width = size
    rows = torch.arange(height, device=extents.device) < (extents[:, 1, None] * height).round()
    columns = torch.arange(width, device=extents.device) < (extents[:, 0, None] * width).round()
    return (rows[:, :, None] & columns[:, None]).float()
