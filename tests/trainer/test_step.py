"""The accumulating step: one normalisation over all micro-batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from loupe.trainer import LoupeTrainer
from loupe.trainer.step import TrainingStep, autocast_type
from tests.trainer.toy import ToyDetector, toy_config


def batches_of(folder: Path, count: int) -> list[dict]:
    """Items of the toy data set."""
    loader = LoupeTrainer.build_train_loader(toy_config(folder, "SOLVER.IMS_PER_BATCH", count))
    return next(iter(loader))


def run_step(folder: Path, items: list[dict], size: int, *, lr: float = 0.1) -> ToyDetector:
    """One step over `items` in micro-batches of `size`, on a model of always the same start."""
    torch.manual_seed(0)
    model = ToyDetector(toy_config(folder, "MODEL.SEGMENTER.CONDITION_JITTER", 0.0))
    micro_batches = [items[start : start + size] for start in range(0, len(items), size)]
    step = TrainingStep(
        model,
        micro_batches,
        torch.optim.AdamW(model.parameters(), lr=lr),
        seed=0,
        accumulation_steps=len(micro_batches),
        autocast_type=None,
    )
    with EventStorage() as storage:
        step.run(0)
        model.logged = {name: value for name, (value, _) in storage.latest().items()}
    return model


def assert_same(first: nn.Module, second: nn.Module) -> None:
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, n=name: f"grad {n}: {text}")
        torch.testing.assert_close(a, b, msg=lambda text, n=name: f"{n}: {text}")


def test_four_micro_batches_of_two_equal_one_batch_of_eight(folder):
    items = batches_of(folder, 8)
    assert_same(run_step(folder, items, 2), run_step(folder, items, 8))


def test_micro_batches_without_any_mask_weigh_as_in_one_batch(folder):
    items = sorted(batches_of(folder, 8), key=lambda item: item["label"])
    assert [item["label"] for item in items[:4]] == [0, 0, 0, 0]
    assert_same(run_step(folder, items, 2), run_step(folder, items, 8))


def test_logged_losses_are_those_of_one_large_batch(folder):
    items = batches_of(folder, 8)
    small, large = run_step(folder, items, 2).logged, run_step(folder, items, 8).logged
    for name in ("loss_image", "loss_mask", "total_loss", "gradient_norm"):
        assert small[name] == pytest.approx(large[name], rel=1e-5)


class CountingStep(TrainingStep):
    """Counts what happens in the optimiser."""

    def run(self, iteration: int) -> None:
        calls = []
        handle = self.optimizer.register_step_post_hook(lambda *_: calls.append("step"))
        super().run(iteration)
        handle.remove()
        assert calls == ["step"]


def test_an_iteration_is_one_optimiser_step_and_one_schedule_step(folder, monkeypatch):
    monkeypatch.setattr("loupe.trainer.trainer.TrainingStep", CountingStep)
    trainer = LoupeTrainer(toy_config(folder, "SOLVER.ACCUMULATION_STEPS", 3))
    trainer.train()
    assert trainer.iter == trainer.scheduler.last_epoch == 4


def test_a_short_loader_is_an_error_and_not_a_smaller_step(folder):
    items = batches_of(folder, 2)
    model = ToyDetector(toy_config(folder))
    step = TrainingStep(
        model,
        [items],
        torch.optim.AdamW(model.parameters()),
        seed=0,
        accumulation_steps=2,
        autocast_type=None,
    )
    with EventStorage(), pytest.raises(RuntimeError, match="must be endless"):
        step.run(0)


def test_bfloat16_autocast_runs_on_the_cpu_and_keeps_float32_weights(folder, monkeypatch):
    monkeypatch.setattr("loupe.trainer.step._has_bfloat16", lambda: True)
    trainer = LoupeTrainer(toy_config(folder, "SOLVER.AMP.ENABLED", True))
    seen = []
    trainer.model.segmenter.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    trainer.train()
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_a_cpu_without_bfloat16_trains_in_float32_and_says_so(folder, monkeypatch, caplog):
    cfg = toy_config(folder, "SOLVER.AMP.ENABLED", True)
    monkeypatch.setattr("loupe.trainer.step._has_bfloat16", lambda: False)
    with caplog.at_level("WARNING"):
        assert autocast_type(cfg) is None
    assert "no bfloat16" in caplog.text


def test_float16_on_the_cpu_is_an_error_that_names_the_remedy(folder):
    cfg = toy_config(folder, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16")
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE is 'cpu'\. Set SOLVER\.AMP\.DTYPE bfloat"):
        LoupeTrainer(cfg)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float16_skips_a_step_whose_gradients_overflow(folder):
    cfg = toy_config(
        folder, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16", "MODEL.DEVICE", "cuda"
    )
    trainer = LoupeTrainer(cfg)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    # The first scale overflows float32 itself.
    trainer._trainer.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**127)
    with EventStorage():
        trainer._trainer.run(0)
    assert all(map(torch.equal, before, trainer.model.parameters()))
    assert trainer._trainer.scaler.get_scale() == 2.0**126


def poison(trainer: LoupeTrainer, iteration: int) -> None:
    """Makes the loss NaN from some iteration on."""
    model = trainer.model
    forward = type(model).forward

    def poisoned(batched_inputs, counts=None):
        losses = forward(model, batched_inputs, counts)
        if trainer.iter >= iteration:
            losses["loss_mask"] = losses["loss_mask"] * float("nan")
        return losses

    model.forward = poisoned


def test_a_loss_that_is_not_finite_names_step_terms_and_images(folder):
    trainer = LoupeTrainer(toy_config(folder))
    poison(trainer, 2)
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    message = str(error.value)
    assert "iteration 2" in message
    assert "loss_mask = nan" in message
    names = [str(folder / f"image{index}.png") in message for index in range(8)]
    assert sum(names) == 2


def test_after_a_loss_that_is_not_finite_nothing_is_saved_or_evaluated(folder):
    cfg = toy_config(
        folder,
        *("SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.EMA_DECAY", 0.5),
        *("DATASETS.TEST", (str(folder / "manifest.csv"),)),
    )
    trainer = LoupeTrainer(cfg)
    poison(trainer, 3)  # The last step: Detectron2's hooks take it for the end of training.
    with pytest.raises(FloatingPointError):
        trainer.train()
    files = sorted(path.name for path in (folder / "output").glob("model*"))
    assert files == ["model_0000001.pth", "model_0000002.pth"]
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(folder):
    trainer = LoupeTrainer(toy_config(folder))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.model.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="gradient_norm = nan|gradient_norm = inf"):
        trainer.train()
    assert all(map(torch.equal, before, trainer.model.parameters()))
