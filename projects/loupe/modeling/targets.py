"""From the dataset mapper's masks and labels to what the losses compare with.

B images, R forged regions of one image, H W pixels of the canvas, h w patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from loupe.modeling.canvas import NetworkInput, stack_padded, valid_pixels
from loupe.modeling.mask_criterion import MaskCriterion
from loupe.structures import LossCounts, Targets

Item = dict[str, Any]


def prepare_targets(items: Sequence[Item], inputs: NetworkInput, patch_size: int) -> Targets:
    """Brings masks and labels to the device of the images; averages masks over patches.

    Args:
        items: Each with `label`, `mask` (H, W) in [0, 1], `regions` (H, W) uint8 that numbers the
            forged regions from 1, and `mask_known` (True where it is absent).
        inputs: The same items as the network takes them.
        patch_size: Side of a patch in pixels.
    """
    device = inputs.images.device
    soft, regions = (
        stack_padded([item[key].to(device) for item in items], patch_size)
        for key in ("mask", "regions")
    )
    known = torch.tensor([item.get("mask_known", True) for item in items], device=device)
    fractions = F.avg_pool2d(soft[:, None], patch_size)[:, 0]
    valid = torch.ones_like(fractions, dtype=torch.bool)
    if inputs.patch_valid is not None:
        valid = inputs.patch_valid
        # A fraction of the patch's image, not of its padding.
        pixels = valid_pixels(inputs.extents, (soft.shape[1], soft.shape[2]))
        image = F.avg_pool2d(pixels[:, None].float(), patch_size)[:, 0]
        fractions = fractions / image.clamp(min=1 / patch_size**2)
    masks = []
    for item, numbered in zip(items, regions, strict=True):
        numbers = torch.arange(1, _region_count(item) + 1, device=device)
        masks.append((numbered[None] == numbers[:, None, None]).float())
    labels = torch.tensor([float(item["label"]) for item in items], device=device)
    return Targets(labels, masks, fractions, valid & known[:, None, None], known)


def count_targets(
    items: Sequence[Item], patch_size: int, num_queries: int, criterion: MaskCriterion | None
) -> Tensor:
    """The `LossCounts` of a batch as a float64 tensor (4,) on the CPU; they add up.

    Args:
        items: Items of the dataset mapper.
        patch_size: Side of a patch in pixels.
        num_queries: Queries per image; 0 without a segmenter.
        criterion: Knows the class weights of queries; None without a segmenter.
    """
    known = [item for item in items if item.get("mask_known", True)]
    patches = masks = 0.0
    for item in known:
        h, w = item["valid_size"]
        patches += -(-h // patch_size) * -(-w // patch_size)
        masks += min(_region_count(item), num_queries)
    class_weights = 0.0
    if criterion is not None:
        class_weights = criterion.class_weights(num_queries * len(known), masks)
    counts = LossCounts(len(items), patches, masks, class_weights)
    return torch.tensor(counts, dtype=torch.float64)


def at_least_one(counts: Tensor) -> LossCounts:
    """Counts as divisors: where there is nothing to count the loss sum is 0, and 1 divides it."""
    return LossCounts(*(value if value > 0 else 1.0 for value in counts.tolist()))


def _region_count(item: Item) -> int:
    return int(item["regions"].max()) if item.get("mask_known", True) else 0
