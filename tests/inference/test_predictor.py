"""Prediction of one image, whatever it comes as, and of files."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from loupe.checkpoint import CheckpointError, save_weights
from loupe.config import load_config
from loupe.data.images.decoding import UnreadableImageError
from loupe.data.images.orientation import turn
from loupe.inference import LoupePredictor
from loupe.structures import Prediction
from tests.inference.conftest import CONFIG, SMALL


def assert_same(found: Prediction, expected: Prediction) -> None:
    assert found.score == expected.score
    np.testing.assert_array_equal(found.forgery_map, expected.forgery_map)


def with_orientation(pixels: np.ndarray, path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_an_image_has_one_prediction_whatever_it_comes_as(predictor, write_image, tmp_path):
    pixels = write_image(tmp_path / "a.png", 50, 70)
    content = (tmp_path / "a.png").read_bytes()
    expected = predictor(pixels)
    assert expected.forgery_map.shape == (50, 70)
    assert 0 <= expected.forgery_map.min() <= expected.forgery_map.max() <= 1
    kinds = [str(tmp_path / "a.png"), content, bytearray(content), io.BytesIO(content)]
    kinds += [Image.open(tmp_path / "a.png"), Image.fromarray(pixels)]
    for image in (*kinds, torch.from_numpy(pixels).permute(2, 0, 1)):
        assert_same(predictor(image), expected)
    ((file, listed, error, warnings),) = predictor.predict_many([tmp_path / "a.png"])
    assert (file, error, warnings) == (str(tmp_path / "a.png"), "", ())
    assert_same(listed, expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_a_pil_image_of_any_mode_is_the_file_that_it_came_from(mode, predictor, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    image = Image.fromarray(values)
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(values.astype(np.float32) / 255)
    else:
        image = image.convert("RGB").convert(mode)
    image.save(tmp_path / "a.tif")
    assert_same(predictor(image), predictor(tmp_path / "a.tif"))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 5), np.uint8), r"uint8 \(5, 5\); give uint8 \(H, W, 3\) RGB"),
        (np.zeros((5, 5, 3), np.float32), r"float32 \(5, 5, 3\); give uint8"),
        (np.zeros((0, 5, 3), np.uint8), r"uint8 \(0, 5, 3\); give uint8"),
        (torch.zeros(3, 5, 5), r"torch\.float32 \(3, 5, 5\); give torch\.uint8 \(3, H, W\)"),
        (torch.zeros(5, 5, 3, dtype=torch.uint8), r"tensor of torch\.uint8 \(5, 5, 3\)"),
        (None, "image is a NoneType"),
        (io.StringIO("text"), "the file does not exist|image is a"),
        (b"text", "the given bytes: .*no image"),
        (b"", "the given bytes: the file is empty"),
    ],
)
def test_what_is_no_image_is_refused(image, message, predictor):
    with pytest.raises((TypeError, ValueError), match=message):
        predictor(image)


def test_a_file_that_cannot_be_read_is_named(predictor, tmp_path):
    with pytest.raises(UnreadableImageError, match=r"none\.png"):
        predictor(tmp_path / "none.png")


def test_a_turned_photograph_is_judged_by_its_stored_pixels(predictor, write_image, tmp_path):
    stored = write_image(tmp_path / "stored.png", 48, 64)
    plain = predictor(stored)
    for orientation in range(1, 9):
        path = with_orientation(stored, tmp_path / "turned.png", orientation)
        expected = plain._replace(forgery_map=turn(plain.forgery_map, orientation))
        assert_same(predictor(path), expected)
        assert_same(predictor(Image.open(path)), expected)
        ((_, listed, *_),) = predictor.predict_many([path])
        assert_same(listed, expected)


def test_a_large_jpeg_has_one_prediction_however_it_is_asked_for(predictor, write_image, tmp_path):
    options = [*SMALL, "INPUT.SIZE", "32", "INPUT.REDUCED_DECODING", "True"]
    reducing = LoupePredictor(load_config(CONFIG, options), predictor.cfg.MODEL.WEIGHTS)
    write_image(tmp_path / "large.jpg", 300, 340)
    ((_, listed, *_),) = reducing.predict_many([tmp_path / "large.jpg"])
    assert_same(listed, reducing(tmp_path / "large.jpg"))


@pytest.mark.parametrize("stem", ["patch", "forensic-copies"])
def test_many_threads_may_share_a_predictor(stem, tmp_path):
    options = [*SMALL, "MODEL.PERCEPTION_ENCODER.STEM", stem, "INPUT.RESIZE", "native"]
    options += ["INPUT.SIZE", "128", "MODEL.PERCEPTION_ENCODER.WEIGHTS", ""]
    cfg = load_config(CONFIG, options)
    torch.manual_seed(0)
    save_weights(build_model(cfg).state_dict(), tmp_path / "weights.pth")
    shared = LoupePredictor(cfg, tmp_path / "weights.pth")
    random = np.random.default_rng(0)
    sizes = [(40, 90), (96, 33), (64, 64), (120, 50)] * 4
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    expected = [shared(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(shared, images), expected, strict=True):
            assert_same(found, one)


def test_an_image_that_the_model_fails_on_is_lost_alone(
    predictor, write_image, tmp_path, monkeypatch
):
    for number, height in enumerate((20, 30, 40)):
        write_image(tmp_path / f"{number}.png", height, 20)
    real = predictor.model.forward

    def failing(batch):
        if any(item["height"] == 30 for item in batch):
            raise MemoryError("too much")
        return real(batch)

    monkeypatch.setattr(predictor.model, "forward", failing)
    files = sorted(tmp_path.glob("*.png"))
    found = list(predictor.predict_many(files))
    assert [one.prediction is None for one in found] == [False, True, False]
    assert "1.png: the model failed on it (MemoryError: too much)" in found[1].error


def test_a_file_that_kills_its_worker_is_lost_alone(predictor, write_image, tmp_path, monkeypatch):
    for number in range(5):
        write_image(tmp_path / f"{number}.png", 20 + number, 20)
    real = predictor.tiled_mapper.map_image

    def deadly(image, *rest, **more):
        if len(image) == 23:
            os.kill(os.getpid(), 9)
        return real(image, *rest, **more)

    monkeypatch.setattr(predictor.tiled_mapper, "map_image", deadly)
    found = list(predictor.predict_many(sorted(tmp_path.glob("*.png")), workers=1))
    assert [one.prediction is None for one in found] == [False, False, False, True, False]


def test_weights_of_another_model_are_refused_by_name(tmp_path):
    cfg = load_config(CONFIG, SMALL)
    weights = build_model(cfg).state_dict()
    del weights["classifier.fusion.weight"]
    save_weights(weights, tmp_path / "other.pth")
    message = r"other\.pth.*\n.*missing: classifier\.fusion\.weight"
    with pytest.raises(CheckpointError, match=message):
        LoupePredictor(cfg, tmp_path / "other.pth")
