"""What is drawn for an image does not depend on the process that the image meets."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import Tensor, nn

from loupe.trainer import LoupeTrainer
from tests.trainer.test_processes import start_processes
from tests.trainer.test_real_model import tiny_loupe
from tests.trainer.toy import write_dataset

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


# In exact arithmetic a gradient below this is 0: the next larger ones seen are 1e-10.
ROUNDING = 1e-12
# In float32: the share of the other weights that may differ by a hundredth of an optimiser step,
# and how far outputs may. On most processors no weight does, and outputs differ by 4e-6; on an AMD
# Zen 5 0, 1 and 245 of 119,869 weights do (by up to 1.4e-3), and outputs by 1e-7, 7e-5 and 2e-3.
FAR = {"stage 1": 0.0, "stage 2": 1e-3, "stage 3": 1e-2}
OUTPUTS = {"stage 1": 2e-5, "stage 2": 2e-4, "stage 3": 5e-3}


class DoubleTrainer(LoupeTrainer):
    """Trains in float64."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return super().build_model(cfg).double()


TRAINERS = {"float64": DoubleTrainer, "float32": LoupeTrainer}


def config_of(folder: Path, stage: str, *options: object) -> CfgNode:
    return tiny_loupe(folder, *OPTIONS, *STAGES[stage], *options)


def train_all_stages(arguments: Namespace) -> None:
    """Entry point of a process; the first leaves weights and largest gradients of each stage."""
    folder = Path(arguments.folder)
    for stage in STAGES:
        for precision, kind in TRAINERS.items():
            output = folder / f"{stage} in {precision} on {comm.get_world_size()}"
            trainer = kind(config_of(folder, stage, "OUTPUT_DIR", str(output)))
            model, largest = trainer.checkpointer.model, {}
            trainer._trainer.optimizer.register_step_pre_hook(
                partial(note_gradients, model, largest)
            )
            trainer.train()
            if comm.is_main_process():
                torch.save((model.state_dict(), largest), output / "weights.pth")


def note_gradients(model: nn.Module, largest: dict[str, Tensor], *_: object) -> None:
    """Keeps the largest absolute gradient of each element over the steps."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad.abs()
            largest[name] = torch.maximum(largest.get(name, gradient), gradient)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of all stages, trained by one process and by two."""
    folder = tmp_path_factory.mktemp("trained")
    write_dataset(folder)
    for processes in (1, 2):
        start_processes(train_all_stages, processes, folder)
    return folder


def load(folder: Path, stage: str, precision: str, processes: int) -> tuple[dict, dict]:
    return torch.load(folder / f"{stage} in {precision} on {processes}" / "weights.pth")


@torch.no_grad()
def outputs_of(folder: Path, stage: str, weights: dict[str, Tensor]) -> Tensor:
    """Scores and maps of all images, float64."""
    cfg = config_of(folder, stage)
    model = build_model(cfg).double().eval()
    model.load_state_dict(weights)
    batches = LoupeTrainer.build_test_loader(cfg, str(folder / "manifest.csv"))
    outputs = [output for batch in batches for output in model(batch)]
    scores = torch.tensor([output["forgery_score"] for output in outputs])
    return torch.cat([scores, *(output["forgery_map"].flatten() for output in outputs)]).double()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_draw_and_learn_what_one_does(trained: Path, stage: str):
    one, two = (load(trained, stage, "float64", processes)[0] for processes in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=0, atol=1e-9, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_float32_differs_where_no_output_sees_it(trained: Path, stage: str):
    """AdamW divides rounding by rounding where a gradient is zero: each step is of full size."""
    (one, _), (two, _) = (load(trained, stage, "float32", processes) for processes in (1, 2))
    weights, gradients = load(trained, stage, "float64", 1)
    changed, generator, without = dict(weights), torch.Generator().manual_seed(0), 0
    far, compared = 0, 0
    for name, gradient in gradients.items():
        # Exactly 0 is 0 in float32, too.
        has_none = (gradient > 0) & (gradient < ROUNDING)
        without += int(has_none.sum())
        difference = (one[name] - two[name]).abs().masked_fill(has_none, 0)
        # Half of one optimiser step at this learning rate of 0.01.
        assert float(difference.max()) < 5e-3, name
        far, compared = far + int((difference > 1e-4).sum()), compared + int((~has_none).sum())
        noise = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        changed[name] = weights[name] + noise * has_none
    assert without > 0
    assert far <= FAR[stage] * compared
    outputs = partial(outputs_of, trained, stage)
    torch.testing.assert_close(outputs(changed), outputs(weights), rtol=0, atol=1e-9)
    torch.testing.assert_close(outputs(one), outputs(two), rtol=0, atol=OUTPUTS[stage])
