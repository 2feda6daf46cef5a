"""What is drawn for an image does not depend on the process that the image meets."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from loupe.trainer import LoupeTrainer
from tests.trainer.test_processes import start_processes
from tests.trainer.test_real_model import tiny_loupe

STAGES = {
    "stage 1": ("MODEL.SEGMENTER.ENABLED", False),
    "stage 2": ("MODEL.FREEZE", ["backbone", "classifier"], "MODEL.CLASSIFIER.LOSS_WEIGHT", 0.0),
    "stage 3": ("MODEL.FREEZE", []),
}
# Everything that draws: order and kind of images, augmentation, condition, points.
OPTIONS = (
    *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.MAX_ITER", 3),
    *("DATALOADER.SAMPLER_TRAIN", "BalancedSampler", "MODEL.SEGMENTER.CONDITION_JITTER", 0.5),
    *("MODEL.SEGMENTER.PREDICTED_CONDITION", 0.5),
    *("INPUT.AUGMENTATION.SCALE", 0.5, "INPUT.AUGMENTATION.JPEG", 0.5),
)


class DoubleTrainer(LoupeTrainer):
    """Trains in float64.

    AdamW divides rounding by rounding where a parameter has no gradient (the bias of a key, or one
    before a norm): in float32 two orders of summation move those weights apart.
    """

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return super().build_model(cfg).double()


def train_all_stages(arguments: Namespace) -> None:
    """Entry point of a process; the first leaves the weights of each stage."""
    folder = Path(arguments.folder)
    for stage, options in STAGES.items():
        output = folder / f"{stage} on {comm.get_world_size()}"
        trainer = DoubleTrainer(tiny_loupe(folder, *OPTIONS, *options, "OUTPUT_DIR", str(output)))
        trainer.train()
        if comm.is_main_process():
            torch.save(trainer.checkpointer.model.state_dict(), output / "weights.pth")


@pytest.mark.slow
def test_two_processes_draw_and_learn_what_one_does_in_every_stage(folder: Path):
    for processes in (1, 2):
        start_processes(train_all_stages, processes, folder)
    for stage in STAGES:
        one, two = (torch.load(folder / f"{stage} on {n}" / "weights.pth") for n in (1, 2))
        for name, value in one.items():
            torch.testing.assert_close(value, two[name], rtol=0, atol=1e-9, msg=f"{stage}: {name}")
