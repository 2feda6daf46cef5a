"""From queries to one probability map at the image's own size.

Q queries, h w mask cells, H W pixels of the image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def query_map(class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Sum over queries of P(forged) times the mask, as Mask2Former's semantic inference.

    Args:
        class_logits: (Q, 2), index 0 = forged.
        mask_logits: (Q, h, w).
        size: (height, width) at which the masks are turned into probabilities.

    Returns:
        (height, width) in [0, 1]. Differs from the released code, whose sum over queries may
        exceed 1.
    """
    forged = class_logits.float().softmax(dim=1)[:, 0]
    logits = F.interpolate(mask_logits[None].float(), size, mode="bilinear", align_corners=False)
    # A sum, not a matrix product: autocast would run that in half precision.
    return (forged[:, None, None] * logits[0].sigmoid()).sum(dim=0).clamp(0, 1)


def network_map(
    queries: tuple[Tensor, Tensor] | None,
    patch_map: Tensor | None,
    valid_size: tuple[int, int],
    size: tuple[int, int],
    patch_fraction: float,
) -> Tensor:
    """The forgery map of one image on the network's canvas: of masks, patches, or both.

    Args:
        queries: Class logits (Q, 2) and mask logits (Q, h, w); None without a segmenter.
        patch_map: (h, w) in [0, 1]; None without patch prediction. One of the two is there.
        valid_size: (height, width) in pixels of the part that is image.
        size: (height, width) in pixels of the canvas.
        patch_fraction: Fraction of the patch map where there are both.

    Returns:
        (height, width) of the canvas, in [0, 1].
    """
    maps = []
    if queries is not None:
        class_logits, mask_logits = queries
        masks = extend_edge(mask_logits, valid_size, size)
        maps.append(query_map(class_logits, masks, size))
    if patch_map is not None and (queries is None or patch_fraction):
        extended = extend_edge(patch_map[None], valid_size, size)[None]
        maps.append(F.interpolate(extended, size, mode="bilinear", align_corners=False)[0, 0])
    return torch.lerp(maps[0], maps[1], patch_fraction) if len(maps) == 2 else maps[0]


def shift_odds(forgery_map: Tensor, mask_from: float) -> Tensor:
    """A map whose odds p / (1 - p) are divided by those of `mask_from`, so that it becomes 0.5.

    Args:
        forgery_map: (height, width) in [0, 1].
        mask_from: In (0, 1); 0.5 changes nothing.

    Returns:
        (height, width) in [0, 1]; the order of the pixels stays.

    Example:
        >>> shift_odds(torch.tensor([0.0, 0.2, 1.0]), 0.2)
        tensor([0.0000, 0.5000, 1.0000])
    """
    if mask_from == 0.5:
        return forgery_map
    forged = forgery_map * (1 - mask_from)
    # In place: of a large image each plane takes hundreds of megabytes.
    return forged.div_((1 - forgery_map).mul_(mask_from).add_(forged))


def extend_edge(maps: Tensor, valid_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Repeats the last valid row and column in the padding, so that resizing blurs in no padding.

    Args:
        maps: (Q, h, w) on the whole canvas.
        valid_size: (height, width) in pixels of the part that is image.
        size: (height, width) in pixels of the canvas.

    Returns:
        (Q, h, w); the same tensor where there is no padding.
    """
    if tuple(valid_size) == tuple(size):
        return maps
    h, w = (
        -(-cells * valid // whole)
        for cells, valid, whole in zip(maps.shape[1:], valid_size, size, strict=True)
    )
    return F.pad(maps[:, :h, :w], (0, maps.shape[2] - w, 0, maps.shape[1] - h), mode="replicate")


def turn_map(stored: Tensor, orientation: int) -> Tensor:
    """Turns a (h, w) map of stored pixels upright, by an EXIF orientation of 1 to 8."""
    if orientation in (5, 6, 7, 8):
        stored = stored.transpose(0, 1)
    flipped = [
        axis
        for axis, orientations in enumerate(((3, 4, 7, 8), (2, 3, 6, 7)))
        if orientation in orientations
    ]
    return stored.flip(flipped) if flipped else stored


def paste_map(
    network_map: Tensor,
    valid_size: tuple[int, int],
    window: tuple[float, float, float, float],
    size: tuple[int, int],
) -> Tensor:
    """Brings a map from the network's canvas to the image it was made of.

    Args:
        network_map: (h, w) of the whole canvas.
        valid_size: (h, w) of the part that is image; the rest is padding and is cut away.
        window: (x0, y0, x1, y1) in the image's pixels which that part shows.
        size: (height, width) of the image.

    Returns:
        (height, width) float32. Outside the window the nearest value of its edge is repeated.
    """
    valid = network_map[: valid_size[0], : valid_size[1]][None, None].float()
    height, width = size
    x0, y0, x1, y1 = (round(value) for value in window)
    resized = F.interpolate(valid, (y1 - y0, x1 - x0), mode="bilinear", align_corners=False)
    if (y1 - y0, x1 - x0) != (height, width):
        resized = F.pad(resized, (x0, width - x1, y0, height - y1), mode="replicate")
    return resized[0, 0]
