"""The step on the real models, at a tiny size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from loupe.trainer import LoupeTrainer
from loupe.trainer.step import TrainingStep
from tests.trainer.toy import TINY_MODELS, toy_config


def tiny_loupe(folder: Path, *options: object) -> CfgNode:
    return toy_config(folder, *TINY_MODELS["Loupe"], *options)


def step_of(cfg: CfgNode, items: list[dict], size: int) -> nn.Module:
    """One step of plain descent over `items` in micro-batches of `size`."""
    torch.manual_seed(0)
    model = build_model(cfg)
    micro_batches = [items[start : start + size] for start in range(0, len(items), size)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    step = TrainingStep(
        model,
        micro_batches,
        optimizer,
        seed=0,
        accumulation_steps=len(micro_batches),
        autocast_type=None,
    )
    with EventStorage():
        step.run(0)
    return model


@pytest.mark.parametrize("model", TINY_MODELS)
@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_four_micro_batches_of_two_equal_one_batch_of_eight(folder, resize, model):
    cfg = toy_config(
        folder,
        *TINY_MODELS[model],
        "SOLVER.IMS_PER_BATCH",
        8,
        "INPUT.RESIZE",
        resize,
        "MODEL.SEGMENTER.PREDICT_BOXES",
        True,
    )
    items = next(iter(LoupeTrainer.build_train_loader(cfg)))
    # Authentic images first: two micro-batches have no mask, two have all.
    items.sort(key=lambda item: item["label"])
    small, large = step_of(cfg, items, 2), step_of(cfg, items, 8)
    largest = max(float(p.grad.abs().max()) for p in large.parameters() if p.grad is not None)
    for (name, a), b in zip(small.named_parameters(), large.parameters(), strict=True):
        if b.grad is None:
            assert a.grad is None, name
            continue
        # A bias before a norm of its own channel has no gradient but rounding.
        scale = max(float(b.grad.abs().max()), 1e-2 * largest)
        torch.testing.assert_close(a.grad / scale, b.grad / scale, rtol=0, atol=1e-5, msg=name)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("model", TINY_MODELS)
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(folder, model):
    options = ("SOLVER.CHECKPOINT_PERIOD", 2, "MODEL.FREEZE", ["backbone"])
    cfg = toy_config(folder, *TINY_MODELS[model], *options)
    whole = LoupeTrainer(cfg)
    whole.train()
    (folder / "output" / "last_checkpoint").write_text("model_0000001.pth")
    rest = LoupeTrainer(cfg)
    rest.resume_or_load(resume=True)
    rest.train()
    for a, b in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(a, b)
