"""Losses of the classifier (Eq. 2): the image's fused logit, and each patch.

    L = w [ sum over images of L_image / images + w_patch sum over patches of L_poly / patches ]

L_image is the cross-entropy, as the paper writes it, or poly focal (Eq. 1), as the released code
computes it. The patches' loss is always poly focal; its targets are the forged fractions of the
patches. Both sums are divided by counts of the whole optimiser step (`LossCounts`).

B images, h w patches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from loupe.modeling.losses import poly_focal_loss
from loupe.structures import ClassifierOutput, LossCounts, Targets


class ClassificationCriterion:
    """Losses of the fused image logit and of the patch logits.

    Args:
        image_loss: "bce" or "poly_focal".
        image_alpha: Weight of the forged class in an image's poly focal loss.
        patch_alpha: The same for patches.
        gamma: Focusing exponent.
        epsilon: Coefficient of the polynomial term.
        weight: Weight of both losses.
        patch_weight: Further weight of the patches' loss.

    Raises:
        ValueError: `image_loss` is unknown.
    """

    def __init__(
        self,
        *,
        image_loss: str,
        image_alpha: float,
        patch_alpha: float,
        gamma: float,
        epsilon: float,
        weight: float,
        patch_weight: float,
    ) -> None:
        if image_loss not in ("bce", "poly_focal"):
            raise ValueError(
                f"MODEL.CLASSIFIER.IMAGE_LOSS is {image_loss!r}; use bce or poly_focal"
            )
        self.image_loss, self.image_alpha, self.patch_alpha = image_loss, image_alpha, patch_alpha
        self.gamma, self.epsilon = gamma, epsilon
        self.weight, self.patch_weight = weight, weight * patch_weight

    def __call__(
        self, output: ClassifierOutput, targets: Targets, counts: LossCounts
    ) -> dict[str, Tensor]:
        """Returns `loss_image` and, with patch prediction, `loss_patch`."""
        image_logits = output.image_logits.float()
        if self.image_loss == "bce":
            image = F.binary_cross_entropy_with_logits(
                image_logits, targets.labels, reduction="none"
            )
        else:
            image = self._poly(image_logits, targets.labels, self.image_alpha)
        losses = {"loss_image": self.weight * image.sum() / counts.images}
        if output.patch_logits is not None:
            patch = self._poly(output.patch_logits, targets.patch_ratios, self.patch_alpha)
            patch = torch.where(targets.patch_valid, patch, 0.0)
            losses["loss_patch"] = self.patch_weight * patch.sum() / counts.patches
        return losses

    def _poly(self, logits: Tensor, targets: Tensor, alpha: float) -> Tensor:
        return poly_focal_loss(logits, targets, alpha=alpha, gamma=self.gamma, epsilon=self.epsilon)
