"""Hungarian matching of queries to forged regions, one image at a time (DETR, arXiv 2005.12872).

The assignment s of regions r to queries q minimises the sum of costs

    C(q, r) = l_mask BCE(q, r) + l_dice Dice(q, r) - l_class P(q is forged)
              + l_box (L1 + 1 - GIoU)(q, r)    with a box head

BCE and Dice are taken at sampled points (Mask2Former, arXiv 2112.01527, Sec. 3.3), not those of the
losses: poly focal and Tversky train, as in the released code, but do not match.

Q queries, R target regions, P sampled points.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou


class MatchingCosts(NamedTuple):
    """Weights of the terms of the cost; `box` weighs L1 and GIoU alike."""

    class_: float
    mask: float
    dice: float
    box: float


def mask_costs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice of each query with each target.

    Args:
        logits: (Q, P) at the sampled points.
        targets: (R, P) in [0, 1] at the same points.

    Returns:
        Two tensors (Q, R).
    """
    # BCE of a point with target y is y softplus(-z) + (1 - y) softplus(z): two matrix products.
    positive = F.softplus(-logits)
    negative = F.softplus(logits)
    cross_entropy = (positive @ targets.T + negative @ (1 - targets).T) / logits.shape[1]
    p = logits.sigmoid()
    overlap = 2 * (p @ targets.T)
    total = p.sum(dim=1)[:, None] + targets.sum(dim=1)[None]
    # + 1 on both sides, as in Mask2Former: an empty pair has no undefined cost.
    return cross_entropy, 1 - (overlap + 1) / (total + 1)


def box_losses(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and 1 - GIoU of each box with each target.

    Args:
        boxes: (Q, 4) normalised cx, cy, w, h.
        targets: (R, 4) likewise.

    Returns:
        Two tensors (Q, R).
    """
    corners = box_convert(boxes, "cxcywh", "xyxy")
    target_corners = box_convert(targets, "cxcywh", "xyxy")
    return torch.cdist(boxes, targets, p=1), 1 - generalized_box_iou(corners, target_corners)


@torch.no_grad()
def match_masks(
    class_logits: Tensor,
    mask_logits: Tensor,
    targets: Tensor,
    costs: MatchingCosts,
    boxes: Tensor | None = None,
    target_boxes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Assigns each target its own query, at the least total cost.

    Args:
        class_logits: (Q, 2), index 0 = forged.
        mask_logits: (Q, P) at sampled points.
        targets: (R, P) at the same points.
        costs: Weights of the terms.
        boxes: (Q, 4) and
        target_boxes: (R, 4), where the model predicts boxes.

    Returns:
        Indices of the matched queries and of their targets, min(Q, R) each.
    """
    # Imported where it is used: a prediction, which needs none of it, starts sooner.
    from scipy.optimize import linear_sum_assignment

    if not len(targets):
        empty = torch.empty(0, dtype=torch.long, device=class_logits.device)
        return empty, empty
    cross_entropy, dice = mask_costs(mask_logits.float(), targets.float())
    forged = class_logits.float().softmax(dim=1)[:, :1]
    cost = costs.mask * cross_entropy + costs.dice * dice - costs.class_ * forged
    if boxes is not None and target_boxes is not None:
        distance, overlap = box_losses(boxes.float(), target_boxes)
        cost = cost + costs.box * (distance + overlap)
    # scipy refuses NaN; a diverged network fails later in the trainer, which names its images.
    cost = torch.nan_to_num(cost, nan=1e10).clamp(-1e10, 1e10)
    query, target = linear_sum_assignment(cost.cpu().numpy())
    device = class_logits.device
    return torch.as_tensor(query, device=device), torch.as_tensor(target, device=device)
