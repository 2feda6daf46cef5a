"""From queries to one probability map at the image's own size.

Q queries, h w mask cells, H W pixels of the image.
"""

from __future__ import annotations

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


def extend_edge(maps: Tensor, valid_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Repeats the last valid row and column into the padding, lest that blur into the image's edge.

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
        (height, width) float32. Outside the window the map's nearest edge value stands.
    """
    valid = network_map[: valid_size[0], : valid_size[1]][None, None].float()
    height, width = size
    x0, y0, x1, y1 = (round(value) for value in window)
    resized = F.interpolate(valid, (y1 - y0, x1 - x0), mode="bilinear", align_corners=False)
    if (y1 - y0, x1 - x0) != (height, width):
        resized = F.pad(resized, (x0, width - x1, y0, height - y1), mode="replicate")
    return resized[0, 0]
