"""What the tower sees of the canvas that the segmentation encoder sees.

"whole": the canvas itself, shrunk; tower and segmentation encoder see the same image.
"crop": the central square of the image, as released IFDL-VLM (through CLIP's own processor) does;
of an elongated image the tower then misses the ends.

B images, H W pixels of the canvas, S side of the tower's input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

VIEWS = ("whole", "crop")


def whole_view(
    pixels: Tensor, valid_sizes: Sequence[tuple[int, int]], size: int
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Shrinks the canvas, its longest side to `size`.

    Args:
        pixels: (B, 3, H, W), 0 to 255; 0 in padding.
        valid_sizes: (height, width) of each image.
        size: S.

    Returns:
        (B, 3, S, S), and the (height, width) of each image there. The images' last row and column
        are repeated before shrinking, so that no padding is blurred in.
    """
    canvas = max(pixels.shape[-2:])
    views, sizes = [], []
    for image, (height, width) in zip(pixels, valid_sizes, strict=True):
        small = (max(1, round(height * size / canvas)), max(1, round(width * size / canvas)))
        view = _resized(image[:, :height, :width], small, "bilinear")
        views.append(F.pad(view, (0, size - small[1], 0, size - small[0])))
        sizes.append(small)
    return torch.stack(views), sizes


def crop_view(pixels: Tensor, valid_sizes: Sequence[tuple[int, int]], size: int) -> Tensor:
    """Brings the shorter side of each image to `size`, and cuts out the centre: (B, 3, S, S)."""
    views = []
    for image, (height, width) in zip(pixels, valid_sizes, strict=True):
        scale = size / min(height, width)
        target = tuple(
            size if side == min(height, width) else int(side * scale) for side in (height, width)
        )
        view = _resized(image[:, :height, :width], target, "bicubic").round().clamp(0, 255)
        top, left = (target[0] - size) // 2, (target[1] - size) // 2
        views.append(view[:, top : top + size, left : left + size])
    return torch.stack(views)


def _resized(image: Tensor, size: tuple[int, ...], mode: str) -> Tensor:
    return F.interpolate(image[None], size, mode=mode, antialias=True, align_corners=False)[0]
