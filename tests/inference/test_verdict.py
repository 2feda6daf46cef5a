"""Verdicts: calibration, the operating point, abstention, and where the rule is stored."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from loupe.checkpoint import load_metadata, load_weights, save_weights
from loupe.config import load_config
from loupe.inference import LoupePredictor, find_images, write_predictions
from loupe.inference.verdict import (
    AUTHENTIC,
    FORGED,
    REFERENCE_PIXELS,
    UNDECIDED,
    VerdictRule,
    flat_fraction,
    rule_of,
)
from loupe.synthesis.drawings import draw_interface
from tests.inference.conftest import CONFIG, SMALL

RULE = VerdictRule(1.0, 0.0, 0.0, 0.8, 0.6, 64, 0.6, "at most 5% of the photographs")


def noise(height: int = 100, width: int = 120) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("score", "word"), [(0.1, AUTHENTIC), (0.59, AUTHENTIC), (0.7, UNDECIDED), (0.8, FORGED)]
)
def test_the_probability_decides(score: float, word: str) -> None:
    verdict = RULE.judge(score, noise(), 100)
    assert verdict.word == word
    assert verdict.probability == pytest.approx(score)
    assert bool(verdict.reasons) == (word == UNDECIDED)


def test_what_is_small_or_drawn_is_undecided_whatever_its_score() -> None:
    drawn = draw_interface(np.random.default_rng(3), 160)
    for image, side, word in ((noise(), 60, "too small"), (drawn, 160, "no photograph")):
        for score in (0.01, 0.99):
            verdict = RULE.judge(score, image, side)
            assert verdict.word == UNDECIDED
            assert any(reason.startswith(word) for reason in verdict.reasons)


def test_the_size_term_counts_doublings_of_the_pixels() -> None:
    rule = RULE._replace(slope=2.0, offset=0.5, size_slope=-0.25)
    logits = [
        math.log(p / (1 - p))
        for p in (rule.probability(0.7, REFERENCE_PIXELS * factor) for factor in (1, 4))
    ]
    assert logits[0] == pytest.approx(2 * math.log(0.7 / 0.3) + 0.5)
    assert logits[1] == pytest.approx(logits[0] - 0.5)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_certain_score_has_a_probability(score: float) -> None:
    assert 0 < RULE.probability(score, 1000) < 1


def test_a_flat_picture_is_flat_and_noise_is_not() -> None:
    assert flat_fraction(np.full((5, 5, 3), 7, np.uint8)) == 1
    assert flat_fraction(noise()) < 0.01
    assert flat_fraction(noise(5, 1)) == 0


def test_the_rule_lies_in_the_file_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights({"a": torch.ones(2)}, path, RULE.as_metadata())
    assert rule_of(load_metadata(path)) == RULE
    assert torch.equal(load_weights(path)["a"], torch.ones(2))


def test_weights_without_a_rule_have_none(tmp_path: Path) -> None:
    for name in ("weights.safetensors", "weights.pth"):
        save_weights({"a": torch.ones(2)}, tmp_path / name)
        assert rule_of(load_metadata(tmp_path / name)) is None


@pytest.mark.parametrize("content", ["{", '{"slope": 1.0}'])
def test_a_damaged_rule_is_refused(content: str) -> None:
    with pytest.raises(ValueError, match="publish the weights anew"):
        rule_of({"verdict": content})


def test_a_rule_of_the_weights_gives_every_prediction_its_verdict(
    tmp_path: Path, write_image
) -> None:
    torch.manual_seed(0)
    cfg = load_config(CONFIG, SMALL)
    rule = VerdictRule(1.0, 3.0, 0.5, 0.9, 0.5, 16, 0.6, "")
    weights = build_model(cfg).state_dict()
    plain, ruled = tmp_path / "plain.safetensors", tmp_path / "ruled.safetensors"
    save_weights(weights, plain)
    save_weights(weights, ruled, rule.as_metadata())
    write_image(tmp_path / "images" / "a.png", 50, 70)
    write_image(tmp_path / "images" / "b.png", 8, 70)
    names = find_images(tmp_path / "images")
    predictor = LoupePredictor(cfg, ruled)
    write_predictions(predictor.predict_many(list(names)), names, tmp_path / "out")
    first, second = csv.DictReader((tmp_path / "out" / "predictions.csv").open())
    prediction = LoupePredictor(cfg, plain)(tmp_path / "images" / "a.png")
    assert prediction.verdict == ""
    expected = rule.probability(prediction.score, cfg.INPUT.SIZE**2)
    assert float(first["probability"]) == pytest.approx(expected, abs=1e-6)
    assert first["verdict"] in (AUTHENTIC, FORGED, UNDECIDED)
    assert second["verdict"] == UNDECIDED
    assert second["reasons"].startswith("too small")
