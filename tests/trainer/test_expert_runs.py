"""An expert learns the same from any split of a step, and from a run that was stopped."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils import comm
from torch import Tensor

from loupe.trainer import LoupeTrainer
from research.reliability.kill_resume import left_behind
from tests.trainer.test_draws import DoubleTrainer
from tests.trainer.test_processes import start_processes
from tests.trainer.test_resume import killed_at, start
from tests.trainer.toy import TINY_MODELS, toy_config, write_dataset

# Everything trains, of images of all classes and two sizes, drawn and augmented.
OPTIONS = (
    *TINY_MODELS["ForgeryExpert"],
    *("MODEL.FREEZE", [], "INPUT.RESIZE", "pad", "DATALOADER.SAMPLER_TRAIN", "BalancedSampler"),
    *("INPUT.AUGMENTATION.SCALE", 0.5, "INPUT.AUGMENTATION.JPEG", 0.5),
)
# Images of a micro-batch, micro-batches of a step: each is a step of 8 images.
SPLITS = {"1 x 8": (8, 1), "2 x 4": (4, 2), "4 x 2": (2, 4)}


def write_three_classes(folder: Path) -> None:
    """The tiny data set, one of whose images was generated as a whole."""
    write_dataset(folder)
    manifest = folder / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("image5.png,mask5.png,1", "image5.png,*,1"))


def train_weights(folder: Path, output: str, split: str) -> dict[str, Tensor]:
    """Weights after three optimiser steps in float64."""
    images, parts = SPLITS[split]
    sizes = ("SOLVER.IMS_PER_BATCH", images, "SOLVER.ACCUMULATION_STEPS", parts)
    options = (*OPTIONS, *sizes, "SOLVER.MAX_ITER", 3, "OUTPUT_DIR", str(folder / output))
    trainer = DoubleTrainer(toy_config(folder, *options))
    trainer.train()
    return trainer.checkpointer.model.state_dict()


def train_as_one_of_two(arguments: Namespace) -> None:
    """Entry point of a process; both leave their weights."""
    weights = train_weights(Path(arguments.folder), "two", "2 x 4")
    torch.save(weights, Path(arguments.folder) / f"weights{comm.get_rank()}.pth")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A data set, and the weights of steps that are not split."""
    folder = tmp_path_factory.mktemp("expert_runs")
    write_three_classes(folder)
    return folder, train_weights(folder, "one", "1 x 8")


def assert_same(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Float64 leaves rounding alone; 2e-13 was seen, and a step of AdamW here is 0.01."""
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-10, msg=name)


@pytest.mark.parametrize("split", ["2 x 4", "4 x 2"])
def test_a_step_in_parts_gives_the_weights_of_one_batch(whole: Any, split: str):
    folder, expected = whole
    assert_same(train_weights(folder, split, split), expected)


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(whole: Any):
    folder, expected = whole
    start_processes(train_as_one_of_two, 2, folder)
    for rank in range(2):
        assert_same(torch.load(folder / f"weights{rank}.pth"), expected)


def test_the_rate_falls_once_in_each_optimiser_step(whole: Any):
    # Released: the schedule is stepped twice, so the rate is 0 for the second half of the run.
    folder, _ = whole
    schedule = ("SOLVER.DECAY_FRACTION", 1.0, "SOLVER.DECAY_SHAPE", "linear")
    sizes = ("SOLVER.IMS_PER_BATCH", 2, "SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.MAX_ITER", 4)
    place = ("OUTPUT_DIR", str(folder / "rates"))
    trainer = LoupeTrainer(toy_config(folder, *OPTIONS, *sizes, *schedule, *place))
    rates: list[float] = []
    trainer._trainer.optimizer.register_step_pre_hook(
        lambda optimiser, *_: rates.append(optimiser.param_groups[0]["lr"])
    )
    trainer.train()
    assert rates == pytest.approx([rates[0] * left for left in (1, 0.75, 0.5, 0.25)])
    assert rates[0] > 0


def test_a_killed_run_of_an_expert_ends_as_if_it_had_not_been(tmp_path: Path, monkeypatch):
    options = (*OPTIONS, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2)
    found = []
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        (folder / "output").mkdir(parents=True)
        write_three_classes(folder)
        trainer = start(folder, *options)
        if name == "killed":
            killed_at(trainer, monkeypatch, "step", 3)
            trainer = start(folder, *options, resume=True)
            assert trainer.start_iter == 2
        trainer.train()
        found.append(left_behind(folder / "output"))
    undisturbed, killed = found
    for part, expected in undisturbed.items():
        assert killed[part] == expected, part
