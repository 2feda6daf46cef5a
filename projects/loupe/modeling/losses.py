"""The losses of the paper as pure functions of logits and targets.

Everything is computed in float32, whatever the network's precision.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def poly_focal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float, gamma: float = 2.0, epsilon: float = 1.0
) -> Tensor:
    """Poly-1 focal loss (Eq. 1; PolyLoss, arXiv 2204.12511, on top of the focal loss).

    With p = sigmoid(logit), pt the probability of the truth and w = alpha for forged, 1 - alpha for
    authentic: w BCE (1 - pt)^gamma + epsilon (1 - pt)^(gamma + 1). Only the first term is weighted,
    as in the released code.

    Args:
        logits: Any shape.
        targets: Same shape, in [0, 1]; soft targets are allowed.
        alpha: Weight of the forged class.
        gamma: Focusing exponent; 0 with epsilon 0 gives weighted BCE.
        epsilon: Coefficient of the polynomial term.

    Returns:
        The loss of each element, float32.
    """
    logits, targets = logits.float(), targets.float()
    p = logits.sigmoid()
    miss = targets * (1 - p) + (1 - targets) * p
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return weight * cross_entropy * miss**gamma + epsilon * miss ** (gamma + 1)


def tversky_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    false_positive: float = 0.3,
    false_negative: float = 0.7,
    smooth: float = 1e-6,
) -> Tensor:
    """Tversky loss (Eq. 3; arXiv 1706.05721): 1 - TP / (TP + a FP + b FN), on soft counts.

    Args:
        logits: (N, P), one row for each mask.
        targets: (N, P) in [0, 1].
        false_positive: a; forged called where it is authentic.
        false_negative: b; forged missed. a = b = 0.5 is the Dice loss.
        smooth: Added to both sides of the fraction.

    Returns:
        (N,) float32.
    """
    p, targets = logits.float().sigmoid(), targets.float()
    hit = (p * targets).sum(dim=1)
    invented = (p * (1 - targets)).sum(dim=1)
    missed = ((1 - p) * targets).sum(dim=1)
    return 1 - (hit + smooth) / (hit + false_positive * invented + false_negative * missed + smooth)
