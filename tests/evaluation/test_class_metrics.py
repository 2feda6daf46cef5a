"""Metrics of predicted classes, and IFDL-VLM's own numbers against what its code printed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from loupe.evaluation import ForgeryEvaluator
from loupe.evaluation.measures import ImageMeasures, class_measures, measure_image
from loupe.evaluation.metrics import compute
from loupe.evaluation.protocols import ifdl_measures
from loupe.evaluation.records import columns_of
from loupe.structures import GroundTruth

REFERENCE = Path(__file__).parents[1] / "reference" / "parity_ifdl.npz"
NAMES = ("r0", "r1", "s0", "s1", "t0", "t1", "t2", "t3")
TRUTHS = {"r": GroundTruth(0, None), "s": GroundTruth(1, None, wholly_forged=True)}
TRUTHS["t"] = GroundTruth(1, None)


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(REFERENCE) as file:
        return {k.removeprefix("units/"): file[k] for k in file.files if k.startswith("units/")}


def test_the_numbers_of_the_release_are_those_that_its_code_printed(recorded):
    rows = []
    for name in NAMES:
        truth = TRUTHS[name[0]]
        numbers = class_measures(truth, recorded[f"{name}.logits"][0])
        if f"{name}.mask" in recorded:
            forged = recorded[f"{name}.forged"].astype(np.float32)
            mask = recorded[f"{name}.mask"]
            numbers |= ifdl_measures(forged[0], mask[0], side=64)
        rows.append(ImageMeasures(truth.label, 0.5, **numbers))
    printed = dict(zip(recorded["names"].tolist(), recorded["values"].tolist(), strict=True))
    found = {name: float(value[0]) for name, value in compute(columns_of(rows)).items()}
    assert 100 * found["ifdl/Acc"] == pytest.approx(printed["test/accuracy"])
    for ours, theirs in (("gIoU", "giou"), ("cIoU", "ciou"), ("F1", "f1_score")):
        assert found[f"ifdl/{ours}"] == pytest.approx(printed[f"test/{theirs}"], abs=1e-6), ours
    assert found["ifdl/AUC"] == pytest.approx(printed["test/auc_approx"], abs=1e-6)
    for ours, theirs in (("authentic", "real"), ("generated", "full synthetic")):
        recall = printed[f"test/{theirs}_recall"]
        assert found[f"image/recall-{ours}"] == pytest.approx(recall, abs=1e-6)
    assert found["image/recall-tampered"] == printed["test/tampered_recall"]


def test_a_mask_of_254_is_forged_for_us_and_empty_for_the_release():
    mask = np.zeros((64, 64), np.uint8)
    mask[8:40, 8:40] = 254
    called = mask > 0
    assert ifdl_measures(called.astype(np.float32), mask)["ifdl_hits"] == 0
    truth = GroundTruth(1, mask >= 128)
    measures, _ = measure_image("a", truth, 0.9, called.astype(np.float32))
    assert measures.true_positives == 32 * 32


def test_of_two_classes_generated_images_belong_to_the_second():
    generated = GroundTruth(1, None, wholly_forged=True)
    assert class_measures(generated, np.array([0.1, 0.9])) == {
        "true_class": 2,
        "predicted_class": 2,
    }
    three = class_measures(generated, np.array([0.1, 0.2, 0.7]))
    assert three == {"true_class": 1, "predicted_class": 2}


def evaluated(with_classes: bool) -> dict[str, dict[str, float]]:
    evaluator = ForgeryEvaluator("set", resamples=0, distributed=False)
    for index in range(6):
        truth = GroundTruth(int(index > 2), np.full((8, 8), index > 2))
        item = {"image_id": str(index), "file_name": str(index), "ground_truth": truth}
        score = 0.1 * index
        output = {"forgery_score": score, "forgery_map": np.full((8, 8), score, np.float32)}
        if with_classes:
            output["class_probabilities"] = np.array([1 - score, 0.0, score], np.float32)
        evaluator.process([item], [output])
    return evaluator.evaluate()


def test_a_report_has_classes_where_the_model_predicts_them_and_is_the_same_otherwise():
    without, found = evaluated(False), evaluated(True)
    assert "ifdl" not in without
    assert "class-accuracy" not in without["image"]
    # Index 3, 4 and 5 score .3, .4 and .5: a tie is the first class.
    assert found["image"]["class-accuracy"] == pytest.approx(3 / 6)
    assert math.isnan(found["image"]["recall-generated"])
    for group, metrics in without.items():
        for name, value in metrics.items():
            assert found[group][name] == pytest.approx(value, nan_ok=True), name
