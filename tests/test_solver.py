from __future__ import annotations

import math

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import nn

from loupe import add_loupe_config, solver


class Net(nn.Module):
    """A backbone and a head with every kind of parameter there is."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm(4))
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.GroupNorm(2, 4)
        self.queries = nn.Embedding(3, 4)
        self.level = nn.Parameter(torch.zeros(3, 4))


@pytest.fixture
def cfg() -> CfgNode:
    cfg = add_loupe_config(get_cfg())
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5
    cfg.SOLVER.WEIGHT_DECAY = 0.03
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.02
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0
    return cfg


def settings(groups: list[dict], model: nn.Module) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) by parameter name."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }


def test_every_trainable_parameter_is_in_exactly_one_group(cfg):
    model = Net()
    grouped = [p for group in solver.parameter_groups(cfg, model) for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))


def test_frozen_parameters_are_in_no_group(cfg):
    model = Net()
    model.backbone.requires_grad_(False)
    found = settings(solver.parameter_groups(cfg, model), model)
    assert not [name for name in found if name.startswith("backbone")]


def test_a_model_without_trainable_parameters_is_an_error(cfg):
    with pytest.raises(ValueError, match=r"no parameter is trainable: MODEL\.FREEZE"):
        solver.build_optimizer(cfg, Net().requires_grad_(False))


def test_biases_and_norms_have_decays_of_their_own_and_embeddings_that_of_all_else(cfg):
    model = Net()
    found = settings(solver.parameter_groups(cfg, model), model)
    decays = {name: decay for name, (_, decay) in found.items()}
    assert {decays[name] for name in decays if name.endswith("bias")} == {0.0}
    assert "attention.in_proj_bias" in decays
    assert decays["norm.weight"] == decays["backbone.1.weight"] == 0.02
    assert decays["queries.weight"] == decays["level"] == 0.03


def test_biases_decay_as_all_else_where_no_decay_is_set_for_them(cfg):
    cfg.SOLVER.WEIGHT_DECAY_BIAS = None
    model = Net()
    found = settings(solver.parameter_groups(cfg, model), model)
    assert found["attention.in_proj_bias"][1] == found["attention.out_proj.bias"][1] == 0.03


def test_the_backbone_learns_at_its_share_of_the_rate(cfg):
    model = Net()
    rates = {n: lr for n, (lr, _) in settings(solver.parameter_groups(cfg, model), model).items()}
    expected = {n: 0.05 if n.startswith("backbone.") else 0.1 for n in rates}
    assert rates == pytest.approx(expected)


def gradients_after_step(cfg: CfgNode) -> tuple[torch.Tensor, torch.Tensor]:
    model = nn.ParameterList([torch.zeros(4), torch.zeros(9)])
    optimizer = solver.build_optimizer(cfg, model)
    for parameter in model:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model[0].grad, model[1].grad


def test_full_model_clipping_bounds_the_norm_over_all_parameters(cfg):
    cfg.SOLVER.CLIP_GRADIENTS = CfgNode(
        {"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0}
    )
    expected = 1 / math.sqrt(13)
    for gradient in gradients_after_step(cfg):
        torch.testing.assert_close(gradient, torch.full_like(gradient, expected))


def test_norm_clipping_bounds_the_norm_of_each_parameter(cfg):
    cfg.SOLVER.CLIP_GRADIENTS = CfgNode(
        {"ENABLED": True, "CLIP_TYPE": "norm", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0}
    )
    small, large = gradients_after_step(cfg)
    torch.testing.assert_close(small, torch.full((4,), 0.5))
    torch.testing.assert_close(large, torch.full((9,), 1 / 3))


def schedule(cfg: CfgNode, steps: int) -> list[float]:
    """Learning rates of all steps over the base rate."""
    cfg.SOLVER.MAX_ITER = steps
    optimizer = solver.build_optimizer(cfg, nn.Linear(1, 1, bias=False))
    scheduler = solver.build_lr_scheduler(cfg, optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"] / cfg.SOLVER.BASE_LR)
        optimizer.step()
        scheduler.step()
    return factors


def test_each_step_of_a_schedule_of_ten_with_cosine_decay(cfg):
    cfg.SOLVER.WARMUP_FRACTION, cfg.SOLVER.DECAY_FRACTION = 0.2, 0.4
    half = math.sqrt(0.5) / 2
    expected = [0, 0.5, 1, 1, 1, 1, 1, 0.5 + half, 0.5, 0.5 - half]
    assert schedule(cfg, 10) == pytest.approx(expected)


def test_each_step_of_a_schedule_of_ten_with_linear_decay(cfg):
    cfg.SOLVER.WARMUP_FRACTION, cfg.SOLVER.DECAY_FRACTION = 0.2, 0.4
    cfg.SOLVER.DECAY_SHAPE = "linear"
    assert schedule(cfg, 10) == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("warmup", "decay", "expected"),
    [
        (0.0, 0.0, [1, 1, 1, 1]),
        (0.5, 0.0, [0, 0.5, 1, 1]),
        (0.0, 0.5, [1, 1, 1, 0.5]),
        (0.5, 0.5, [0, 0.5, 1, 0.5]),
        (1.0, 0.0, [0, 0.25, 0.5, 0.75]),
    ],
)
def test_parts_of_length_zero_are_left_out(cfg, warmup, decay, expected):
    cfg.SOLVER.WARMUP_FRACTION, cfg.SOLVER.DECAY_FRACTION = warmup, decay
    assert schedule(cfg, 4) == pytest.approx(expected)


def test_the_schedule_of_103_steps_equals_the_released_one():
    # Of the released code: linear over 10.3 steps, flat, a half cosine over the last 10.3.
    released = {0: 0.0, 1: 10 / 103, 10: 100 / 103, 11: 1.0, 92: 1.0}
    released |= {
        step: 0.5 * (1 + math.cos(math.pi * (step - 92.7) / 10.3)) for step in range(93, 104)
    }
    multiplier = solver.warmup_stable_decay(0.1, 0.1, "cosine")
    assert {step: multiplier(step / 103) for step in released} == pytest.approx(released)


def test_epochs_count_accumulated_batches_and_round_up(cfg):
    cfg.SOLVER.EPOCHS, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS = 2.0, 4, 3
    assert solver.optimizer_steps(cfg, 31) == 6


def test_without_epochs_the_config_gives_the_number_of_steps(cfg):
    cfg.SOLVER.EPOCHS, cfg.SOLVER.MAX_ITER = 0.0, 11
    assert solver.with_length(cfg, None).SOLVER.MAX_ITER == 11


def test_epochs_of_data_of_unknown_length_are_an_error(cfg):
    cfg.SOLVER.EPOCHS = 1.0
    with pytest.raises(ValueError, match="does not say how many images"):
        solver.optimizer_steps(cfg, None)


def test_a_run_of_no_steps_is_an_error(cfg):
    cfg.SOLVER.EPOCHS = 1.0
    with pytest.raises(ValueError, match="0 optimiser steps; check SOLVER.EPOCHS"):
        solver.optimizer_steps(cfg, 0)
