"""The losses of the paper as pure functions of logits and targets.

Everything is computed in float32, whatever the network's precision.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def poly_focal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float, gamma: float, epsilon: float
) -> Tensor:
    """Poly-1 focal loss (Eq. 1): the focal loss (arXiv 1708.02002) with PolyLoss' first term.

        p = sigmoid(logit),    pt = y p + (1 - y) (1 - p),    w = alpha y + (1 - alpha) (1 - y)
        loss = w BCE(p, y) (1 - pt)^gamma + epsilon (1 - pt)^(gamma + 1)

    PolyLoss is arXiv 2204.12511. Only the focal term is weighted, as in the released code.

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
    error = targets * (1 - p) + (1 - targets) * p  # 1 - pt
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return weight * cross_entropy * error**gamma + epsilon * error ** (gamma + 1)


def tversky_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    false_positive: float,
    false_negative: float,
    smooth: float = 1e-6,
) -> Tensor:
    """Tversky loss (Eq. 3; arXiv 1706.05721): 1 - TP / (TP + a FP + b FN), on soft counts.

        TP = sum p y,    FP = sum p (1 - y),    FN = sum (1 - p) y    over the points of a mask

    Args:
        logits: (N, P), one row for each mask.
        targets: (N, P) in [0, 1].
        false_positive: a, weight of authentic points called forged.
        false_negative: b, weight of forged points that are missed. a = b = 0.5 is the Dice loss.
        smooth: Added to both sides of the fraction.

    Returns:
        (N,) float32.
    """
    p, targets = logits.float().sigmoid(), targets.float()
    tp = (p * targets).sum(dim=1)
    fp = (p * (1 - targets)).sum(dim=1)
    fn = ((1 - p) * targets).sum(dim=1)
    return 1 - (tp + smooth) / (tp + false_positive * fp + false_negative * fn + smooth)
