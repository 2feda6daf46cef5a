"""Saved predictions get the numbers that they get in memory; the tool writes them."""

from __future__ import annotations

import csv
import json
import math
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from loupe.commands import score as score_command
from loupe.evaluation import ForgeryEvaluator
from loupe.evaluation.map_files import PredictionError
from loupe.evaluation.predictions import find_predictions
from loupe.evaluation.scoring import ScoringOptions, score_predictions
from loupe.structures import GroundTruth


def make_set(folder: Path, count: int = 12) -> list[dict]:
    """Images, masks, a manifest, and predictions as tools/predict.py writes them."""
    generator = np.random.default_rng(0)
    items, rows, scores = [], [], []
    for name in ("images", "masks", "saved/maps"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        label, stem = int(index % 3 > 0), f"{index:03}"
        mask = np.zeros((24, 36), np.uint8)
        mask[5:15, 8:25] = 255 * label
        forgery_map = np.clip(generator.normal(70 + mask / 3, 40), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / f"{stem}.png"), np.full((24, 36, 3), index, np.uint8))
        cv2.imwrite(str(folder / "saved" / "maps" / f"{stem}.png"), forgery_map)
        if label:
            cv2.imwrite(str(folder / "masks" / f"{stem}.png"), mask)
        score = round(float(np.clip(generator.normal(0.4 + 0.2 * label, 0.2), 0, 1)), 4)
        path = str(folder / "images" / f"{stem}.png")
        mask_path = f"masks/{stem}.png" if label else ""
        rows.append([f"images/{stem}.png", mask_path, label, "splicing" if label else "", ""])
        scores.append([path, score, ""])
        items.append({"file_name": path, "image_id": stem, "label": label, "mask": mask > 0})
    write_csv(folder / "manifest.csv", ["image", "mask", "label", "technique", "source"], rows)
    write_csv(folder / "saved" / "predictions.csv", ["file", "probability", "error"], scores)
    return items


def write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def read_truth(item: dict, shape: tuple[int, int] | None) -> GroundTruth | None:
    return GroundTruth(item["label"], item["mask"] if item["label"] else None)


def evaluator() -> ForgeryEvaluator:
    return ForgeryEvaluator("toy", resamples=20, distributed=False)


@pytest.fixture
def items(tmp_path) -> list[dict]:
    return make_set(tmp_path)


def score(tmp_path: Path, items: list[dict], **options):
    return score_predictions(
        items,
        find_predictions(tmp_path / "saved"),
        read_truth,
        evaluator(),
        options=ScoringOptions(**options),
    )


def test_saved_maps_score_as_the_same_maps_in_memory(tmp_path, items):
    direct = evaluator()
    table = list(csv.DictReader((tmp_path / "saved" / "predictions.csv").open()))
    for item, row in zip(items, table, strict=True):
        path = tmp_path / "saved" / "maps" / f"{item['image_id']}.png"
        output = {
            "forgery_score": float(row["probability"]),
            "forgery_map": cv2.imread(str(path), cv2.IMREAD_GRAYSCALE),
        }
        direct.process([item | {"ground_truth": read_truth(item, None)}], [output])
    direct.evaluate()
    assert score(tmp_path, items).results == direct.results


def test_eight_bit_maps_score_as_their_float_fractions(tmp_path, items):
    for path in (tmp_path / "saved" / "maps").iterdir():
        pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        (tmp_path / "float").mkdir(exist_ok=True)
        np.save(tmp_path / "float" / f"{path.stem}.npy", pixels / np.float32(255))
    (tmp_path / "float" / "scores.csv").write_bytes(
        (tmp_path / "saved" / "predictions.csv").read_bytes()
    )
    floats = score_predictions(
        items, find_predictions(tmp_path / "float"), read_truth, evaluator()
    ).results
    eight_bit = score(tmp_path, items).results
    for name, metric in eight_bit.metrics.items():
        assert floats.metrics[name].value == pytest.approx(metric.value, abs=1e-9), name


def test_a_missing_prediction_is_counted_or_an_error(tmp_path, items):
    extra = items[0] | {"file_name": "images/none.png", "image_id": "none"}
    scored = score(tmp_path, [*items, extra])
    assert scored.results.unreadable == {"images/none.png": "no prediction"}
    with pytest.raises(PredictionError, match=r"1 of 13 images have no prediction.*none\.png"):
        score(tmp_path, [*items, extra], faults="error")
    with pytest.raises(PredictionError, match="1 of 1 images have no prediction"):
        score(tmp_path, [extra])


def test_a_map_of_another_size_is_counted_or_resized(tmp_path, items):
    path = tmp_path / "saved" / "maps" / "001.png"
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(path), cv2.resize(pixels, (72, 48), interpolation=cv2.INTER_NEAREST))
    (reason,) = score(tmp_path, items).results.unreadable.values()
    assert "001.png: the forgery map is 48x72" in reason
    with pytest.raises(ValueError, match=r"001\.png: the forgery map is 48x72"):
        score(tmp_path, items, faults="error")
    resized = score(tmp_path, items, size="resize").results
    assert resized.counts["without-pixels"] == resized.counts["unreadable"] == 0


def test_unused_predictions_are_returned(tmp_path, items):
    unused = score(tmp_path, items[2:]).unused
    assert [Path(name).name for name in unused] == ["000.png", "001.png"]


def test_faults_of_maps_and_masks_are_counted_with_their_reason(tmp_path, items):
    (tmp_path / "saved" / "maps" / "003.png").write_text("this is text")

    def broken_truth(item: dict, shape: tuple[int, int] | None) -> GroundTruth | None:
        if item["image_id"] == "005":
            raise ValueError("mask 005 is truncated")
        return read_truth(item, shape)

    saved = find_predictions(tmp_path / "saved")
    scored = score_predictions(items, saved, broken_truth, evaluator())
    reasons = [scored.results.unreadable[items[i]["file_name"]] for i in (3, 5)]
    assert "003.png: not a readable PNG" in reasons[0]
    assert reasons[1] == "mask 005 is truncated"
    assert scored.results.counts["images"] == 10


def test_without_image_scores_image_metrics_say_so_unless_taken_from_the_map(tmp_path, items):
    (tmp_path / "saved" / "predictions.csv").unlink()
    results = score(tmp_path, items).results
    assert math.isnan(results.metrics["image/AUC"].value)
    assert results.metrics["image/AUC"].reason == "the predictions hold no image scores"
    scored = score(tmp_path, items, map_score="mean")
    assert 0 < scored.results.metrics["image/AUC"].value <= 1
    assert scored.scores.max() < 0.6


def test_a_temperature_changes_calibration_alone(tmp_path, items):
    plain, scaled = score(tmp_path, items).results, score(tmp_path, items, temperature=3).results
    changed = {
        name
        for name in plain.metrics
        if plain.metrics[name].value != pytest.approx(scaled.metrics[name].value, nan_ok=True)
    }
    assert changed == {"image/ECE", "image/Brier"}


def test_images_that_coco_results_leave_out_are_called_authentic(tmp_path, items):
    folder = tmp_path / "coco"
    folder.mkdir()
    region = {"size": [24, 36], "counts": [0, 24 * 36]}
    result = {"image_id": "001.png", "segmentation": region, "score": 0.8}
    (folder / "results.json").write_text(json.dumps([result]))
    scored = score_predictions(items, find_predictions(folder), read_truth, evaluator())
    assert scored.results.counts["without-pixels"] == 0
    assert scored.results.metrics["pixel/FPR-authentic"].value == 0
    assert scored.results.metrics["image/AUC"].value == pytest.approx(0.5 + 0.5 / 8)


def run_tool(folder: Path, *words: str) -> int:
    arguments = [folder / "saved", folder / "manifest.csv", "--output", folder / "out"]
    fixed = [*map(str, arguments), "--resamples", "20", "--processes", "1"]
    return score_command.main([*fixed, *words])


def test_the_tool_writes_three_files_that_agree(tmp_path, items, capsys):
    assert run_tool(tmp_path) == 0
    expected = score(tmp_path, items).results.metrics["pixel/F1-pooled"].value
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert content["pixel/F1-pooled"]["value"] == expected
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    values = {row["metric"]: row["value"] for row in rows if not row["group"]}
    assert float(values["pixel/F1-pooled"]) == expected
    assert f"{expected:.4f}" in (tmp_path / "out" / "scores.md").read_text()
    assert f"{expected:.4f}" in capsys.readouterr().out


def test_the_tool_fits_a_temperature_and_applies_it(tmp_path, items):
    assert run_tool(tmp_path, "--fit-temperature") == 0
    path = tmp_path / "out" / "calibration.json"
    fitted = json.loads(path.read_text())
    assert fitted["negative_log_likelihood_calibrated"] <= fitted["negative_log_likelihood"]
    assert run_tool(tmp_path, "--temperature", str(path)) == 0
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert content["options"]["temperature"] == fitted["temperature"]


def test_a_bad_map_is_a_row_of_the_reports_and_no_markup(tmp_path, items, capsys):
    for folder in ("images", "saved/maps"):
        (tmp_path / folder / "003.png").rename(tmp_path / folder / "<script>.png")
    for table in ("manifest.csv", "saved/predictions.csv"):
        text = (tmp_path / table).read_text().replace("images/003", "images/<script>")
        (tmp_path / table).write_text(text)
    (tmp_path / "saved" / "maps" / "<script>.png").write_text("this is text")
    assert run_tool(tmp_path) == 1
    assert "not a readable PNG" in capsys.readouterr().out
    (reason,) = json.loads((tmp_path / "out" / "scores.json").read_text())["unreadable"].values()
    assert "<script>.png: not a readable PNG" in reason
    report = (tmp_path / "out" / "scores.md").read_text()
    assert "&lt;script&gt;.png: not a readable PNG" in report
    assert "<script>" not in report
    assert run_tool(tmp_path, "--faults", "error") == 2
    assert "<script>.png: not a readable PNG" in capsys.readouterr().err


def test_the_tool_warns_of_maps_that_hold_zero_and_one(tmp_path, items, capsys):
    for path in (tmp_path / "saved" / "maps").iterdir():
        cv2.imwrite(str(path), (cv2.imread(str(path), 0) > 127).astype(np.uint8))
    assert run_tool(tmp_path) == 0
    assert "save 0 and 255" in capsys.readouterr().out


@pytest.mark.slow  # two fresh interpreters import everything
def test_several_processes_score_as_one(tmp_path, items, monkeypatch):
    monkeypatch.setattr("loupe.evaluation.scoring.IMAGES_PER_PROCESS", 4)
    predictions = find_predictions(tmp_path / "saved")
    run = partial(score_predictions, items, predictions, read_truth)
    assert run(evaluator(), processes=2).results == run(evaluator()).results
