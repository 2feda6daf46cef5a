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


def one(logit: float, target: float, **arguments: float) -> float:
    return poly_focal_loss(torch.tensor([logit]), torch.tensor([target]), **arguments).item()


def test_poly_focal_of_a_forged_element_by_hand():
    p = 1 / (1 + math.exp(-0.5))
    expected = 0.8 * -math.log(p) * (1 - p) ** 2 + (1 - p) ** 3
    assert one(0.5, 1.0, alpha=0.8) == pytest.approx(expected, rel=1e-6)


def test_poly_focal_of_an_authentic_element_by_hand():
    p = 1 / (1 + math.exp(-0.5))
    expected = 0.2 * -math.log(1 - p) * p**2 + p**3
    assert one(0.5, 0.0, alpha=0.8) == pytest.approx(expected, rel=1e-6)


def test_poly_focal_of_a_soft_target_by_hand():
    p, y = 1 / (1 + math.exp(1.0)), 0.3
    pt = y * p + (1 - y) * (1 - p)
    weight = 0.8 * y + 0.2 * (1 - y)
    entropy = -(y * math.log(p) + (1 - y) * math.log(1 - p))
    expected = weight * entropy * (1 - pt) ** 2 + (1 - pt) ** 3
    assert one(-1.0, y, alpha=0.8) == pytest.approx(expected, rel=1e-6)


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


def test_alpha_does_not_weigh_the_polynomial_term():
    difference = [
        one(-2.0, 1.0, alpha=alpha) - one(-2.0, 1.0, alpha=alpha, epsilon=0.0) for alpha in ALPHAS
    ]
    assert difference[0] == pytest.approx(difference[1], rel=1e-5)


def test_a_larger_gamma_makes_easy_elements_cheaper():
    easy = [one(3.0, 1.0, alpha=0.5, gamma=gamma, epsilon=0.0) for gamma in (0.0, 1.0, 2.0)]
    assert easy[0] > easy[1] > easy[2]


def test_a_larger_epsilon_makes_wrong_elements_dearer():
    assert one(-3.0, 1.0, alpha=0.5, epsilon=1.0) > one(-3.0, 1.0, alpha=0.5, epsilon=0.0)


LOSSES = {
    "poly": partial(poly_focal_loss, alpha=0.8),
    "tversky": tversky_loss,
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


@pytest.mark.parametrize("name", list(LOSSES))
def test_losses_prefer_the_truth(name: str):
    targets = (torch.rand(2, 7) > 0.5).float()
    good, bad = (LOSSES[name](sign * (targets * 6 - 3), targets).sum() for sign in (1, -1))
    assert good < bad


def counts(true: int, invented: int, missed: int, rest: int = 3) -> tuple[Tensor, Tensor]:
    """Certain logits with these numbers of hits, false positives, false negatives."""
    called = [1] * (true + invented) + [0] * (missed + rest)
    truth = [1] * true + [0] * invented + [1] * missed + [0] * rest
    return torch.tensor([called]) * 200.0 - 100.0, torch.tensor([truth]).float()


def test_tversky_by_hand():
    logits, targets = counts(4, 2, 3)
    expected = 1 - 4 / (4 + 0.3 * 2 + 0.7 * 3)
    assert tversky_loss(logits, targets).item() == pytest.approx(expected, rel=1e-5)


def test_tversky_with_equal_weights_is_dice():
    logits, targets = torch.randn(3, 20), torch.rand(3, 20)
    p = logits.sigmoid()
    dice = 1 - 2 * (p * targets).sum(1) / (p.sum(1) + targets.sum(1))
    ours = tversky_loss(logits, targets, false_positive=0.5, false_negative=0.5)
    torch.testing.assert_close(ours, dice, rtol=1e-5, atol=1e-6)


def test_tversky_by_default_punishes_misses_more_than_inventions():
    invented = tversky_loss(*counts(4, 3, 0)).item()
    missed = tversky_loss(*counts(4, 0, 3)).item()
    assert missed > invented


def test_each_tversky_weight_weighs_its_own_error():
    invented = tversky_loss(*counts(4, 3, 0), false_positive=0.9, false_negative=0.1).item()
    missed = tversky_loss(*counts(4, 0, 3), false_positive=0.9, false_negative=0.1).item()
    assert invented > missed


def test_tversky_is_one_for_each_mask():
    logits, targets = torch.randn(3, 20), torch.rand(3, 20)
    whole = tversky_loss(logits, targets)
    assert whole.shape == (3,)
    torch.testing.assert_close(whole[1:2], tversky_loss(logits[1:2], targets[1:2]))


def test_a_perfect_mask_costs_nothing_and_a_wrong_one_everything():
    targets = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert tversky_loss(targets * 200 - 100, targets).item() == pytest.approx(0, abs=1e-6)
    assert tversky_loss(100 - targets * 200, targets).item() == pytest.approx(1, abs=1e-5)
