"""The evaluator: batches in, groups of floats out, the same for any number of processes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from detectron2.config import get_cfg
from detectron2.evaluation.testing import (
    flatten_results_dict,
    print_csv_format,
    verify_results,
)

from loupe.evaluation import ForgeryEvaluator
from loupe.evaluation.measures import ImageMeasures
from loupe.evaluation.report import csv_table, markdown_report, text_table
from loupe.structures import GroundTruth


def make_items(count: int, *, classes: bool = False) -> tuple[list[dict], list[dict]]:
    """Inputs and outputs as data loader and model give them; one in nine has an error."""
    generator = np.random.default_rng(5)
    inputs, outputs = [], []
    for index in range(count):
        label = index % 3 > 0
        mask = np.zeros((24, 36), bool)
        mask[4:14, 6:20] = label
        scores = np.clip(generator.normal(0.3 + 0.25 * mask, 0.2), 0, 1).astype(np.float32)
        truth = GroundTruth(int(label), mask if label else None, "xy"[index % 2], "one")
        name = f"{index:03}.png"
        inputs.append({"image_id": f"set/{name}", "file_name": name, "ground_truth": truth})
        score = float(np.clip(generator.normal(0.4 + 0.2 * label, 0.2), 0, 1))
        output = {"forgery_score": score, "forgery_map": torch.from_numpy(scores)}
        if classes:
            output["class_probabilities"] = np.array([1 - score, score], np.float32)
        outputs.append({"error": "truncated"} if index % 9 == 8 else output)
    return inputs, outputs


def run(evaluator: ForgeryEvaluator, inputs: list[dict], outputs: list[dict]) -> ForgeryEvaluator:
    for start in range(0, len(inputs), 4):
        evaluator.process(inputs[start : start + 4], outputs[start : start + 4])
    return evaluator


@pytest.fixture
def evaluator() -> ForgeryEvaluator:
    return ForgeryEvaluator("toy", resamples=50)


def test_detectron2_prints_flattens_and_verifies_the_results(evaluator):
    results = run(evaluator, *make_items(30)).evaluate()
    assert all(type(x) is float for group in results.values() for x in group.values())
    print_csv_format(results)
    value = results["pixel"]["F1-pooled"]
    assert flatten_results_dict(results)["pixel/F1-pooled"] == value
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = [["pixel", "F1-pooled", value, 1e-6]]
    assert verify_results(cfg, results)


def test_images_with_an_error_or_without_a_truth_are_counted(evaluator):
    inputs, outputs = make_items(30)
    del inputs[0]["ground_truth"]
    results = run(evaluator, inputs, outputs).evaluate()
    assert results["image"]["unreadable"] == 3
    assert evaluator.results.unreadable == dict.fromkeys(
        ["008.png", "017.png", "026.png"], "truncated"
    )
    assert evaluator.results.counts["images"] == 26
    assert evaluator.results.counts["unlabelled"] == 1


def test_an_image_given_twice_counts_once(evaluator):
    inputs, outputs = make_items(30)
    once = run(evaluator, inputs, outputs).evaluate()
    again = ForgeryEvaluator("toy", resamples=50)
    assert run(again, inputs * 3, outputs * 3).evaluate() == once


def test_reset_forgets_everything(evaluator):
    run(evaluator, *make_items(30)).reset()
    results = evaluator.evaluate()
    assert results["image"].pop("unreadable") == 0
    assert all(math.isnan(x) for group in results.values() for x in group.values())


def work(rank: int, folder: str) -> None:
    """One of two processes: its shard of the images, the last of them padded."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    inputs, outputs = make_items(31, classes=True)
    indices = [*range(rank, 31, 2), *([0] if rank else [])]
    shard = ForgeryEvaluator("toy", resamples=50, output_dir=folder)
    results = run(shard, [inputs[i] for i in indices], [outputs[i] for i in indices]).evaluate()
    assert bool(results) == (rank == 0)
    torch.distributed.destroy_process_group()


def test_two_gloo_processes_report_what_one_does(tmp_path: Path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    # Forked, because two fresh interpreters would spend ten seconds on their imports.
    torch.multiprocessing.start_processes(
        work, (str(tmp_path / "two"),), nprocs=2, start_method="fork"
    )
    alone = ForgeryEvaluator("toy", resamples=50, output_dir=tmp_path / "one")
    run(alone, *make_items(31, classes=True)).evaluate()
    one, two = (tmp_path / name / "inference" / "toy.json" for name in ("one", "two"))
    assert two.read_text() == one.read_text()
    assert 0 < json.loads(two.read_text())["image/class-accuracy"]["value"] < 1


def test_the_file_holds_value_interval_and_images_of_every_metric(tmp_path: Path):
    evaluator = ForgeryEvaluator("folder/toy set", resamples=50, output_dir=tmp_path)
    run(evaluator, *make_items(30)).evaluate()
    content = json.loads((tmp_path / "inference" / "folder_toy_set.json").read_text())
    entry = content["pixel/F1-pooled"]
    assert set(entry) == {"value", "ci95", "images"}
    assert entry["ci95"][0] < entry["value"] < entry["ci95"][1]
    assert entry["images"] == 17
    assert content["definitions"]["pixel/F1-pooled"]
    assert sum(point["images"] for point in content["reliability"]) == 27


@pytest.mark.parametrize("letter", ["/a", "é", "図"])
def test_a_long_name_of_a_set_is_cut_for_its_file_and_kept_in_it(tmp_path: Path, letter: str):
    names = [letter * 300 + end for end in "12"]
    for name in names:
        run(ForgeryEvaluator(name, resamples=0, output_dir=tmp_path), *make_items(2)).evaluate()
    files = list((tmp_path / "inference").iterdir())
    assert sorted(json.loads(file.read_text())["dataset"] for file in files) == names


def test_what_is_undefined_is_null_with_a_reason(tmp_path: Path):
    inputs, outputs = make_items(30)
    kept = [index for index in range(30) if not inputs[index]["ground_truth"].label]
    evaluator = ForgeryEvaluator("toy", resamples=50, output_dir=tmp_path)
    results = run(evaluator, [inputs[i] for i in kept], [outputs[i] for i in kept]).evaluate()
    assert math.isnan(results["image"]["AUC"])
    content = json.loads((tmp_path / "inference" / "toy.json").read_text())
    for name in ("image/AUC", "pixel/F1-image", "pixel/AUC-pooled", "trufor/F1-best"):
        assert content[name]["value"] is None
        assert content[name]["reason"] == "the set has no forged image"


def test_groups_are_broken_down_by_technique_with_all_authentic_images(evaluator):
    run(evaluator, *make_items(30)).evaluate()
    groups = evaluator.results.by_technique
    assert set(groups) == {"x", "y"}
    authentic = evaluator.results.counts["authentic"]
    forged = evaluator.results.counts["forged"]
    assert sum(group["pixel/F1-image"].images for group in groups.values()) == forged
    assert all(group["pixel/FPR-authentic"].images == authentic for group in groups.values())
    assert evaluator.results.by_source == {}


def test_reports_name_every_metric(evaluator):
    run(evaluator, *make_items(30)).evaluate()
    results = evaluator.results
    for name in results.metrics:
        assert name in text_table(results)
        assert f"`{name}`" in markdown_report(results, "toy")
        assert f",{name}," in csv_table(results)
    assert "technique=x" in csv_table(results)
    assert "unreadable: 008.png: truncated" in text_table(results)


def test_an_unknown_protocol_is_refused_by_name():
    with pytest.raises(ValueError, match="mvsss"):
        ForgeryEvaluator("toy", protocols=("mvsss",))


def test_without_protocols_only_the_own_metrics_are_given():
    evaluator = ForgeryEvaluator("toy", protocols=(), resamples=0)
    results = run(evaluator, *make_items(12)).evaluate()
    assert set(results) == {"image", "pixel", "ddl2025"}
    assert math.isnan(evaluator.results.metrics["image/AUC"].low)


def test_a_model_without_maps_has_image_metrics_alone(evaluator):
    inputs, outputs = make_items(30)
    for output in outputs:
        output.pop("forgery_map", None)
    results = run(evaluator, inputs, outputs).evaluate()
    assert 0 < results["image"]["AUC"] < 1
    assert math.isnan(results["pixel"]["F1-pooled"])
    reason = evaluator.results.metrics["pixel/F1-pooled"].reason
    assert reason == "no image has both a map and a known mask"


def test_an_images_record_is_of_one_size_whatever_its_pixels(evaluator):
    for index, side in enumerate((8, 256)):
        truth = GroundTruth(0, None)
        evaluator.add(str(index), "a", truth, 0.5, np.zeros((side, side), np.float32))
    assert evaluator.shard().table.matrix().shape == (2, len(ImageMeasures._fields))
