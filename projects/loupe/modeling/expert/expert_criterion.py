"""Losses of the expert: cross-entropy of the classes, BCE and Dice of the masks.

    L = w_class / images  sum over images of CE
      + w_mask  / masks   sum over masks of (mean over pixels of BCE + Dice)

    Dice = 1 - (2 sum s t / 1000 + 1e-6) / (sum s / 1000 + sum t / 1000 + 1e-6)   s = sigmoid(logit)

Both sums are divided by counts of the whole optimiser step (`LossCounts`). Targets may be soft.
Differs from the released code: there the weight of the classes is ignored where a batch has no
mask, and the counts are those of one micro-batch.

B images, K classes, h w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from loupe.structures import LossCounts

# The released sums are divided by this before the small constant is added.
SCALE, SMALL = 1000.0, 1e-6


class ExpertCriterion:
    """Losses of class logits and of masks.

    Args:
        class_weight: Weight of the cross-entropy.
        mask_weight: Weight of BCE and Dice.
    """

    def __init__(self, *, class_weight: float, mask_weight: float) -> None:
        self.class_weight, self.mask_weight = class_weight, mask_weight

    def __call__(
        self,
        class_logits: Tensor,
        classes: Tensor,
        masks: Sequence[tuple[Tensor, Tensor]],
        counts: LossCounts,
    ) -> dict[str, Tensor]:
        """Returns `loss_class` and, of one or more masks, `loss_mask_bce` and `loss_mask_dice`.

        Args:
            class_logits: (B, K).
            classes: (B,) int64.
            masks: Logits (h, w) and targets (h, w) in [0, 1] of each mask; padding is cut away.
            counts: Numbers of images and masks.
        """
        entropy = F.cross_entropy(class_logits.float(), classes, reduction="sum")
        bce = torch.stack([mask_entropy(logits, target) for logits, target in masks]).sum()
        dice = torch.stack([dice_loss(logits, target) for logits, target in masks]).sum()
        return {
            "loss_class": self.class_weight * entropy / counts.images,
            "loss_mask_bce": self.mask_weight * bce / counts.masks,
            "loss_mask_dice": self.mask_weight * dice / counts.masks,
        }


def mask_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over pixels of the binary cross-entropy, float32; (h, w) both."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Dice of soft masks (h, w), float32: 0 = equal."""
    soft, target = logits.float().sigmoid(), target.float()
    both = 2 * (soft / SCALE * target).sum()
    sizes = (soft / SCALE).sum() + (target / SCALE).sum()
    return 1 - (both + SMALL) / (sizes + SMALL)
