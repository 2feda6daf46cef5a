"""Optimiser, learning-rate schedule and length of a run, all from the config."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch import nn

_DECAY_SHAPES = {"cosine": CosineParamScheduler, "linear": LinearParamScheduler}


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Puts every trainable parameter of `model` into exactly one group of AdamW.

    Weight decay is `WEIGHT_DECAY_BIAS` for biases, `WEIGHT_DECAY_NORM` for the scales of norms and
    `WEIGHT_DECAY` for the rest, embeddings included (as released). The parameters of
    `model.backbone` learn at `BASE_LR * BACKBONE_MULTIPLIER`, all others at `BASE_LR`.

    Raises:
        ValueError: no parameter is trainable.
    """
    solver = cfg.SOLVER
    # Detectron2 knows a bias by the name "bias" alone; attention calls its own `in_proj_bias`.
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()}
    other_biases = {name for name in names if name.endswith("_bias")}
    overrides: dict[str, dict[str, float]] = {}
    if solver.WEIGHT_DECAY_BIAS is not None:
        overrides = {name: {"weight_decay": solver.WEIGHT_DECAY_BIAS} for name in other_biases}
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        overrides=overrides,
    )
    if not groups:
        raise ValueError(
            f"no parameter is trainable: MODEL.FREEZE is {list(cfg.MODEL.FREEZE)}. "
            "Leave out a part of it, or enable MODEL.SEGMENTER."
        )
    backbone = getattr(model, "backbone", None)
    slow = set() if backbone is None else set(map(id, backbone.parameters()))
    return [
        part
        for group in groups
        for part in _split(group, slow, factor=solver.BACKBONE_MULTIPLIER)
        if part["params"]
    ]


def _split(group: dict[str, Any], slow: set[int], *, factor: float) -> list[dict[str, Any]]:
    """Splits a group in two: parameters whose id is in `slow` get a scaled learning rate."""
    is_slow = [id(parameter) in slow for parameter in group["params"]]
    members = list(zip(group["params"], is_slow, strict=True))
    return [
        {**group, "params": [p for p, s in members if s], "lr": group["lr"] * factor},
        {**group, "params": [p for p, s in members if not s]},
    ]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Builds AdamW that clips gradients by `SOLVER.CLIP_GRADIENTS` in its own `step`.

    Besides Detectron2's clip types "value" and "norm" (each parameter on its own) there is
    "full_model": the norm over all parameters, as in Mask2Former.

    Raises:
        ValueError: no parameter is trainable.
    """
    groups = parameter_groups(cfg, model)
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    full_model = clipping.ENABLED and clipping.CLIP_TYPE == "full_model"
    kind = torch.optim.AdamW
    optimizer = (kind if full_model else maybe_add_gradient_clipping(cfg, kind))(groups)
    if full_model:

        def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, clipping.CLIP_VALUE, clipping.NORM_TYPE)

        # A hook, not a call in the trainer: a gradient scaler unscales just before `step`.
        optimizer.register_step_pre_hook(clip)
    return optimizer


def warmup_stable_decay(
    warmup_fraction: float, decay_fraction: float, decay_shape: str
) -> ParamScheduler:
    """Returns the multiplier of the learning rate as a function of progress in [0, 1).

    It rises linearly from 0 over the first `warmup_fraction`, stays 1, and falls to 0 over the
    last `decay_fraction`.

    Args:
        warmup_fraction: of the run, from 0 to 1; both together at most 1.
        decay_fraction: of the run.
        decay_shape: "cosine" or "linear".
    """
    stable_fraction = 1.0 - warmup_fraction - decay_fraction
    parts = [
        (LinearParamScheduler(0.0, 1.0), warmup_fraction),
        # Not ConstantParamScheduler: it refuses the progress 1.0 that follows the last step.
        (LinearParamScheduler(1.0, 1.0), stable_fraction),
        (_DECAY_SHAPES[decay_shape](1.0, 0.0), decay_fraction),
    ]
    # fvcore divides by the length of a part, so an empty one must go.
    parts = [(scheduler, length) for scheduler, length in parts if length > 1e-9]
    return CompositeParamScheduler(
        schedulers=[scheduler for scheduler, _ in parts],
        lengths=[length for _, length in parts],
        interval_scaling=["rescaled"] * len(parts),
    )


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """Builds the warmup-stable-decay schedule over `SOLVER.MAX_ITER` optimiser steps."""
    multiplier = warmup_stable_decay(
        cfg.SOLVER.WARMUP_FRACTION, cfg.SOLVER.DECAY_FRACTION, cfg.SOLVER.DECAY_SHAPE
    )
    return LRMultiplier(optimizer, multiplier, max_iter=cfg.SOLVER.MAX_ITER)


def optimizer_steps(cfg: CfgNode, num_images: int | None) -> int:
    """Returns the length of the run in optimiser steps.

    Args:
        cfg: `SOLVER.EPOCHS` passes over the data, or `SOLVER.MAX_ITER` steps where it is 0.
        num_images: size of the training set; None = unknown.

    Raises:
        ValueError: epochs are asked for but the size of the training set is unknown, or no step.
    """
    solver = cfg.SOLVER
    steps = solver.MAX_ITER
    if solver.EPOCHS > 0:
        if num_images is None:
            raise ValueError(
                f"SOLVER.EPOCHS is {solver.EPOCHS}, but the training loader does not say how many "
                "images it has. Set SOLVER.EPOCHS 0 and SOLVER.MAX_ITER instead."
            )
        images_per_step = solver.IMS_PER_BATCH * solver.ACCUMULATION_STEPS
        steps = math.ceil(solver.EPOCHS * num_images / images_per_step)
    if steps < 1:
        raise ValueError(
            f"the run has {steps} optimiser steps; check SOLVER.EPOCHS and SOLVER.MAX_ITER."
        )
    return steps


def with_length(cfg: CfgNode, num_images: int | None) -> CfgNode:
    """Returns a frozen copy of `cfg` whose `SOLVER.MAX_ITER` is the run's length; see above."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = optimizer_steps(cfg, num_images)
    cfg.freeze()
    return cfg


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Returns the 2-norm over all gradients there are, a scalar; 0 where there is none."""
    norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)
