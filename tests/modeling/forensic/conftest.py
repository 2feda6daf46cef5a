"""What the tests of the forensic branches share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.pictures import in_colour, textured


def normalised(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1


def soft(height: int, width: int) -> np.ndarray:
    """A picture far from both ends of the range."""
    return in_colour(textured(height, width, contrast=12))


def all_valid(images: Tensor) -> Tensor:
    """(B, H, W) bool: a canvas without padding."""
    return torch.ones_like(images[:, 0], dtype=torch.bool)
