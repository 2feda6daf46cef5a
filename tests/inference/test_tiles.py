"""Images larger than the network's input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from hypothesis import given
from hypothesis import strategies as st

from loupe.checkpoint import save_weights
from loupe.config import load_config
from loupe.inference import LoupePredictor
from loupe.inference.pretrained import PRETRAINED, pretrained, tile_rule_of
from loupe.inference.tiles import (
    GRID,
    MapMaker,
    TileSettings,
    feather,
    predict_views,
    resized_bands,
    spans,
)
from loupe.inference.verdict import TileRule, VerdictRule, rule_of
from loupe.structures import marked_regions
from tests.modeling.expert.sizes import OWN

SETTINGS = TileSettings(True, 64, 16, 2)
RULE = VerdictRule(1.0, 0.0, 0.0, 0.9, 0.3, 0, 1.0, "")
TILE_RULE = TileRule(0.5, 1.0, -0.5, -0.5, 0.0, 0.8, 0.2, "")


@given(st.integers(1, 3000), st.sampled_from([(64, 16), (128, 0), (512, 64), (336, 42)]))
def test_windows_cover_an_axis_on_the_grid_of_blocks(length: int, window: tuple[int, int]):
    side, overlap = window
    found = spans(length, side, overlap)
    assert (found[0].start, found[-1].stop) == (0, length)
    assert all(part.start % GRID == 0 and part.stop - part.start <= side for part in found)
    for one, other in zip(found, found[1:], strict=False):
        # Rounding to the grid may take up to a block of the overlap.
        assert one.stop - other.start >= overlap - GRID
        assert one.stop >= other.start


@given(st.integers(1, 2000))
def test_the_weights_of_all_windows_add_up_to_one_in_each_pixel(length: int):
    parts = spans(length, 64, 16)
    total = np.zeros(length)
    for part, weight in zip(parts, feather(parts, length), strict=True):
        assert (weight >= 0).all()
        total[part.start : part.stop] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_bands_are_those_of_an_ordinary_bilinear_resize():
    small = np.random.default_rng(0).random((9, 7), np.float32)
    bands = list(resized_bands(small, (103, 61), rows=10))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(small)[None, None], (103, 61), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(
        np.concatenate([band for _, band in bands]), expected[0, 0], atol=1e-5
    )
    assert [top for top, _ in bands] == list(range(0, 103, 10))


def test_a_map_is_the_mean_of_the_overview_and_its_windows():
    height, width = 150, 100
    made = MapMaker(np.full((30, 20), 0.2, np.float32), (height, width), SETTINGS, share=0.25)
    for row, column in SETTINGS.windows(height, width):
        made.add(row, column, np.full((row.stop - row.start, column.stop - column.start), 0.6))
    np.testing.assert_allclose(made.result, 0.25 * 0.2 + 0.75 * 0.6, atol=1e-6)


def brightness(batch: list[dict]) -> list[dict]:
    """A model that takes bright pixels for forged ones."""
    outputs = []
    for item in batch:
        h, w = item["valid_size"]
        grey = item["image"][0, :h, :w].float() / 255
        grey = cv2.resize(grey.numpy(), (item["width"], item["height"]))
        outputs.append(
            {
                "forgery_score": float(grey.max()),
                "forgery_map": torch.from_numpy(grey),
                "patch_map": None,
            }
        )
    return outputs


@pytest.fixture(scope="module")
def large(predictor: LoupePredictor) -> LoupePredictor:
    """The small predictor, told to cut images that are larger than its 128 pixels."""
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.TEST.TILES.MODE = "on"
    return LoupePredictor(cfg)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_bright_spot_is_found_where_it_lies(large: LoupePredictor, orientation: int):
    pixels = np.zeros((300, 424, 3), np.uint8)
    pixels[200:216, 40:56] = 255
    item = large.tiled_mapper.map_image(pixels, orientation=orientation)
    (output,) = predict_views(brightness, large.mapper, [item], large.tiles)
    assert "pixels" not in item, "a large image is held while its pictures are drawn"
    found = output["forgery_map"].numpy()
    (region,) = marked_regions(found)
    # Turned a quarter to the right, row y of 300 becomes column 299 - y.
    expected = (40, 200, 56, 216) if orientation == 1 else (300 - 216, 40, 300 - 200, 56)
    assert found.shape == ((300, 424) if orientation == 1 else (424, 300))
    assert np.abs(np.subtract(region.box, expected)).max() <= 2
    scores = output["tile_scores"]
    assert (len(scores.windows), max(scores.windows), min(scores.windows)) == (12, 1.0, 0.0)


def test_what_was_done_to_an_image_stands_in_its_prediction(large: LoupePredictor):
    told: list[tuple[int, int]] = []
    prediction = large(np.zeros((128, 200, 3), np.uint8), lambda *count: told.append(count))
    assert prediction.views == (
        "whole image shrunk 1.6 times, to 128 x 128",
        "2 windows of 128 px at its own scale",
    )
    assert told == [(1, 2), (2, 2)]
    assert prediction.forgery_map.shape == (128, 200)
    assert large(np.zeros((128, 100, 3), np.uint8)).views[0].startswith("whole image")


def test_an_image_and_its_file_are_cut_alike(large: LoupePredictor, tmp_path, write_image):
    pixels = write_image(tmp_path / "large.png", 140, 300)
    (one,) = large.predict_many([tmp_path / "large.png"])
    np.testing.assert_array_equal(one.prediction.forgery_map, large(pixels).forgery_map)
    assert one.prediction.views == large(pixels).views


def test_a_window_that_the_model_fails_on_fails_its_image(large: LoupePredictor):
    item = large.tiled_mapper.map_image(np.zeros((128, 300, 3), np.uint8))

    def failing(batch: list[dict]) -> list[dict]:
        return (
            [{"error": "x"}] if "window 1" in batch[0].get("file_name", "") else brightness(batch)
        )

    (output,) = predict_views(failing, large.mapper, [item | {"file_name": "a"}], large.tiles)
    assert output == {"error": "x"}


def test_the_highest_of_more_windows_says_less():
    seen = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    rule = RULE._replace(tiles=TILE_RULE)
    probabilities = [
        rule.judge(0.5, seen, 64, [0.99] + [0.4] * (n - 1), 64 * 64).probability
        for n in (4, 16, 64)
    ]
    assert probabilities == sorted(probabilities, reverse=True)
    logit = math.log(0.99 / 0.01) - 0.5 * math.log(0.4 / 0.6) - 0.5 * 2
    assert probabilities[0] == pytest.approx(1 / (1 + math.exp(-logit)))


def test_a_cut_image_is_judged_by_its_own_operating_point():
    seen = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    rule = RULE._replace(tiles=TILE_RULE._replace(median=0.0))
    windows = [0.5] * 3 + [0.9]
    verdict = rule.judge(0.5, seen, 64, windows)
    assert (verdict.word, verdict.reasons) == ("undecided", verdict.reasons)
    assert "between 0.20 and 0.80" in verdict.reasons[0]
    # Without a rule for cut images the verdict is that of the shrunk one.
    assert RULE.judge(0.5, seen, 64, windows).probability == pytest.approx(0.5)


def test_the_map_of_a_cut_image_is_taken_down_where_the_image_is_called_authentic(
    large: LoupePredictor, monkeypatch
):
    pixels = np.random.default_rng(0).integers(5, 250, (128, 300, 3), np.uint8)
    monkeypatch.setattr(large, "model", brightness)
    monkeypatch.setattr(large, "_mask_from", 0.3)
    maps = {}
    for offset in (-50.0, 50.0):
        rule = RULE._replace(tiles=TILE_RULE._replace(offset=offset))
        monkeypatch.setattr(large, "rule", rule)
        prediction = large(pixels)
        maps[prediction.verdict] = prediction.forgery_map
    # What has been .5 is .3, the level from which the model had raised it.
    odds = maps["forged"] / (1 - maps["forged"]) * 0.3 / 0.7
    np.testing.assert_allclose(maps["authentic"], odds / (1 + odds), rtol=1e-5)


def test_a_rule_for_cut_images_survives_its_file():
    rule = RULE._replace(tiles=TILE_RULE)
    assert rule_of(rule.as_metadata()) == rule
    assert rule_of(RULE.as_metadata()) == RULE
    assert "tiles" not in json.loads(RULE.as_metadata()["verdict"])


def test_models_have_names(tmp_path):
    for name in PRETRAINED:
        cfg, weights = pretrained(name)
        assert weights == cfg.MODEL.WEIGHTS
        rule = tile_rule_of(weights)
        assert rule is None or rule.authentic_below < rule.forged_from
    with pytest.raises(ValueError, match="no such model; give one of tiny"):
        pretrained("tinny")
    (tmp_path / "model_best.pth").touch()
    with pytest.raises(ValueError, match=r"no config\.yaml beside the weights"):
        pretrained(tmp_path)


def test_a_folder_of_training_is_a_model(predictor: LoupePredictor, tmp_path):
    (tmp_path / "config.yaml").write_text(predictor.cfg.dump())
    (tmp_path / "model.safetensors").symlink_to(predictor.cfg.MODEL.WEIGHTS)
    again = LoupePredictor.from_pretrained(tmp_path, ["TEST.TILES.MODE", "off"])
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert again(image).score == predictor(image).score
    assert not again.tiles.enabled


def test_regions_have_boxes_areas_and_means():
    forgery_map = np.zeros((100, 100), np.float32)
    forgery_map[10:20, 30:50] = 0.75
    forgery_map[60:65, 5:9] = 1.0
    first, second = marked_regions(forgery_map)
    assert (first.box, first.area, first.mean_score) == ((30, 10, 50, 20), 200, 0.75)
    assert (second.box, second.area) == ((5, 60, 9, 65), 20)
    assert marked_regions(forgery_map, 0.8) == (second,)


def test_an_expert_is_cut_as_a_loupe_is(tmp_path: Path):
    torch.manual_seed(0)
    weights = tmp_path / "expert.safetensors"
    save_weights(build_model(load_config("", list(OWN))).state_dict(), weights)
    expert, off = (
        LoupePredictor(load_config("", [*OWN, "TEST.TILES.MODE", mode]), str(weights))
        for mode in ("on", "off")
    )
    pixels = np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)
    prediction = expert(pixels)
    places = expert.tiles.windows(90, 150)
    assert prediction.views[1] == f"{len(places)} windows of 64 px at its own scale"
    # The parts, one by one, are what the expert says of them alone.
    whole = off(pixels)
    item = off.mapper.map_image(pixels)
    height, width = item["valid_size"]
    small = item["image"][:, :height, :width].permute(1, 2, 0).numpy()
    maker = MapMaker(off(small).forgery_map, (90, 150), expert.tiles)
    for row, column in places:
        window = off(pixels[row.start : row.stop, column.start : column.stop])
        maker.add(row, column, window.forgery_map)
    np.testing.assert_allclose(prediction.forgery_map, maker.result, atol=2e-3)
    assert prediction.class_name == whole.class_name
