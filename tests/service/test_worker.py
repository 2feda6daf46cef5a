"""Results of a worker are those of the predictor."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from loupe.checkpoint import save_weights
from loupe.config import load_config
from loupe.explanation.facts import measure
from loupe.explanation.writer import Text, Writer
from loupe.inference import LoupePredictor
from loupe.model_zoo import CONFIGS
from loupe.modeling import ForgeryExpert
from loupe.service.description import describe
from loupe.service.model import ModelBuild
from loupe.service.store import UPLOAD
from loupe.service.worker import Made, predict_jobs, serve_jobs
from loupe.structures import Prediction
from tests.commands.test_expert import CONFIG as EXPERT
from tests.inference.conftest import predictor, write_image

__all__ = ["predictor", "write_image"]


def test_results_are_those_of_the_predictor(
    predictor: LoupePredictor, write_image: Callable[..., np.ndarray], tmp_path: Path
):
    jobs = []
    for name, size in (("a", (40, 64)), ("b", (64, 40)), ("c", (31, 17))):
        write_image(tmp_path / name / "image.png", *size)
        (tmp_path / name / "image.png").rename(tmp_path / name / UPLOAD)
        jobs.append((name, f"{name}.png", tmp_path / name))
    made = Made(predictor, describe, {})
    ends = {end.id: end for end in predict_jobs(made, jobs)}
    for name, _, folder in jobs:
        expected = predictor(folder / UPLOAD)
        assert ends[name].result["probability"] == pytest.approx(expected.score, abs=1e-6)
        assert ends[name].result["verdict"] == expected.verdict
        stored = cv2.imread(str(folder / "map.png"), cv2.IMREAD_UNCHANGED)
        assert np.abs(stored / 255 - expected.forgery_map).max() <= 0.5 / 255 + 1e-5


class CannedWriter(NamedTuple):
    size: int

    def write(self, image: np.ndarray, prediction: Prediction) -> Text:
        return Text(f"{image.shape[1]} pixels wide", True, (prediction.verdict or "none",))


def test_an_expert_is_served_with_its_facts_and_a_text(
    write_image: Callable[..., np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "expert.yaml").write_text(EXPERT)
    torch.manual_seed(0)
    model = build_model(load_config(tmp_path / "expert.yaml"))
    assert isinstance(model, ForgeryExpert)
    weights = tmp_path / "expert.safetensors"
    save_weights(model.state_dict(), weights)
    # The explainer's own base is 93 MB, which tests do not have.
    asked = []
    monkeypatch.setattr(
        Writer, "from_config", lambda cfg: asked.append(cfg.MODEL.WEIGHTS) or CannedWriter(224)
    )
    explainer = str(CONFIGS / "explain_tiny.yaml")
    made = ModelBuild(str(tmp_path / "expert.yaml"), str(weights), (), explainer)()
    assert asked == [made.model["explainer"]]
    folder = tmp_path / "a"
    image = write_image(folder / "image.png", 40, 64)
    (folder / "image.png").rename(folder / UPLOAD)
    (end,) = predict_jobs(made, [("a", "a.png", folder)])
    assert end.error == ""
    prediction = made.predictor(folder / UPLOAD)
    result = end.result
    assert result["probability"] == pytest.approx(prediction.score, abs=1e-6)
    facts = measure(image, prediction, file=(folder / UPLOAD).read_bytes())
    assert [one["sentence"] for one in result["facts"]] == [one.sentence for one in facts]
    assert result["text"] == {"text": "64 pixels wide", "complete": True, "warnings": ["none"]}


def tell_what_is_ignored() -> Made:
    raise RuntimeError(signal.getsignal(signal.SIGUSR1).name)


def test_a_worker_leaves_signals_to_its_parent():
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    worker = context.Process(target=serve_jobs, args=(there, tell_what_is_ignored))
    worker.start()
    assert here.poll(120)
    assert here.recv().error == "RuntimeError: SIG_IGN"
    worker.join()
