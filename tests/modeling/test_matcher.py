"""Matching is the best assignment there is."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou

from loupe.modeling.matcher import MatchingCosts, box_losses, mask_costs, match_masks

QUERIES, POINTS = 5, 40
COSTS = MatchingCosts(class_=2.0, mask=5.0, dice=4.0, box=3.0)


def problem(regions: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(QUERIES, 2),
        2 * torch.randn(QUERIES, POINTS),
        (torch.rand(regions, POINTS) > 0.6).float(),
    )


def pair_cost(class_logits: Tensor, logits: Tensor, target: Tensor, costs: MatchingCosts) -> float:
    """The cost of one query with one target, term by term."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target)
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    forged = class_logits.softmax(0)[0]
    return float(costs.mask * cross_entropy + costs.dice * dice - costs.class_ * forged)


def brute_force(cost: list[list[float]], regions: int) -> float:
    if regions <= QUERIES:
        choices = permutations(range(QUERIES), regions)
        return min(sum(cost[q][r] for r, q in enumerate(choice)) for choice in choices)
    choices = permutations(range(regions), QUERIES)
    return min(sum(cost[q][r] for q, r in enumerate(choice)) for choice in choices)


@pytest.mark.parametrize("regions", [1, 2, 4, 6])
def test_the_assignment_is_the_best_of_all(regions: int):
    for seed in range(5):
        torch.manual_seed(seed)
        class_logits, logits, targets = problem(regions)
        cost = [
            [pair_cost(class_logits[q], logits[q], target, COSTS) for target in targets]
            for q in range(QUERIES)
        ]
        match = match_masks(class_logits, logits, targets, COSTS)
        queries, matched = (part.tolist() for part in match)
        assert len(queries) == len(set(queries)) == len(set(matched)) == min(regions, QUERIES)
        total = sum(cost[q][r] for q, r in zip(queries, matched, strict=True))
        assert total == pytest.approx(brute_force(cost, regions), rel=1e-5)


def test_without_targets_nothing_is_matched():
    queries, matched = match_masks(*problem(0), COSTS)
    assert queries.shape == matched.shape == (0,)
    assert queries.dtype == matched.dtype == torch.long


def test_mask_costs_equal_the_plain_losses():
    _, logits, targets = problem(3)
    cross_entropy, dice = mask_costs(logits, targets)
    only_mask, only_dice = MatchingCosts(0, 1, 0, 0), MatchingCosts(0, 0, 1, 0)
    for q in range(QUERIES):
        for r in range(3):
            pair = (torch.zeros(2), logits[q], targets[r])
            assert cross_entropy[q, r] == pytest.approx(pair_cost(*pair, only_mask), rel=1e-4)
            assert dice[q, r] == pytest.approx(pair_cost(*pair, only_dice), rel=1e-4)


def test_box_costs_equal_l1_and_giou_of_each_pair():
    boxes, targets = torch.rand(QUERIES, 4) * 0.5 + 0.2, torch.rand(3, 4) * 0.5 + 0.2
    distance, overlap = box_losses(boxes, targets)
    for q in range(QUERIES):
        for r in range(3):
            corners = [box_convert(box[None], "cxcywh", "xyxy") for box in (boxes[q], targets[r])]
            assert distance[q, r] == pytest.approx(float((boxes[q] - targets[r]).abs().sum()))
            giou = float(generalized_box_iou(*corners))
            assert overlap[q, r] == pytest.approx(1 - giou, rel=1e-5)


def test_boxes_decide_between_queries_with_equal_masks():
    class_logits, logits, targets = problem(1)
    class_logits[:], logits[:] = class_logits[0], logits[0]
    boxes, target_boxes = torch.rand(QUERIES, 4), torch.rand(1, 4)
    boxes[3] = target_boxes[0]
    queries, _ = match_masks(class_logits, logits, targets, COSTS, boxes, target_boxes)
    assert queries.tolist() == [3]


def test_the_class_decides_between_queries_with_equal_masks():
    class_logits, logits, targets = problem(1)
    logits[:] = logits[0]
    class_logits[:, 0], class_logits[:, 1] = 0, 0
    class_logits[2, 0] = 3  # Index 0 is "forged".
    queries, _ = match_masks(class_logits, logits, targets, COSTS)
    assert queries.tolist() == [2]


def test_a_diverged_network_is_matched_all_the_same():
    class_logits, logits, targets = problem(2)
    logits[1] = float("nan")
    class_logits[3] = float("inf")
    queries, _ = match_masks(class_logits, logits, targets, COSTS)
    assert len(queries) == 2


def test_extreme_logits_are_matched_rightly():
    targets = torch.zeros(1, POINTS)
    targets[:, :10] = 1
    logits = -1e4 * torch.ones(QUERIES, POINTS)
    logits[4] = (targets[0] * 2 - 1) * 1e4
    queries, _ = match_masks(torch.zeros(QUERIES, 2), logits, targets, COSTS)
    assert queries.tolist() == [4]


def test_matching_has_no_graph():
    class_logits, logits, targets = problem(2)
    queries, _ = match_masks(class_logits.requires_grad_(), logits.requires_grad_(), targets, COSTS)
    assert not queries.requires_grad
