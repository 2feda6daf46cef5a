"""Several processes adapt to the same weights as one."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from loupe.checkpoint import load_weights
from loupe.evaluation import ForgeryEvaluator
from loupe.trainer import LoupeTrainer
from loupe.trainer.evaluation import evaluate_model
from tests.adaptation.test_steps import fail_on
from tests.trainer.test_processes import start_processes
from tests.trainer.test_real_model import tiny_loupe
from tests.trainer.toy import write_dataset

MODES = ("offline", "online", "episodic")
# Steps of 4, 4 and 1 images: the first of two processes has no image in the last one.
IMAGES, IMAGES_PER_STEP = 9, 4


def adapt_in_all_modes(arguments: Namespace) -> None:
    """Entry point of a process; in float64, because AdamW enlarges rounding."""
    folder = Path(arguments.folder)
    for mode in MODES:
        if mode == "episodic":
            # Of two processes one fails on an image; both take the step again.
            fail_on(pytest.MonkeyPatch(), "image2.png")
        options = ("ADAPTATION.MODE", mode, "ADAPTATION.IMS_PER_BATCH", IMAGES_PER_STEP)
        options += ("ADAPTATION.BASE_LR", 1e-2, "ADAPTATION.IMAGE_WEIGHT", "agreement")
        output = str(folder / f"{mode}{arguments.num_gpus}")
        cfg = tiny_loupe(folder, *options, "TEST.IMS_PER_BATCH", 3, "OUTPUT_DIR", output)
        torch.manual_seed(0)
        model = build_model(cfg).double()
        # Most images are called forged.
        model.classifier.register_forward_hook(
            lambda module, inputs, output: output._replace(image_logits=output.image_logits + 0.5)
        )
        name = str(folder / "manifest.csv")
        loader = LoupeTrainer.build_test_loader(cfg, name)
        evaluate_model(cfg, model, loader, ForgeryEvaluator("toy", output_dir=output, resamples=0))


@pytest.mark.slow
def test_two_processes_adapt_as_one_does(tmp_path: Path):
    write_dataset(tmp_path, IMAGES)
    for processes in (1, 2):
        start_processes(adapt_in_all_modes, processes, tmp_path)
    for mode in MODES:
        one, two = (tmp_path / f"{mode}{processes}" for processes in (1, 2))
        if mode != "episodic":
            weights = load_weights(two / "model_adapted.pth")
            for name, value in load_weights(one / "model_adapted.pth").items():
                torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6, msg=name)
        summaries = [json.loads((path / "adaptation.json").read_text()) for path in (one, two)]
        assert summaries[0] == pytest.approx(summaries[1], abs=1e-6)
        assert (summaries[0]["images"], summaries[0]["steps"]) == (IMAGES, 3)
        assert summaries[0]["left_out"] == (mode == "episodic")
        metrics = [json.loads((path / "inference/toy.json").read_text()) for path in (one, two)]
        for name in ("image/AUC", "pixel/F1-pooled", "pixel/AUC-pooled"):
            values = [one_run[name]["value"] for one_run in metrics]
            assert values[0] == pytest.approx(values[1], abs=1e-6), name
