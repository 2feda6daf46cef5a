"""Losses of the segmenter (Eq. 4), after matching queries with forged regions.

    L = l_mask L_poly + l_tversky L_tversky + l_class L_query + l_box (L1 + 1 - GIoU)

Poly focal (Eq. 1) and Tversky (Eq. 3) compare matched masks at sampled points; L_query is the
cross-entropy of all queries' classes (Mask2Former). Each prediction of the decoder, one before its
first layer and one after each, has these losses (deep supervision).

Every term is a sum divided by a count of the whole optimiser step (`LossCounts`), so the losses of
micro-batches add up to the loss of the step, on one process or many.

B images, Q queries, M matched masks, P points, H W mask cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from detectron2.projects.point_rend.point_features import point_sample
from torch import Generator, Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou_loss, masks_to_boxes

from loupe.modeling.draws import draw_uniform
from loupe.modeling.losses import poly_focal_loss, tversky_loss
from loupe.modeling.matcher import MatchingCosts, match_masks
from loupe.structures import LossCounts, MaskOutput, Targets

# Index of a class in `MaskOutput.class_logits`.
FORGED, NO_OBJECT = 0, 1


class MaskLossWeights(NamedTuple):
    """Weights of the terms of Eq. 4; `class_` is Mask2Former's loss on the queries' classes."""

    mask: float
    tversky: float
    class_: float
    box: float


class Matches(NamedTuple):
    """Matched pairs of a batch: image, query and the target's index in the stacked targets (M,)."""

    image: Tensor
    query: Tensor
    target: Tensor


class MaskCriterion:
    """Matches queries with regions and compares them, for each prediction of the decoder.

    Args:
        weights: Weights of the loss terms.
        costs: Weights of the matching costs.
        alpha: Weight of forged points in the poly focal loss.
        gamma: Focusing exponent.
        epsilon: Coefficient of the polynomial term.
        false_positive: Tversky weight of false positives.
        false_negative: Tversky weight of false negatives.
        no_object_weight: Class weight of unmatched queries.
        num_points: Points per mask.
        oversample_ratio: Candidates for each point.
        importance_ratio: Fraction of the points taken where the logit is nearest to 0.
        draw: Gives the random numbers, see `draw_uniform`.
    """

    def __init__(
        self,
        *,
        weights: MaskLossWeights,
        costs: MatchingCosts,
        alpha: float,
        gamma: float,
        epsilon: float,
        false_positive: float,
        false_negative: float,
        no_object_weight: float,
        num_points: int,
        oversample_ratio: float,
        importance_ratio: float,
        draw: Callable[..., Tensor] = draw_uniform,
    ) -> None:
        self.weights, self.costs = weights, costs
        self.alpha, self.gamma, self.epsilon = alpha, gamma, epsilon
        self.false_positive, self.false_negative = false_positive, false_negative
        self.no_object_weight = no_object_weight
        self.num_points = num_points
        self.oversample_ratio, self.importance_ratio = oversample_ratio, importance_ratio
        self.draw = draw

    def __call__(
        self,
        outputs: Sequence[MaskOutput],
        targets: Targets,
        counts: LossCounts,
        extents: Tensor | None = None,
        generators: Sequence[Generator | None] | None = None,
    ) -> dict[str, Tensor]:
        """Computes the losses of all predictions.

        Args:
            outputs: One for each depth of the decoder, the final one last.
            targets: Masks of the batch.
            counts: What the sums are divided by.
            extents: (B, 2), fraction of the canvas (x, y) that is image; None = all.
            generators: One for each image, which draws its points; None = PyTorch's global one.

        Returns:
            `loss_query`, `loss_mask_focal`, `loss_mask_tversky` (and `loss_box`, `loss_giou` with
            a box head); those of earlier predictions end in `_0`, `_1`, ...
        """
        device = targets.labels.device
        if extents is None:
            extents = torch.ones(len(targets.masks), 2, device=device)
        generators = generators or [None] * len(targets.masks)
        boxes = [_boxes(masks) for masks in targets.masks]
        losses: dict[str, Tensor] = {}
        # The one place that keeps matching and losses in float32, whatever the network runs in.
        with torch.autocast(device.type, enabled=False):
            for depth, output in enumerate(outputs):
                suffix = "" if depth == len(outputs) - 1 else f"_{depth}"
                matches = self.match(output, targets, boxes, extents, generators)
                terms = self._query_loss(output, matches, targets, counts)
                terms |= self._mask_losses(output, matches, targets, counts, extents, generators)
                if output.boxes is not None:
                    terms |= self._box_losses(output, matches, torch.cat(boxes), counts)
                losses |= {name + suffix: value for name, value in terms.items()}
        return losses

    def class_weights(self, queries: float, matched: float) -> float:
        """Sum of the class weights of so many queries, `LossCounts.class_weights`."""
        return matched + (queries - matched) * self.no_object_weight

    @torch.no_grad()
    def match(
        self,
        output: MaskOutput,
        targets: Targets,
        boxes: list[Tensor],
        extents: Tensor,
        generators: Sequence[Generator | None],
    ) -> Matches:
        """Matches every image of the batch at freshly drawn points shared by its queries."""
        points = self.draw(generators, self.num_points, 2, device=extents.device)
        points = points * extents[:, None]
        sampled = point_sample(output.mask_logits.float(), points, align_corners=False)
        images, queries, regions, first = [], [], [], 0
        for b, masks in enumerate(targets.masks):
            if len(masks):
                truth = point_sample(masks[None].float(), points[b : b + 1], align_corners=False)
                query, region = match_masks(
                    output.class_logits[b],
                    sampled[b],
                    truth[0],
                    self.costs,
                    None if output.boxes is None else output.boxes[b],
                    boxes[b],
                )
                images.append(torch.full_like(query, b))
                queries.append(query)
                regions.append(region + first)
            first += len(masks)
        if not images:
            nothing = torch.empty(0, dtype=torch.long, device=extents.device)
            return Matches(nothing, nothing, nothing)
        return Matches(torch.cat(images), torch.cat(queries), torch.cat(regions))

    def _query_loss(
        self, output: MaskOutput, matches: Matches, targets: Targets, counts: LossCounts
    ) -> dict[str, Tensor]:
        logits = output.class_logits.float()
        labels = torch.full(logits.shape[:2], NO_OBJECT, device=logits.device)
        labels[matches.image, matches.query] = FORGED
        weight = torch.where(labels == FORGED, 1.0, self.no_object_weight)
        weight = weight * targets.mask_known[:, None]
        loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        total = (weight * loss).sum() / counts.class_weights
        return {"loss_query": self.weights.class_ * total}

    def _mask_losses(
        self,
        output: MaskOutput,
        matches: Matches,
        targets: Targets,
        counts: LossCounts,
        extents: Tensor,
        generators: Sequence[Generator | None],
    ) -> dict[str, Tensor]:
        if not len(matches.image):
            # Nothing to match: zero, but every parameter still takes part in the backward pass.
            nothing = output.mask_logits.float().sum() * 0.0
            return {"loss_mask_focal": nothing, "loss_mask_tversky": nothing}
        predicted = output.mask_logits[matches.image, matches.query][:, None].float()
        truth = torch.cat(targets.masks)[matches.target][:, None].float()
        with torch.no_grad():
            drawn_by = [generators[b] for b in matches.image.tolist()]
            points = self._points(predicted, extents[matches.image, None], drawn_by)
            labels = point_sample(truth, points, align_corners=False)[:, 0]
        logits = point_sample(predicted, points, align_corners=False)[:, 0]
        focal = poly_focal_loss(
            logits, labels, alpha=self.alpha, gamma=self.gamma, epsilon=self.epsilon
        )
        tversky = tversky_loss(
            logits,
            labels,
            false_positive=self.false_positive,
            false_negative=self.false_negative,
        )
        return {
            "loss_mask_focal": self.weights.mask * focal.mean(dim=1).sum() / counts.masks,
            "loss_mask_tversky": self.weights.tversky * tversky.sum() / counts.masks,
        }

    def _points(
        self, logits: Tensor, extents: Tensor, generators: Sequence[Generator | None]
    ) -> Tensor:
        """(M, P, 2): mostly the most uncertain of many candidates, the rest uniform.

        As in PointRend (arXiv 1912.08193, Sec. 3.1): uncertain is where the logit is nearest to 0.
        """
        device = logits.device
        candidates = int(self.num_points * self.oversample_ratio)
        points = self.draw(generators, candidates, 2, device=device) * extents
        uncertainty = -point_sample(logits, points, align_corners=False)[:, 0].abs()
        uncertain = int(self.importance_ratio * self.num_points)
        index = uncertainty.topk(uncertain, dim=1).indices
        chosen = points.gather(1, index[..., None].expand(-1, -1, 2))
        rest = self.draw(generators, self.num_points - uncertain, 2, device=device) * extents
        return torch.cat([chosen, rest], dim=1)

    def _box_losses(
        self, output: MaskOutput, matches: Matches, targets: Tensor, counts: LossCounts
    ) -> dict[str, Tensor]:
        assert output.boxes is not None
        if not len(matches.image):
            nothing = output.boxes.sum() * 0.0
            return {"loss_box": nothing, "loss_giou": nothing}
        boxes, targets = output.boxes[matches.image, matches.query], targets[matches.target]
        giou = generalized_box_iou_loss(
            box_convert(boxes, "cxcywh", "xyxy"), box_convert(targets, "cxcywh", "xyxy")
        )
        weight = self.weights.box / counts.masks
        return {
            "loss_box": weight * (boxes - targets).abs().sum(),
            "loss_giou": weight * giou.sum(),
        }


def _boxes(masks: Tensor) -> Tensor:
    """(R, H, W) masks in [0, 1] -> (R, 4) normalised cx, cy, w, h of all above half the peak."""
    if not len(masks):
        return masks.new_zeros(0, 4, dtype=torch.float32)
    height, width = masks.shape[1:]
    # Half of the peak, so that a soft mask which stays below 0.5 has a box, too.
    inside = masks >= 0.5 * masks.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    inside[~inside.flatten(1).any(dim=1)] = True
    corners = masks_to_boxes(inside).float()
    corners[:, 2:] += 1
    return box_convert(corners / corners.new_tensor([width, height] * 2), "xyxy", "cxcywh")
