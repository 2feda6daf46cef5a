"""Mask losses have weights and values that can be computed by hand, and leave out the unknown."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from torch import Tensor

from loupe import add_loupe_config
from loupe.modeling.building import build_mask_criterion
from loupe.modeling.draws import draw_uniform
from loupe.modeling.mask_criterion import MaskCriterion, MaskLossWeights
from loupe.structures import LossCounts, MaskOutput, Targets
from tests.modeling.test_loupe import draw_alike

QUERIES, SIDE = 4, 16
ONE = LossCounts(1, 1, 1, 1)


def criterion(**changes: object) -> MaskCriterion:
    """The default configuration's, with few points that are drawn alike, and with these changes."""
    made = build_mask_criterion(add_loupe_config(get_cfg()))
    for name, value in {"num_points": 48, "draw": draw_alike, **changes}.items():
        setattr(made, name, value)
    return made


def squares(*corners: tuple[int, int, int]) -> Tensor:
    """(R, SIDE, SIDE): squares given by top, left and side."""
    masks = torch.zeros(len(corners), SIDE, SIDE)
    for mask, (top, left, side) in zip(masks, corners, strict=True):
        mask[top : top + side, left : left + side] = 1
    return masks


TWO, BIG, NONE = squares((1, 1, 5), (9, 8, 6)), squares((2, 3, 10)), squares()


def targets_of(*masks: Tensor, known: list[bool] | None = None) -> Targets:
    B = len(masks)
    mask_known = torch.tensor(known or [True] * B)
    labels = torch.tensor([float(len(mask) > 0) for mask in masks])
    ratios, valid = torch.zeros(B, 2, 2), torch.ones(B, 2, 2, dtype=torch.bool)
    return Targets(labels, list(masks), ratios, valid, mask_known)


def counts_of(targets: Targets, no_object_weight: float = 0.1) -> LossCounts:
    """The counts by their definition, image by image."""
    masks = class_weights = 0.0
    for mask, known in zip(targets.masks, targets.mask_known.tolist(), strict=True):
        if known:
            matched = min(len(mask), QUERIES)
            masks += matched
            class_weights += matched + no_object_weight * (QUERIES - matched)
    return LossCounts(len(targets.masks), 1, masks or 1, class_weights or 1)


def random_output(images: int, boxes: bool = False) -> MaskOutput:
    return MaskOutput(
        torch.randn(images, QUERIES, 2, requires_grad=True),
        torch.randn(images, QUERIES, SIDE, SIDE, requires_grad=True),
        torch.rand(images, QUERIES, 4, requires_grad=True) if boxes else None,
    )


def perfect_output(targets: Targets, boxes: Tensor | None = None) -> MaskOutput:
    """Query r of an image holds region r; the others say "no object"."""
    B = len(targets.masks)
    classes = torch.tensor([-20.0, 20.0]).repeat(B, QUERIES, 1)
    masks = torch.full((B, QUERIES, SIDE, SIDE), -20.0)
    for b, mask in enumerate(targets.masks):
        classes[b, : len(mask)] *= -1
        masks[b, : len(mask)] = mask * 40 - 20
    return MaskOutput(classes, masks, boxes)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


# ---- Names and weights


def test_each_weight_weighs_its_own_loss():
    output, targets = random_output(1, boxes=True), targets_of(TWO)
    unit = criterion(weights=MaskLossWeights(1, 1, 1, 1))([output], targets, ONE)
    ours = criterion(weights=MaskLossWeights(2, 3, 5, 7))([output], targets, ONE)
    ratios = {name: round((ours[name] / unit[name]).item(), 4) for name in unit}
    assert ratios == {
        "loss_mask_focal": 2,
        "loss_mask_tversky": 3,
        "loss_query": 5,
        "loss_box": 7,
        "loss_giou": 7,
    }


def test_the_query_loss_by_hand():
    output, targets = random_output(1), targets_of(BIG)
    output.class_logits.data[0, 2, 0] = 9  # This query will be matched: class and mask say so.
    output.mask_logits.data[0, 2] = BIG[0] * 12 - 6
    log_p = output.class_logits[0].log_softmax(1)
    unmatched = [0, 1, 3]
    expected = -(log_p[2, 0] + 0.1 * log_p[unmatched, 1].sum()) / (1 + 0.3)
    losses = criterion()([output], targets, counts_of(targets))
    torch.testing.assert_close(losses["loss_query"], 2 * expected)


def test_box_losses_by_hand():
    masks = squares((4, 4, 8))  # Centre (0.5, 0.5), side 0.5.
    boxes = torch.tensor([0.5, 0.5, 0.25, 0.5]).repeat(1, QUERIES, 1)
    output = random_output(1)._replace(boxes=boxes)
    losses = criterion()([output], targets_of(masks), ONE)
    assert losses["loss_box"].item() == pytest.approx(2 * 0.25)
    # Half of the target is covered, nothing else is: IoU 0.5, and the hull is the target.
    assert losses["loss_giou"].item() == pytest.approx(2 * 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("top", "left", "box"),
    [(0, 0, (1 / 32, 1 / 32, 1 / 16, 1 / 16)), (15, 8, (8.5 / 16, 15.5 / 16, 1 / 16, 1 / 16))],
)
def test_the_box_of_a_single_pixel_is_that_pixel(top: int, left: int, box: tuple[float, ...]):
    output = random_output(1)._replace(boxes=torch.tensor(box).repeat(1, QUERIES, 1))
    losses = criterion()([output], targets_of(squares((top, left, 1))), ONE)
    assert losses["loss_box"].item() == pytest.approx(0, abs=1e-6)
    # A thousandth: the loss adds a small constant to the areas, and these are small themselves.
    assert losses["loss_giou"].item() == pytest.approx(0, abs=1e-3)


# ---- Values


def test_a_perfect_prediction_costs_nearly_nothing():
    masks = squares((0, 0, 16))
    targets = targets_of(masks, NONE)
    boxes = torch.tensor([0.5, 0.5, 1, 1]).repeat(2, QUERIES, 1)
    losses = criterion()([perfect_output(targets, boxes)], targets, counts_of(targets))
    # Points within half a cell of the canvas' border mix the mask with the zeros outside.
    assert max(losses["loss_mask_focal"], losses["loss_mask_tversky"]) < 0.3
    assert max(losses["loss_query"], losses["loss_box"], losses["loss_giou"]) < 1e-4


def test_the_order_of_targets_is_irrelevant():
    output = random_output(1, boxes=True)
    one = criterion()([output], targets_of(TWO), ONE)
    other = criterion()([output], targets_of(TWO.flip(0)), ONE)
    torch.testing.assert_close(one, other)


def test_matching_and_losses_do_not_depend_on_autocast():
    output, targets = random_output(2, boxes=True), targets_of(TWO, BIG)
    plain = criterion()([output], targets, ONE)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = criterion()([output], targets, ONE)
    torch.testing.assert_close(plain, mixed, rtol=0, atol=0)


# ---- What teaches nothing


def test_an_authentic_batch_teaches_only_that_there_is_no_object():
    targets = targets_of(NONE, NONE)
    output = random_output(2)
    losses = criterion()([output], targets, counts_of(targets))
    assert losses["loss_mask_focal"] == losses["loss_mask_tversky"] == 0
    total(losses).backward()
    assert torch.all(output.mask_logits.grad == 0)
    assert torch.all(output.class_logits.grad[..., 1] < 0)  # More "no object" is cheaper.


def test_an_image_without_a_known_mask_changes_nothing():
    output = random_output(2)
    targets = targets_of(BIG, NONE, known=[True, False])
    both = criterion()([output], targets, counts_of(targets))
    alone = MaskOutput(output.class_logits[:1], output.mask_logits[:1], None)
    known = targets_of(BIG)
    torch.testing.assert_close(both, criterion()([alone], known, counts_of(known)))


def test_padding_is_never_sampled():
    targets = targets_of(squares((2, 2, 4)))
    output, extents = random_output(1), torch.tensor([[0.5, 0.75]])  # Valid: 8 columns, 12 rows.
    plain = criterion()([output], targets, ONE, extents)
    spoilt = output.mask_logits.detach().clone()
    spoilt[:, :, 13:] = spoilt[:, :, :, 9:] = 77  # One cell further, for bilinear sampling.
    spoilt_output = MaskOutput(output.class_logits, spoilt, None)
    torch.testing.assert_close(plain, criterion()([spoilt_output], targets, ONE, extents))


# ---- Counts


def test_points_are_mostly_the_uncertain_ones():
    logits = torch.linspace(-8, 8, SIDE).expand(1, 1, SIDE, SIDE).contiguous()
    sampler = criterion(num_points=1000, draw=draw_uniform)
    points = sampler._points(logits, torch.ones(1, 1, 2), [None])
    assert points.shape == (1, 1000, 2)
    # Of 3000 candidates about 900 lie in the middle three tenths; the 750 nearest are taken.
    near = ((points[0, :, 0] - 0.5).abs() < 0.15).float()
    assert near[:750].mean() > 0.95  # The zeros beyond the border look uncertain, too.
    assert near[750:].mean() < 0.4
