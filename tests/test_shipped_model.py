"""The small Loupe of the repository is what its card says, and works out of the box."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from sklearn.metrics import roc_auc_score

from loupe.checkpoint import encoder_weights, load_weights
from loupe.commands import predict
from loupe.config import load_config
from loupe.data.sources.synthetic import make_sample
from loupe.inference import LoupePredictor
from loupe.model_zoo import FOLDER, shipped_file
from loupe.modeling.building import build_perception_encoder

ROOT = Path(__file__).parents[1]
NAME = "loupe://loupe_tiny_views.safetensors"
# The first one, which the quick configurations freeze.
FIRST = "loupe://loupe_tiny.safetensors"


@pytest.fixture(scope="module")
def predictor() -> LoupePredictor:
    return LoupePredictor(load_config(ROOT / "configs" / "loupe_tiny.yaml"))


def test_all_weights_together_are_small_and_in_half_precision():
    assert sum(shipped_file(name).stat().st_size for name in (NAME, FIRST)) < 25e6
    for name in (NAME, FIRST):
        assert {value.dtype for value in load_weights(name).values()} == {torch.float16}


@pytest.mark.parametrize("name", [NAME, FIRST])
def test_the_card_names_the_file_and_its_hash_is_listed(name: str):
    assert name.removeprefix("loupe://") in (FOLDER / "README.md").read_text()
    assert name.removeprefix("loupe://") in (FOLDER / "SHA256SUMS").read_text()


def test_its_encoder_is_a_start_for_training(predictor: LoupePredictor):
    vit = predictor.model.backbone.vit
    weights = encoder_weights(NAME, vit)
    assert set(vit.state_dict()) == set(weights)


def test_the_first_encoder_fits_the_quick_configurations():
    cfg = load_config(ROOT / "configs" / "quick" / "loupe_stage1.yaml")
    assert cfg.MODEL.PERCEPTION_ENCODER.WEIGHTS == FIRST
    vit = build_perception_encoder(cfg).vit
    assert set(vit.state_dict()) == set(encoder_weights(FIRST, vit))


def test_it_tells_forged_from_authentic_and_where(predictor: LoupePredictor):
    samples = [make_sample("test", 3, index, 160, 50) for index in range(60)]
    predictions = [predictor(sample.image) for sample in samples]
    labels = [sample.label for sample in samples]
    assert roc_auc_score(labels, [prediction.score for prediction in predictions]) > 0.8
    pixels = [
        roc_auc_score(sample.mask.ravel(), prediction.forgery_map.ravel())
        for sample, prediction in zip(samples, predictions, strict=True)
        if sample.label
    ]
    assert np.mean(pixels) > 0.75


def test_the_predicting_tool_needs_no_configuration(tmp_path: Path):
    images = tmp_path / "images"
    images.mkdir()
    sample = make_sample("test", 3, 1, 96, 0)
    cv2.imwrite(str(images / "a.png"), sample.image[:, :70, ::-1])
    output = tmp_path / "output"
    words = [str(images), "--output", str(output), "--workers", "0", "MODEL.DEVICE", "cpu"]
    assert predict.main(words) == 0
    (row,) = csv.DictReader((output / "predictions.csv").open())
    assert 0 <= float(row["probability"]) <= 1
    assert cv2.imread(str(output / "maps" / "a.png"), cv2.IMREAD_UNCHANGED).shape == (96, 70)


def test_detectron2s_predictor_takes_bgr_and_predicts_the_same(predictor: LoupePredictor):
    theirs = DefaultPredictor(predictor.cfg)
    image = np.ascontiguousarray(make_sample("test", 3, 1, 160, 50).image)
    expected = predictor(image)
    output = theirs(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    np.testing.assert_allclose(output["forgery_map"], expected.forgery_map, atol=1e-6)
    probability = predictor.rule.judge(output["forgery_score"], image, 160)[0]
    assert probability == pytest.approx(expected.score, abs=1e-6)
    # The colours in the other order are another image.
    assert np.abs(theirs(image)["forgery_map"].numpy() - expected.forgery_map).max() > 1e-4


@pytest.mark.parametrize("resize", ["squash", "pad", "native"])
def test_an_image_without_valid_size_is_brought_to_the_networks_size(resize: str):
    options = ["INPUT.RESIZE", resize, "INPUT.SIZE", "96", "MODEL.DEVICE", "cpu"]
    cfg = load_config(ROOT / "configs" / "loupe_tiny.yaml", options)
    ours = LoupePredictor(cfg)
    image = make_sample("test", 3, 1, 160, 50).image[:, :120]
    output = DefaultPredictor(ours.cfg)(image[:, :, ::-1])
    item = ours.mapper.map_image(np.ascontiguousarray(image))
    (expected,) = ours.model([item])
    assert output["forgery_score"] == pytest.approx(expected["forgery_score"], abs=1e-6)
    torch.testing.assert_close(output["forgery_map"], expected["forgery_map"], rtol=0, atol=1e-6)
    assert output["forgery_map"].shape == (160, 120)
