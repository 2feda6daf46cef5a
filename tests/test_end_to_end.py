"""The main job in small: train two stages, evaluate, adapt, predict, through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import pytest

from loupe.commands import predict, train
from loupe.commands.command_line import parse
from loupe.data.sources.synthetic import make_sample

CONFIGS = Path(__file__).parents[1] / "configs" / "quick"
PLAIN_FORGERIES = [
    *("DATASETS.TRAIN", "('synthetic://train?size=64&count=4000&difficulty=0',)"),
    *("DATASETS.TEST", "('synthetic://test?size=64&count=64&difficulty=0',)"),
    *("INPUT.SIZE", "64", "DATALOADER.NUM_WORKERS", "0"),
    *("TEST.EVAL_PERIOD", "0", "TEST.EXPECTED_RESULTS", "[]", "MODEL.DEVICE", "cpu"),
]


def run(config: str, output: Path, *options: str, flags: tuple[str, ...] = ()) -> dict:
    words = ["--config-file", str(CONFIGS / config), *flags, *PLAIN_FORGERIES]
    words += ["OUTPUT_DIR", str(output), *options]
    return train.work(parse("train", "", train.add_arguments, words))


def losses(output: Path) -> list[float]:
    lines = (output / "metrics.json").read_text().splitlines()
    return [record["total_loss"] for line in lines if "total_loss" in (record := json.loads(line))]


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("stage1")
    return output, run("loupe_stage1.yaml", output, "SOLVER.MAX_ITER", "160")


@pytest.fixture(scope="module")
def stage2(
    stage1: tuple[Path, dict], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("stage2")
    weights = str(stage1[0] / "model_best.pth")
    options = ("MODEL.WEIGHTS", weights, "SOLVER.MAX_ITER", "60")
    return output, run("loupe_stage2.yaml", output, *options)


def test_stage_1_learns_to_tell_forged_from_authentic(stage1: tuple[Path, dict]) -> None:
    output, results = stage1
    history = losses(output)
    assert history[-1] < 0.75 * history[0]
    assert results["image"]["AUC"] > 0.9


def test_stage_2_learns_where_on_the_frozen_classifier(
    stage1: tuple[Path, dict], stage2: tuple[Path, dict]
) -> None:
    assert stage2[1]["image"]["AUC"] == pytest.approx(stage1[1]["image"]["AUC"], abs=1e-6)
    assert stage2[1]["pixel"]["AUC-image"] > 0.8
    history = losses(stage2[0])
    assert history[-1] < history[0]


def test_evaluating_the_saved_weights_gives_the_same_results(stage2: tuple[Path, dict]) -> None:
    output, results = stage2
    options = ("MODEL.WEIGHTS", str(output / "model_best.pth"))
    again = run("loupe_stage2.yaml", output / "again", *options, flags=("--eval-only",))
    assert again == results


def test_adaptation_changes_maps_but_not_verdicts(stage2: tuple[Path, dict]) -> None:
    output, results = stage2
    options = ("MODEL.WEIGHTS", str(output / "model_best.pth"), "ADAPTATION.IMS_PER_BATCH", "32")
    adapted = run("loupe_adapt.yaml", output / "adapted", *options, flags=("--eval-only",))
    assert adapted["image"]["AUC"] == results["image"]["AUC"]
    assert adapted["pixel"] != results["pixel"]


def test_predictions_of_the_trained_model_are_written(
    stage2: tuple[Path, dict], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(4):
        sample = make_sample("test", 0, index, 64, 0)
        cv2.imwrite(str(images / f"{index}.png"), sample.image[..., ::-1])
    words = [str(images), "--output", str(tmp_path / "out"), "--workers", "0"]
    words += ["--config-file", str(CONFIGS / "loupe_stage2.yaml")]
    words += ["--weights", str(stage2[0] / "model_best.pth"), *PLAIN_FORGERIES]
    assert predict.main(words) == 0
    with (tmp_path / "out" / "predictions.csv").open() as file:
        probability = [float(row["probability"]) for row in csv.DictReader(file)]
    assert len(probability) == 4
    # Even images are authentic, odd ones forged.
    assert probability[1] + probability[3] > probability[0] + probability[2]
