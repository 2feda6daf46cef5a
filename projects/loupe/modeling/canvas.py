"""From a batch of images to the network's input: one canvas, each image at its top left.

B images, S sides of the canvas, H W pixels, h w patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


class NetworkInput(NamedTuple):
    """A batch as the network takes it.

    Attributes:
        images: (B, 3, H, W) normalised; 0 in padding.
        valid: (B, H, W) bool, True = image, False = padding; None where there is no padding.
        patch_valid: (B, h, w) bool, True = the patch holds at least one pixel of the image; None
            where there is no padding.
        extents: (B, 2), fraction of the canvas (x, y) that is image.
    """

    images: Tensor
    valid: Tensor | None
    patch_valid: Tensor | None
    extents: Tensor


def stack_padded(tensors: Sequence[Tensor], multiple: int) -> Tensor:
    """Stacks (..., H, W), padded with zeros to the largest sides and to multiples."""
    height, width = (multiple * -(-max(t.shape[i] for t in tensors) // multiple) for i in (-2, -1))
    return torch.stack(
        [F.pad(t, (0, width - t.shape[-1], 0, height - t.shape[-2])) for t in tensors]
    )


def fitted(image: Tensor, size: int, resize: str) -> tuple[Tensor, tuple[int, int]]:
    """Brings a whole image to the network's size, as the dataset mapper does for evaluation.

    Args:
        image: (3, H, W), values 0 to 255.
        size: S, side of the network's square.
        resize: "squash": to (S, S); "pad": the longer side to S; "native": to at most S.

    Returns:
        The image on its canvas, (S, S) unless it is native, and its height and width there.

    Raises:
        ValueError: The network sees only a window of an image.
    """
    height, width = image.shape[-2:]
    scale = size / max(height, width)
    if resize == "crop":
        raise ValueError("INPUT.RESIZE is crop: an image without valid_size needs its own mapper")
    if resize == "squash":
        new_size = (size, size)
    elif resize == "native" and scale >= 1:
        new_size = (height, width)
    else:
        new_size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if new_size != (height, width):
        image = _resized(image, new_size)
    canvas = new_size if resize == "native" else (size, size)
    return F.pad(image, (0, canvas[1] - new_size[1], 0, canvas[0] - new_size[0])), new_size


def _resized(image: Tensor, new_size: tuple[int, int]) -> Tensor:
    pixels = image.round().clamp(0, 255).to("cpu", torch.uint8).permute(1, 2, 0).numpy()
    # The mapper's filter to the last bit: forensic stems see its rounding.
    small = Image.fromarray(pixels).resize(new_size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def network_input(
    images: Tensor, valid_sizes: Sequence[tuple[int, int]], patch_size: int
) -> NetworkInput:
    """Marks the padding of a canvas, and sets it to 0, so that its content changes nothing.

    Args:
        images: (B, 3, H, W) normalised; padding may hold anything.
        valid_sizes: (height, width) of each image in pixels.
        patch_size: Side of a patch in pixels; H and W are multiples of it.
    """
    height, width = images.shape[-2:]
    sizes = torch.tensor(valid_sizes, device=images.device)
    extents = sizes.flip(1) / sizes.new_tensor([width, height])
    if all(tuple(size) == (height, width) for size in valid_sizes):
        return NetworkInput(images, None, None, extents)
    valid = valid_pixels(extents, (height, width))
    return NetworkInput(images * valid[:, None], valid, valid_patches(valid, patch_size), extents)


def valid_pixels(extents: Tensor, size: tuple[int, int]) -> Tensor:
    """Where the canvas shows the image.

    Args:
        extents: (B, 2), fraction of the canvas' width and height that the image takes.
        size: (H, W) of the canvas.

    Returns:
        (B, H, W) bool, True = image.
    """
    height, width = size
    rows = torch.arange(height, device=extents.device) < (extents[:, 1, None] * height).round()
    columns = torch.arange(width, device=extents.device) < (extents[:, 0, None] * width).round()
    return rows[:, :, None] & columns[:, None]


def valid_patches(valid: Tensor, patch_size: int) -> Tensor:
    """(B, H, W) bool -> (B, h, w) bool: True where a patch holds at least one valid pixel."""
    return F.max_pool2d(valid[:, None].float(), patch_size)[:, 0] > 0
