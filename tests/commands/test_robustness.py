"""Robustness: areas under curves, exported sets, saved maps, and a model with a bad image."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from loupe.checkpoint import save_weights
from loupe.commands import robustness
from loupe.config import load_config
from loupe.data.images.decoding import read_image_and_mask
from loupe.data.images.degradation import DEGRADATIONS, degrade
from loupe.data.sources.catalog import load_dataset
from loupe.evaluation import ForgeryEvaluator
from loupe.evaluation.robustness import METRICS, Point, areas
from loupe.inference import LoupePredictor
from loupe.structures import GroundTruth

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quick" / "loupe_stage2.yaml"
SMALL = ["MODEL.PERCEPTION_ENCODER.DEPTH", "1", "TEST.IMS_PER_BATCH", "3", "MODEL.DEVICE", "cpu"]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return robustness


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
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(build_model(load_config(CONFIG, SMALL)).state_dict(), path)
    return path


class Answers(NamedTuple):
    """Images that a made-up detector answers at one level, and how much of the mask it finds."""

    level: float | str
    found: list[float]


def point_of(answers: Answers, names: str = "abcdefgh") -> Point:
    evaluator = ForgeryEvaluator("toy", protocols=(), resamples=0, distributed=False)
    mask = np.zeros((10, 10), bool)
    mask[:5] = True
    for name, found in zip(names, answers.found, strict=True):
        forgery_map = np.zeros((10, 10), np.float32)
        forgery_map[: round(5 * found)] = 1
        evaluator.add(name, name, GroundTruth(1, mask), 0.5, forgery_map)
    share = evaluator.share()
    return Point("axis", answers.level, evaluator.summarise([share]), share.table)


def area_of(curve: list[Answers], **options):
    points = [point_of(one) for one in curve]
    return areas(points, ("pixel/IoU-image",), **({"resamples": 200, "seed": 0} | options))[
        "pixel/IoU-image"
    ]


def test_an_area_is_the_mean_height_on_the_levels_own_scale():
    curve = [Answers(0, [1.0] * 8), Answers(1, [0.6] * 8), Answers(3, [0.2] * 8)]
    assert area_of(curve).value == pytest.approx(((1 + 0.6) / 2 * 1 + (0.6 + 0.2) / 2 * 2) / 3)


def test_falling_levels_give_the_area_of_rising_ones():
    rising = [Answers(50, [0.2] * 8), Answers(60, [0.4] * 8), Answers(90, [1.0] * 8)]
    assert area_of(rising).value == pytest.approx(area_of(rising[::-1]).value)


def test_chains_count_as_equal_steps():
    curve = [Answers("a", [1.0] * 8), Answers("b", [0.2] * 8), Answers("c", [0.6] * 8)]
    assert area_of(curve).value == pytest.approx((0.6 + 0.4) / 2)


def test_one_level_is_its_own_area():
    assert area_of([Answers(7, [0.4] * 8)]).value == pytest.approx(0.4)


def test_an_interval_is_as_wide_as_the_images_differ():
    level = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.0]
    metric = area_of([Answers(0, level), Answers(1, level)], resamples=2000)
    error = np.std(level) / np.sqrt(8)
    assert metric.high - metric.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    same = area_of([Answers(0, [0.6] * 8), Answers(1, [0.6] * 8)])
    assert same.low == pytest.approx(same.high)


def test_images_are_drawn_together_at_all_levels():
    level = [0.0, 1.0] * 4
    opposed = area_of([Answers(0, level), Answers(1, level[::-1])])
    assert opposed.low == pytest.approx(opposed.value)
    assert opposed.high == pytest.approx(opposed.value)


def test_only_images_that_all_levels_have_enter_an_area():
    points = [
        point_of(Answers(0, [0.2, 0.4, 1.0]), "abc"),
        point_of(Answers(1, [1.0, 0.4, 0.2]), "cba"),
        point_of(Answers(2, [0.4, 0.2]), "ba"),
    ]
    metric = areas(points, ("pixel/IoU-image",), 10, 0)["pixel/IoU-image"]
    assert (metric.value, metric.images) == (pytest.approx(0.3), 2)


def test_an_area_that_no_image_defines_says_so():
    points = [point_of(Answers(level, [0.2] * 8)) for level in (0, 1)]
    metric = areas(points, ("image/AUC",), 10, 0)["image/AUC"]
    assert np.isnan(metric.value)
    assert metric.reason


def test_every_point_has_a_folder_of_its_own(tool):
    points = tool.list_points(list(DEGRADATIONS))
    assert len({tool.point_folder(*point) for point in points}) == len(points) > 80


def test_an_exported_set_holds_the_degraded_images_and_their_masks(tool, data):
    words = [str(data), "--export", str(data / "out"), "--axes", "crop", "jpeg", "--seed", "5"]
    assert tool.main(words) == 0
    source = load_dataset(str(data))
    for axis, level in tool.list_points(["crop", "jpeg"])[1:]:
        exported = load_dataset(str(data / "out" / tool.point_folder(axis, level)))
        for old, new in zip(source, exported, strict=True):
            image, mask = read_image_and_mask(old["file_name"], old["mask_file_name"])
            mask = None if mask is None else mask >= 0.5
            expected = degrade(image, mask, axis, level, seed=5, image_id=old["image_id"])
            found = read_image_and_mask(new["file_name"], new["mask_file_name"], "strict")
            np.testing.assert_array_equal(found[0], expected[0])
            assert new["label"] == old["label"]
            if mask is not None:
                np.testing.assert_array_equal(found[1] >= 0.5, expected[1])


def test_a_perfect_detector_scores_one_at_every_level(tool, data):
    axes = ["shrink", "sharing", "benco_blur"]
    exported, saved, output = data / "out", data / "saved", data / "curves"
    assert tool.main([str(data), "--export", str(exported), "--axes", *axes]) == 0
    for axis, level in tool.list_points(axes):
        folder = tool.point_folder(axis, level)
        shutil.copytree(exported / folder / "masks", saved / folder / "maps")
        rows = ["file,probability,error"]
        for entry in load_dataset(str(exported / folder)):
            rows.append(f"{entry['file_name']},{0.1 + 0.8 * entry['label']},")
            if not entry["label"]:
                shape = cv2.imread(entry["file_name"]).shape[:2]
                path = saved / folder / "maps" / Path(entry["file_name"]).name
                cv2.imwrite(str(path), np.zeros(shape, np.uint8))
        (saved / folder / "predictions.csv").write_text("\n".join(rows) + "\n")
    words = ["--maps", str(saved), "--output", str(output), "--axes", *axes, "--resamples", "20"]
    assert tool.main([str(exported), *words, "--metrics", "image/AUC", "pixel/F1-image"]) == 0
    report = json.loads((output / "robustness.json").read_text())
    assert report["axes"].keys() == set(axes)
    for curve in report["axes"].values():
        for one in [*curve["points"], {"metrics": curve["area"]}]:
            for metric in one["metrics"].values():
                assert metric["value"] == pytest.approx(1)
                assert metric["ci95"] == pytest.approx([1, 1])


def test_a_model_is_run_over_all_levels_and_a_bad_image_ends_nothing(tool, data, weights, capsys):
    (data / "image2.png").write_bytes(b"no image")
    words = [str(data), "--config-file", str(CONFIG), "--weights", str(weights)]
    words += ["--output", str(data / "out"), "--axes", "blur", "crop", "--resamples", "10"]
    words += ["--metrics", "image/bAcc", "pixel/AUC-image", "benco/F1", "--opts", *SMALL]
    assert tool.main(words) == 1
    report = json.loads((data / "out/robustness.json").read_text())
    assert (report["images"], report["clean"]["unreadable"]) == (5, 1)
    assert "no image of a known format" in next(iter(report["clean"]["errors"].values()))
    assert [len(curve["points"]) for curve in report["axes"].values()] == [5, 5]
    for name in ("image_bAcc", "pixel_AUC-image", "benco_F1"):
        assert cv2.imread(str(data / "out" / f"{name}.png")).shape[1] > 600
    with (data / "out/robustness.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * (1 + 6 + 6)
    assert {row["level"] for row in rows if row["axis"] == "blur"} >= {"0.5", "3.0", "area"}
    assert "unreadable: 1 images" in capsys.readouterr().out


def test_the_model_sees_exactly_the_degraded_pixels(tool, data, weights):
    predictor = LoupePredictor(load_config(CONFIG, SMALL), weights)
    entries = load_dataset(str(data))
    evaluator = ForgeryEvaluator("toy", protocols=(), resamples=0, distributed=False)
    mapper = tool.DegradingMapper("noise", 16, 3, predictor.mapper.map_image)
    tool.run_model(predictor, entries, mapper, evaluator)
    table = evaluator.share().table
    for entry, score in zip(entries, table.matrix()[:, 1], strict=True):
        image = read_image_and_mask(entry["file_name"], None)[0]
        noisy = degrade(image, None, "noise", 16, seed=3, image_id=entry["image_id"])[0]
        assert predictor(noisy).score == pytest.approx(score, abs=1e-5)


def test_some_images_are_spread_over_the_set(tool, data):
    names = [Path(entry["file_name"]).name for entry in tool.select(str(data), 3)]
    assert names == ["image0.png", "image2.png", "image4.png"]


def test_a_set_without_labels_is_refused(tool, data):
    (data / "plain").mkdir()
    shutil.copy(data / "image0.png", data / "plain")
    with pytest.raises(ValueError, match="no image has a label; robustness needs the truth"):
        tool.select(str(data / "plain"), None)


def test_maps_that_are_not_there_are_an_error(tool, data, capsys):
    assert tool.main([str(data), "--export", str(data / "out"), "--axes", "shift"]) == 0
    words = ["--maps", str(data / "none"), "--output", str(data / "curves"), "--axes", "shift"]
    assert tool.main([str(data / "out"), *words]) == 2
    assert "no such folder of predictions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "out"], "give one of --config-file"),
        (["--maps", "a", "--export", "b"], "give one of --config-file"),
        (["--maps", "a"], "give --output"),
        (["--maps", "a", "--output", "b", "--axes", "rain"], "invalid choice: 'rain'"),
    ],
)
def test_a_command_line_that_says_too_little_or_too_much_is_refused(tool, words, message, capsys):
    with pytest.raises(SystemExit):
        tool.parse_arguments(["data", *words])
    assert message in capsys.readouterr().err


def test_metrics_without_numbers_of_single_images_are_not_offered():
    assert "pixel/AUC-pooled" not in METRICS
    assert "pixel/F1-pooled" in METRICS


class Counted:
    """Stands in for a model: answers every point, and breaks off at one of them."""

    def __init__(self, break_at: int | None = None) -> None:
        self.break_at, self.measured = break_at, []

    def __call__(self, axis, level, evaluator) -> None:
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
def run(tool, data, monkeypatch):
    """Runs the tool on two axes with a stand-in for the model; returns what it measured."""

    (data / "model.safetensors").write_bytes(b"a stand-in needs none")

    def measure(break_at: int | None = None, **options) -> list:
        counted = Counted(break_at)
        monkeypatch.setattr(tool, "measure_of", lambda arguments: counted)
        words = {"--axes": ["shift", "sharing"], "--resamples": ["20"], "--seed": ["0"]}
        words |= {"--metrics": ["image/AUC", "pixel/F1-image"]}
        words |= {"--weights": [str(data / "model.safetensors")]}
        words |= {"--output": [str(data / "out")], "--config-file": [str(CONFIG)]}
        words |= {f"--{name}": value for name, value in options.items()}
        flat = [word for name, values in words.items() for word in (name, *values)]
        try:
            tool.main([str(data), *flat, "--opts", *SMALL])
        except KeyboardInterrupt:
            assert break_at is not None
        return counted.measured

    return measure


def test_an_interrupted_run_loses_one_level_and_ends_with_the_same_numbers(run, data):
    everything = run()
    whole = (data / "out/robustness.json").read_text()
    shutil.rmtree(data / "out")
    done = run(break_at=3)
    assert done == everything[:3]
    assert run() == everything[3:]
    assert (data / "out/robustness.json").read_text() == whole
    assert run() == []


@pytest.mark.parametrize("options", [{"seed": ["1"]}, {"resamples": ["10"]}, {"images": ["4"]}])
def test_levels_measured_with_other_settings_are_measured_anew(run, options):
    assert len(run()) == len(run(**options)) == 11


def test_levels_of_another_checkpoint_are_measured_anew(run, data):
    run()
    (data / "model.safetensors").write_bytes(b"trained longer")
    assert len(run()) == 11


def test_levels_are_measured_anew_when_an_image_changes(run, data):
    run()
    cv2.imwrite(str(data / "image0.png"), np.zeros((40, 48, 3), np.uint8))
    assert len(run()) == 11


def test_fewer_metrics_are_taken_from_what_is_kept_but_others_are_not(run):
    run()
    assert run(metrics=["image/AUC"]) == []
    assert len(run(metrics=["benco/F1"])) == 11


def test_a_damaged_level_is_measured_anew(run, data):
    run()
    (data / "out/points/shift/2.npz").write_bytes(b"PK damaged")
    assert run() == [("shift", 2)]


def test_maps_that_change_are_scored_anew(tool, data, capsys):
    axes = ["--axes", "shift"]
    assert tool.main([str(data), "--export", str(data / "out"), *axes]) == 0
    shutil.copytree(data / "out", data / "saved")
    for axis, level in tool.list_points(["shift"]):
        folder = data / "saved" / tool.point_folder(axis, level)
        shutil.rmtree(folder / "masks")
        (folder / "images").rename(folder / "maps")
        for path in (folder / "maps").glob("*.png"):
            cv2.imwrite(str(path), cv2.imread(str(path), 0))
    words = [str(data / "out"), "--maps", str(data / "saved"), "--output", str(data / "curves")]
    words += [*axes, "--resamples", "5", "--metrics", "pixel/F1-image"]
    tool.main(words)
    first = capsys.readouterr().out
    tool.main(words)
    second = capsys.readouterr().out
    cv2.imwrite(str(data / "saved/shift/2/maps/0000001.png"), np.zeros((38, 46), np.uint8))
    tool.main(words)
    third = capsys.readouterr().out
    assert [text.count("(kept)") for text in (first, second, third)] == [0, 5, 4]


def test_levels_of_shipped_weights_are_measured_anew_when_the_file_changes(
    run, data, monkeypatch, tool
):
    monkeypatch.setattr(tool, "shipped_file", lambda name: data / name.removeprefix("loupe://"))
    options = {"weights": ["loupe://model.safetensors"]}
    assert len(run(**options)) == 11
    assert run(**options) == []
    (data / "model.safetensors").write_bytes(b"published anew")
    assert len(run(**options)) == 11
