"""Exported sets, saved maps, a model with a bad image, and runs that go on where they stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from loupe.checkpoint import save_weights
from loupe.config import load_config
from loupe.data.images.degradation import DEGRADATIONS, degrade
from loupe.data.images.masks import read_image_and_mask
from loupe.data.sources.catalog import load_dataset
from loupe.evaluation import ForgeryEvaluator
from loupe.inference import LoupePredictor
from loupe.robustness.degraded import DegradingMapper, export, select
from loupe.robustness.points import digest, list_points, point_folder
from loupe.robustness.runs import (
    ModelDetector,
    Plan,
    SavedDetector,
    measure_points,
    write_curves,
)
from loupe.structures import GroundTruth

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quick" / "loupe_stage2.yaml"
SMALL = ["MODEL.PERCEPTION_ENCODER.DEPTH", "1", "TEST.IMS_PER_BATCH", "3", "MODEL.DEVICE", "cpu"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six images, every other one forged, and their manifest."""
    random = np.random.default_rng(0)
    rows = ["image,mask,label"]
    for index in range(6):
        image = cv2.resize(random.integers(0, 256, (5, 6, 3), np.uint8), (48, 40))
        cv2.imwrite(str(tmp_path / f"image{index}.png"), image)
        mask = np.zeros((40, 48), np.uint8)
        mask[12:30, 6 : 30 + index] = 255
        if index % 2:
            cv2.imwrite(str(tmp_path / f"mask{index}.png"), mask)
        rows.append(f"image{index}.png,{f'mask{index}.png' if index % 2 else ''},{index % 2}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> LoupePredictor:
    cfg = load_config(CONFIG, SMALL)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(build_model(cfg).state_dict(), path)
    return LoupePredictor(cfg, path)


def quiet(line: str) -> None:
    pass


def test_every_point_has_a_folder_of_its_own():
    points = list_points(DEGRADATIONS)
    assert len({point_folder(*point) for point in points}) == len(points) > 80


def test_an_exported_set_holds_the_degraded_images_and_their_masks(data):
    points, source = list_points(["crop", "jpeg"]), load_dataset(str(data))
    assert export(source, data / "out", points, 5, quiet) == {}
    for axis, level in points[1:]:
        exported = load_dataset(str(data / "out" / point_folder(axis, level)))
        for old, new in zip(source, exported, strict=True):
            image, mask = read_image_and_mask(old["file_name"], old["mask_file_name"])
            mask = None if mask is None else mask >= 0.5
            expected = degrade(image, mask, axis, level, seed=5, image_id=old["image_id"])
            found = read_image_and_mask(new["file_name"], new["mask_file_name"], "strict")
            np.testing.assert_array_equal(found[0], expected[0])
            assert new["label"] == old["label"]
            if mask is not None:
                np.testing.assert_array_equal(found[1] >= 0.5, expected[1])


def save_truth(exported: Path, saved: Path) -> None:
    """The predictions of a perfect detector: masks as maps, labels as probabilities."""
    shutil.copytree(exported / "masks", saved / "maps")
    rows = ["file,probability,error"]
    for entry in load_dataset(str(exported)):
        rows.append(f"{entry['file_name']},{0.1 + 0.8 * entry['label']},")
        if not entry["label"]:
            shape = cv2.imread(entry["file_name"]).shape[:2]
            path = saved / "maps" / Path(entry["file_name"]).name
            cv2.imwrite(str(path), np.zeros(shape, np.uint8))
    (saved / "predictions.csv").write_text("\n".join(rows) + "\n")


def test_a_perfect_detector_scores_one_and_maps_that_change_are_scored_anew(data):
    axes = ("shrink", "sharing", "benco_blur")
    export(load_dataset(str(data)), data / "out", list_points(axes), 0, quiet)
    for point in list_points(axes):
        save_truth(data / "out" / point_folder(*point), data / "saved" / point_folder(*point))
    detector = SavedDetector(data / "out", data / "saved")
    plan = Plan(axes, ("image/AUC", "pixel/F1-image"), 20, 0, data / "curves")
    lines: list[str] = []
    report = write_curves(plan, measure_points(plan, detector, lines.append), {})
    assert report == json.loads((data / "curves/robustness.json").read_text())
    assert report["axes"].keys() == set(axes)
    for curve in report["axes"].values():
        for one in [*curve["points"], {"metrics": curve["area"]}]:
            for metric in one["metrics"].values():
                assert metric["value"] == pytest.approx(1)
                assert metric["ci95"] == pytest.approx([1, 1])
    cv2.imwrite(str(data / "saved/shrink/0.9/maps/0000001.png"), np.zeros((36, 43), np.uint8))
    again: list[str] = []
    list(measure_points(plan, detector, again.append))
    assert sum("(kept)" in line for line in again) == len(lines) - 1
    assert not any("(kept)" in line for line in lines)


def test_a_model_is_run_over_all_levels_and_a_bad_image_ends_nothing(data, predictor):
    (data / "image2.png").write_bytes(b"no image")
    metrics = ("image/bAcc", "pixel/AUC-image", "benco/F1")
    plan = Plan(("blur", "crop"), metrics, 10, 0, data / "out")
    detector = ModelDetector(predictor, load_dataset(str(data)), seed=0)
    report = write_curves(plan, measure_points(plan, detector, quiet), {})
    assert (report["images"], report["clean"]["unreadable"]) == (5, 1)
    assert "image2.png" in next(iter(report["clean"]["errors"]))
    assert [len(curve["points"]) for curve in report["axes"].values()] == [5, 5]
    for name in ("image_bAcc", "pixel_AUC-image", "benco_F1"):
        assert cv2.imread(str(data / "out" / f"{name}.png")).shape[1] > 600
    rows = (data / "out/robustness.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * (1 + 6 + 6)
    assert sum(",area," in row for row in rows) == 6


def test_the_model_sees_exactly_the_degraded_pixels(data, predictor):
    entries = load_dataset(str(data))
    evaluator = ForgeryEvaluator("toy", protocols=(), resamples=0, distributed=False)
    ModelDetector(predictor, entries, seed=3).measure("noise", 16, evaluator)
    measured = evaluator.shard().table.columns().probability
    for entry, probability in zip(entries, measured, strict=True):
        image = read_image_and_mask(entry["file_name"], None)[0]
        noisy = degrade(image, None, "noise", 16, seed=3, image_id=entry["image_id"])[0]
        assert predictor(noisy).score == pytest.approx(probability, abs=1e-5)


def test_some_images_are_spread_over_the_set_and_a_set_without_labels_is_refused(data):
    names = [Path(entry["file_name"]).name for entry in select(str(data), 3)]
    assert names == ["image0.png", "image2.png", "image4.png"]
    (data / "plain").mkdir()
    shutil.copy(data / "image0.png", data / "plain")
    with pytest.raises(ValueError, match="no image has a label; robustness needs the truth"):
        select(str(data / "plain"), None)


class StandIn:
    """Predicts every point without a model, and breaks off at one of them."""

    def __init__(self, key: str, break_at: int | None) -> None:
        self._key, self.break_at, self.measured = key, break_at, []

    def key(self, axis, level) -> str:
        return self._key

    def measure(self, axis, level, evaluator) -> None:
        if len(self.measured) == self.break_at:
            raise KeyboardInterrupt
        self.measured.append((axis, level))
        random = np.random.default_rng(len(str(level)))
        mask = np.zeros((10, 10), bool)
        mask[:5] = True
        for name in "abcdef":
            forgery_map = random.random((10, 10)).astype(np.float32)
            truth = GroundTruth(int(name > "b"), mask if name > "b" else None, "", "")
            evaluator.add(name, name, truth, float(random.random()), forgery_map)


@pytest.fixture
def run(tmp_path) -> Callable[..., list]:
    """Measures two axes with a stand-in; returns what it measured."""

    def measure(
        key: str = "a", break_at: int | None = None, metrics=("image/AUC", "pixel/F1-image"), **plan
    ) -> list:
        detector = StandIn(key, break_at)
        options = {"resamples": 20, "seed": 0} | plan
        wanted = Plan(("shift", "sharing"), metrics, output=tmp_path / "out", **options)
        try:
            write_curves(wanted, measure_points(wanted, detector, quiet), {})
        except KeyboardInterrupt:
            assert break_at is not None
        return detector.measured

    return measure


def test_an_interrupted_run_loses_one_level_and_ends_with_the_same_numbers(run, tmp_path):
    everything = run()
    whole = (tmp_path / "out/robustness.json").read_text()
    shutil.rmtree(tmp_path / "out")
    assert run(break_at=3) == everything[:3]
    assert run() == everything[3:]
    assert (tmp_path / "out/robustness.json").read_text() == whole
    assert run() == []
    (tmp_path / "out/points/shift/2.npz").write_bytes(b"PK damaged")
    assert run() == [("shift", 2)]


def test_levels_are_measured_anew_if_what_they_depend_on_changes(run):
    assert len(run()) == len(run(resamples=10)) == len(run(key="b", resamples=10)) == 11
    assert run(key="b", resamples=10, metrics=("image/AUC",)) == []
    assert len(run(key="b", resamples=10, metrics=("benco/F1",))) == 11


def test_a_model_depends_on_weights_images_and_seed(data, predictor):
    def key(seed: int = 0) -> str:
        entries = load_dataset(str(data))
        return ModelDetector(predictor, entries, seed=seed, weights=data / "model.safetensors").key(
            "blur", 1
        )

    keys = [key(), key(seed=1)]
    (data / "model.safetensors").write_bytes(b"trained longer")
    keys.append(key())
    cv2.imwrite(str(data / "image0.png"), np.zeros((40, 48, 3), np.uint8))
    keys.append(key())
    assert len(set(keys)) == 4
    assert key() == keys[-1]
    assert digest([1], []) != digest([2], [])


class Fatal(DegradingMapper):
    """Kills whoever maps image2.png."""

    def __call__(self, entry: dict) -> dict:
        if entry["file_name"].endswith("image2.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(entry)


def test_a_worker_that_is_killed_costs_the_one_image(data, predictor, monkeypatch):
    monkeypatch.setattr("loupe.robustness.runs.DegradingMapper", Fatal)
    detector = ModelDetector(predictor, load_dataset(str(data)), seed=0, workers=1)
    evaluator = ForgeryEvaluator("clean", resamples=0, distributed=False)
    ((axis, level),) = list_points(())
    detector.measure(axis, level, evaluator)
    results = evaluator.summarise([evaluator.shard()])
    assert results.counts["images"] == 5
    ((name, reason),) = results.unreadable.items()
    assert "image2.png" in name
    assert "the process that reads it is lost" in reason
