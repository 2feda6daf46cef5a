"""What the forensic statistics share: luma, logarithms, and means that leave padding out.

B images, C channels, H W pixels, h w cells of any size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Weights of red, green and blue in luma (ITU-R BT.601), which JPEG uses.
LUMA = (0.299, 0.587, 0.114)
# Half of the range of 8-bit pixels: a difference of normalised pixels times this is in grey levels.
GREY_LEVELS = 127.5
# Added to energies before the logarithm, so that flat cells have one. A quarter of a grey level.
ENERGY_FLOOR = 0.002


def luma(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W) float32, in the units of the images."""
    weights = torch.tensor(LUMA, device=images.device)[:, None, None]
    return (images.float() * weights).sum(dim=1, keepdim=True)


def normalised_log(energy: Tensor) -> Tensor:
    """Logarithm, scaled to about zero mean and unit variance over photographs."""
    return (energy + ENERGY_FLOOR).log() / 1.5 + 2.0


def cell_mean(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, H / side, W / side): mean over each cell; PyTorch's pooling is slower.

    Args:
        x: Both sides multiples of `side`.
        side: Of a cell.
    """
    rows = x.unflatten(2, (-1, side)).sum(dim=3)
    total = rows[..., ::side]
    for column in range(1, side):
        total = total + rows[..., column::side]
    return total / (side * side)


def log_mean(energy: Tensor, cell: int) -> Tensor:
    """(B, C, H, W) -> (B, C, H / cell, W / cell): logarithm of the mean over each cell."""
    return normalised_log(cell_mean(energy, cell))


def relative_to_image(features: Tensor, patch_valid: Tensor) -> Tensor:
    """Standardises each channel over its image: (f - mean) / (deviation + 0.1).

    Absolute energies tell how noisy a place is; these tell how much more so than its image.

    Args:
        features: (B, C, h, w).
        patch_valid: (B, h', w') bool, False = padding, left out of mean and deviation; h and w are
            multiples of h' and w'.
    """
    weight = F.interpolate(patch_valid[:, None].to(features.dtype), features.shape[2:])
    total = weight.sum(dim=(2, 3), keepdim=True)
    mean = (features * weight).sum(dim=(2, 3), keepdim=True) / total
    centred = features - mean
    variance = (centred.square() * weight).sum(dim=(2, 3), keepdim=True) / total
    # 0.1: in an image that is flat everywhere, tiny differences stay small.
    return centred / (variance.sqrt() + 0.1)
