"""Prediction: arrays, files, folders, and the files that the tool writes."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from loupe.checkpoint import CheckpointError, save_weights
from loupe.config import load_config
from loupe.data.images.orientation import turn
from loupe.inference import LoupePredictor, find_images, write_predictions

CONFIG = Path(__file__).parents[2] / "configs" / "quick" / "loupe_stage2.yaml"
SMALL = ["MODEL.PERCEPTION_ENCODER.DEPTH", "1", "TEST.IMS_PER_BATCH", "2", "MODEL.DEVICE", "cpu"]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> LoupePredictor:
    torch.manual_seed(0)
    cfg = load_config(CONFIG, SMALL)
    weights = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(build_model(cfg).state_dict(), weights)
    return LoupePredictor(cfg, weights)


def write_image(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return image[..., ::-1]


def test_a_file_and_its_pixels_have_the_same_prediction(
    predictor: LoupePredictor, tmp_path: Path
) -> None:
    image = write_image(tmp_path / "a.png", 50, 70)
    from_pixels = predictor(np.ascontiguousarray(image))
    from_file = predictor(tmp_path / "a.png")
    assert from_pixels.score == from_file.score
    np.testing.assert_array_equal(from_pixels.forgery_map, from_file.forgery_map)
    assert from_file.forgery_map.shape == (50, 70)
    assert from_file.forgery_map.min() >= 0
    assert from_file.forgery_map.max() <= 1


def test_grey_pixels_are_refused_with_their_shape(predictor: LoupePredictor) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(5, 5\); give uint8 \(H, W, 3\) RGB"):
        predictor(np.zeros((5, 5), np.uint8))


def test_same_named_files_of_different_folders_and_endings_do_not_collide(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "deep/a.png", "b.png"):
        write_image(tmp_path / name, 8, 8)
    names = find_images(tmp_path)
    assert {str(Path(k).relative_to(tmp_path)): v for k, v in names.items()} == {
        "a.png": "a.png",
        "a.jpg": "a.jpg",
        "deep/a.png": "deep/a",
        "b.png": "b",
    }


def test_a_folder_without_images_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=f"{tmp_path}: there are no image files"):
        find_images(tmp_path)


def test_unreadable_files_get_a_row_with_the_reason_and_end_nothing(
    predictor: LoupePredictor, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    write_image(images / "good.png", 40, 30, seed=1)
    (images / "text.png").write_text("not a picture")
    (images / "empty.jpg").write_bytes(b"")
    whole = images / "whole.jpg"
    write_image(whole, 64, 64, seed=2)
    (images / "truncated.jpg").write_bytes(whole.read_bytes()[:400])
    names = find_images(images)
    done, failed = write_predictions(
        predictor.predict_files(list(names)), names, tmp_path / "output"
    )
    assert (done, failed) == (2, 3)
    with (tmp_path / "output" / "predictions.csv").open() as file:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert {name for name, row in rows.items() if row["error"]} == {
        "text.png",
        "empty.jpg",
        "truncated.jpg",
    }
    assert all(not row["probability"] for row in rows.values() if row["error"])
    assert 0 <= float(rows["good.png"]["probability"]) <= 1


def test_maps_masks_and_overlays_have_the_size_of_the_image_and_agree(
    predictor: LoupePredictor, tmp_path: Path
) -> None:
    write_image(tmp_path / "images" / "a.png", 33, 57, seed=3)
    names = find_images(tmp_path / "images" / "a.png")
    write_predictions(predictor.predict_files(list(names)), names, tmp_path / "output")
    read = {
        kind: cv2.imread(str(tmp_path / "output" / kind / "a.png"), cv2.IMREAD_UNCHANGED)
        for kind in ("maps", "masks", "overlays")
    }
    assert read["maps"].shape == read["masks"].shape == (33, 57)
    assert read["overlays"].shape == (33, 57, 3)
    np.testing.assert_array_equal(read["masks"], np.where(read["maps"] > 127, 255, 0))


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    cfg = load_config(CONFIG, SMALL)
    weights = build_model(cfg).state_dict()
    del weights["classifier.fusion.weight"]
    save_weights(weights, tmp_path / "other.pth")
    with pytest.raises(
        CheckpointError, match=r"other\.pth.*\n.*missing: classifier\.fusion\.weight"
    ):
        LoupePredictor(cfg, tmp_path / "other.pth")


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.CLASSIFER.*Did you mean MODEL\.CLASSIFIER"):
        load_config(CONFIG, ["MODEL.CLASSIFER.GAMMA", "1.0"])


def test_a_large_jpeg_has_one_prediction_however_it_is_asked_for(
    predictor: LoupePredictor, tmp_path: Path
) -> None:
    options = [*SMALL, "INPUT.SIZE", "32", "INPUT.REDUCED_DECODING", "True"]
    reducing = LoupePredictor(load_config(CONFIG, options), predictor.cfg.MODEL.WEIGHTS)
    write_image(tmp_path / "large.jpg", 300, 340)
    alone = reducing(tmp_path / "large.jpg")
    ((_, listed),) = reducing.predict_files([tmp_path / "large.jpg"])
    assert listed.score == alone.score
    np.testing.assert_array_equal(listed.forgery_map, alone.forgery_map)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_judged_by_its_stored_pixels(
    predictor: LoupePredictor, tmp_path: Path, orientation: int
) -> None:
    stored = np.ascontiguousarray(write_image(tmp_path / "stored.png", 48, 64))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    plain, turned = predictor(stored), predictor(tmp_path / "turned.png")
    ((_, listed),) = predictor.predict_files([tmp_path / "turned.png"])
    assert turned.score == listed.score == plain.score
    expected = turn(plain.forgery_map, orientation)
    np.testing.assert_array_equal(turned.forgery_map, expected)
    np.testing.assert_array_equal(listed.forgery_map, expected)
