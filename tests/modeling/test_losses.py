"""The losses, by hand, at their limits and in their direction."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from loupe.modeling.losses import poly_focal_loss, tversky_loss

LOGITS = torch.linspace(-4, 4, 9)
ALPHAS = (0.2, 0.8)


# The paper's settings; the classes' alphas are given by each test.
POLY = {"gamma": 2.0, "epsilon": 1.0}
TVERSKY = {"false_positive": 0.3, "false_negative": 0.7}


def one(logit: float, target: float, **arguments: float) -> float:
    settings = POLY | arguments
    return poly_focal_loss(torch.tensor([logit]), torch.tensor([target]), **settings).item()


def tversky(logits: Tensor, targets: Tensor, **weights: float) -> Tensor:
    return tversky_loss(logits, targets, **TVERSKY | weights)


@pytest.mark.parametrize("y", [1.0, 0.0, 0.3])
def test_poly_focal_by_hand(y: float):
    p = 1 / (1 + math.exp(-0.5))
    pt = y * p + (1 - y) * (1 - p)
    weight = 0.8 * y + 0.2 * (1 - y)
    entropy = -(y * math.log(p) + (1 - y) * math.log(1 - p))
    expected = weight * entropy * (1 - pt) ** 2 + (1 - pt) ** 3
    assert one(0.5, y, alpha=0.8) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("target", [0.0, 1.0, 0.4])
def test_poly_focal_without_focus_and_polynomial_is_half_the_cross_entropy(target: float):
    logits, targets = LOGITS.clone().requires_grad_(), torch.full((9,), target)
    ours = poly_focal_loss(logits, targets, alpha=0.5, gamma=0.0, epsilon=0.0)
    theirs = 0.5 * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(ours, theirs)
    (ours_gradient,) = torch.autograd.grad(ours.sum(), logits)
    (theirs_gradient,) = torch.autograd.grad(theirs.sum(), logits)
    torch.testing.assert_close(ours_gradient, theirs_gradient)


def test_a_larger_alpha_makes_misses_dearer_and_false_alarms_cheaper():
    miss = [one(-2.0, 1.0, alpha=alpha) for alpha in ALPHAS]
    false_alarm = [one(2.0, 0.0, alpha=alpha) for alpha in ALPHAS]
    assert miss[0] < miss[1]
    assert false_alarm[0] > false_alarm[1]


LOSSES = {
    "poly": partial(poly_focal_loss, alpha=0.8, **POLY),
    "tversky": tversky,
}


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("logit", [-1e4, 1e4])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_losses_and_gradients_are_finite_at_extreme_logits(name: str, logit: float, target: float):
    logits = torch.full((2, 7), logit, requires_grad=True)
    loss = LOSSES[name](logits, torch.full((2, 7), target)).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_losses_are_float32_for_a_half_precision_network(name: str):
    logits = torch.randn(2, 7)
    half = LOSSES[name](logits.bfloat16(), torch.ones(2, 7))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, LOSSES[name](logits.bfloat16().float(), torch.ones(2, 7)))


def counts(true: int, invented: int, missed: int, rest: int = 3) -> tuple[Tensor, Tensor]:
    """Certain logits with these numbers of hits, false positives, false negatives."""
    called = [1] * (true + invented) + [0] * (missed + rest)
    truth = [1] * true + [0] * invented + [1] * missed + [0] * rest
    return torch.tensor([called]) * 200.0 - 100.0, torch.tensor([truth]).float()


def test_tversky_by_hand():
    logits, targets = counts(4, 2, 3)
    expected = 1 - 4 / (4 + 0.3 * 2 + 0.7 * 3)
    assert tversky(logits, targets).item() == pytest.approx(expected, rel=1e-5)


def test_tversky_with_equal_weights_is_dice():
    logits, targets = torch.randn(3, 20), torch.rand(3, 20)
    p = logits.sigmoid()
    dice = 1 - 2 * (p * targets).sum(1) / (p.sum(1) + targets.sum(1))
    ours = tversky(logits, targets, false_positive=0.5, false_negative=0.5)
    torch.testing.assert_close(ours, dice, rtol=1e-5, atol=1e-6)


def test_each_tversky_weight_weighs_its_own_error():
    false_positives, false_negatives = counts(4, 3, 0), counts(4, 0, 3)
    assert tversky(*false_negatives) > tversky(*false_positives)
    swapped = {"false_positive": 0.9, "false_negative": 0.1}
    assert tversky(*false_negatives, **swapped) < tversky(*false_positives, **swapped)
