"""The table of metrics against scikit-learn, torchmetrics, hand-made tables and its document."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    jaccard_score,
    roc_auc_score,
)
from torchmetrics.functional.classification import binary_calibration_error

from loupe.evaluation.bootstrap import bootstrap
from loupe.evaluation.measures import Columns, ImageMeasures, measure_image
from loupe.evaluation.metrics import METRICS, compute, metrics_of
from loupe.evaluation.records import RecordTable, columns_of
from loupe.evaluation.results import estimate
from loupe.structures import GroundTruth

Set = list[tuple[GroundTruth, float, np.ndarray]]


def make_set(count: int = 40, forged_fraction: float = 0.6, seed: int = 0) -> Set:
    """Truth, probability and map of images of different sizes."""
    generator = np.random.default_rng(seed)
    images = []
    for index in range(count):
        label = int(index < forged_fraction * count)
        shape = (20 + index % 3, 30)
        mask = np.zeros(shape, bool)
        if label:
            top, left = generator.integers(0, 8, 2)
            mask[top : top + 9, left : left + 14] = True
        scores = np.clip(generator.normal(0.3 + 0.25 * mask, 0.2), 0, 1).astype(np.float32)
        score = float(np.clip(generator.normal(0.4 + 0.2 * label, 0.2), 0, 1))
        images.append((GroundTruth(label, mask if label else None), score, scores))
    return images


def columns(images: Set) -> Columns:
    return columns_of(
        measure_image(str(i), truth, score, forgery_map)[0]
        for i, (truth, score, forgery_map) in enumerate(images)
    )


def metrics(images: Set) -> dict[str, float]:
    return {name: float(value[0]) for name, value in compute(columns(images)).items()}


@pytest.fixture(scope="module")
def images() -> Set:
    return make_set()


@pytest.fixture(scope="module")
def forged(images) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks and thresholded maps of the forged images."""
    return [(t.mask.ravel(), (m > 0.5).ravel()) for t, _, m in images if t.label]


def test_image_metrics_equal_scikit_learn_and_torchmetrics(images):
    labels = np.array([truth.label for truth, _, _ in images])
    scores = np.array([score for _, score, _ in images])
    calibration = binary_calibration_error(torch.tensor(scores), torch.tensor(labels), n_bins=15)
    expected = {
        "image/AUC": roc_auc_score(labels, scores),
        "image/AP": average_precision_score(labels, scores),
        "image/Acc": accuracy_score(labels, scores > 0.5),
        "image/bAcc": balanced_accuracy_score(labels, scores > 0.5),
        "image/F1": f1_score(labels, scores > 0.5),
        "image/Brier": brier_score_loss(labels, scores),
        "image/ECE": float(calibration),
    }
    actual = metrics(images)
    assert {name: actual[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_pooled_metrics_equal_scikit_learn_over_all_pixels_of_forged_images(images, forged):
    truth, called = (np.concatenate(parts) for parts in zip(*forged, strict=True))
    ious = jaccard_score(truth, called, average=None)
    actual = metrics(images)
    assert actual["pixel/F1-pooled"] == pytest.approx(f1_score(truth, called), abs=1e-12)
    assert actual["pixel/IoU-pooled"] == pytest.approx(ious[1], abs=1e-12)
    assert actual["pixel/mIoU2-pooled"] == pytest.approx(ious.mean(), abs=1e-12)


def test_per_image_metrics_equal_the_mean_of_scikit_learns(images, forged):
    actual = metrics(images)
    assert actual["pixel/F1-image"] == pytest.approx(np.mean([f1_score(*one) for one in forged]))
    ious = [jaccard_score(*one) for one in forged]
    assert actual["pixel/IoU-image"] == pytest.approx(np.mean(ious))
    areas = [roc_auc_score(t.mask.ravel(), m.ravel()) for t, _, m in images if t.label]
    assert actual["pixel/AUC-image"] == pytest.approx(np.mean(areas))


def test_an_alarm_needs_a_region_of_one_percent():
    small, large = np.zeros((2, 100, 100), np.float32)
    small[:9, :11], large[:10, :10] = 1, 1
    scattered = np.zeros((100, 100), np.float32)
    scattered[::4, ::4] = 1
    images = [(GroundTruth(0, None), 0.1, m) for m in (small, large, scattered)]
    assert metrics(images)["pixel/false-alarm-images"] == pytest.approx(1 / 3)
    forged = (GroundTruth(1, np.ones((100, 100), bool)), 0.9, np.ones((100, 100), np.float32))
    shares = [(m > 0.5).mean() for _, _, m in images]
    assert metrics([*images, forged])["pixel/FPR-authentic"] == pytest.approx(np.mean(shares))


def test_ddl2025_is_area_pooled_f1_two_class_iou_and_their_mean(images):
    actual = metrics(images)
    parts = [actual[name] for name in ("image/AUC", "pixel/F1-pooled", "pixel/mIoU2-pooled")]
    assert [actual[f"ddl2025/{name}"] for name in ("AUC", "F1", "IoU")] == parts
    assert actual["ddl2025/Overall"] == pytest.approx(sum(parts) / 3)


def test_benco_enters_authentic_images_as_zero_and_trufor_leaves_them_out(images):
    table, actual = columns(images), metrics(images)
    expected = table.benco_f1[table.label > 0].sum() / len(images)
    assert actual["benco/F1"] == pytest.approx(expected)
    only_forged = metrics([image for image in images if image[0].label])
    assert only_forged["benco/F1"] > actual["benco/F1"]
    assert only_forged["trufor/F1-best"] == actual["trufor/F1-best"]


def mvss_reference(images: Set) -> tuple[float, float]:
    """Image F1 from the maps' maxima, pixel F1 with 1 for two empty maps; combined."""
    labels = np.array([truth.label for truth, _, _ in images])
    alarm = np.array([m.max() > 0.5 for _, _, m in images])
    sensitivity = (alarm & (labels == 1)).sum() / ((labels == 1).sum() + 1e-6)
    specificity = (~alarm & (labels == 0)).sum() / ((labels == 0).sum() + 1e-6)
    image_f1 = 2 * sensitivity * specificity / (sensitivity + specificity)
    pixel = []
    for truth, _, forgery_map in images:
        called = forgery_map > 0.5
        if truth.label:
            hits, total = (truth.mask & called).sum(), truth.mask.sum() + called.sum()
            pixel.append(2 * hits / (total + 1e-6) if total else 1.0)
    mean = np.mean(pixel)
    return image_f1, 2 * mean * image_f1 / (mean + image_f1 + 1e-6)


def test_mvss_equals_its_transcription(images):
    damped = [(t, s, m * (0.49 if i % 4 == 0 else 1)) for i, (t, s, m) in enumerate(images)]
    empty = (GroundTruth(1, np.zeros((5, 5), bool)), 0.5, np.zeros((5, 5), np.float32))
    actual = metrics([*damped, empty])
    expected = mvss_reference([*damped, empty])
    assert (actual["mvss/F1-image"], actual["mvss/F1-combined"]) == pytest.approx(expected)
    assert 0 < expected[0] < 1


def sida_reference(images: Set) -> tuple[float, float]:
    """Mean and pooled IoU of forged images; an empty union counts as 1."""
    ious, intersections, unions = [], 0, 0
    for truth, _, forgery_map in images:
        if truth.label:
            intersection = (truth.mask & (forgery_map > 0.5)).sum()
            union = (truth.mask | (forgery_map > 0.5)).sum()
            ious.append(intersection / (union + 1e-5) if union else 1.0)
            intersections, unions = intersections + intersection, unions + union
    return float(np.mean(ious)), intersections / (unions + 1e-10)


def test_sida_equals_its_transcription(images):
    empty = (GroundTruth(1, np.zeros((5, 5), bool)), 0.5, np.zeros((5, 5), np.float32))
    actual = metrics([*images, empty])
    expected = sida_reference([*images, empty])
    assert (actual["sida/gIoU"], actual["sida/cIoU"]) == pytest.approx(expected, abs=1e-9)


def test_the_worked_example_of_the_documentation_is_right():
    table = columns_of(
        [
            ImageMeasures(1, 0.5, 60, 40, 40, 860, benco_f1=0.6),
            ImageMeasures(1, 0.5, 200, 0, 1800, 8000, benco_f1=400 / 2200),
            ImageMeasures(0, 0.5, 0, 50, 0, 950, benco_f1=0),
        ]
    )
    values = compute(table)
    expected = {
        "pixel/F1-image": 0.391,
        "pixel/F1-pooled": 0.217,
        "benco/F1": 0.261,
        "pixel/IoU-pooled": 0.121,
        "pixel/mIoU2-pooled": 0.473,
    }
    assert {name: round(float(values[name][0]), 3) for name in expected} == expected


def test_an_empty_mask_of_a_forged_image_is_right_only_if_nothing_is_called_forged():
    empty = np.zeros((10, 10), bool)
    silent, loud = np.zeros((10, 10), np.float32), np.ones((10, 10), np.float32)
    assert metrics([(GroundTruth(1, empty), 0.5, silent)])["pixel/F1-image"] == 1
    assert metrics([(GroundTruth(1, empty), 0.5, loud)])["pixel/F1-image"] == 0


def test_an_all_authentic_set_leaves_what_needs_forged_images_undefined():
    actual = metrics(make_set(10, 0.0))
    defined = {name for name, value in actual.items() if not math.isnan(value)}
    assert defined == {
        "image/Acc",
        "image/ECE",
        "image/Brier",
        "pixel/FPR-authentic",
        "pixel/false-alarm-images",
        "benco/F1",
        "benco/IoU",
        "benco/AUC",
    }


def test_an_all_forged_set_leaves_what_needs_authentic_images_undefined():
    actual = metrics(make_set(10, 1.0))
    undefined = {name for name, value in actual.items() if math.isnan(value)}
    assert undefined == {
        "image/AUC",
        "image/EER",
        "image/bAcc",
        "image/TPR@FPR1%",
        "pixel/FPR-authentic",
        "pixel/false-alarm-images",
        "ddl2025/AUC",
        "ddl2025/Overall",
        "mvss/F1-image",
        "mvss/F1-combined",
    }


def test_an_empty_set_leaves_everything_undefined():
    values = compute(RecordTable().columns())
    assert all(math.isnan(value[0]) for value in values.values())


def test_every_row_states_range_support_and_why_it_is_undefined(images):
    estimates = estimate(columns(images), metrics_of(), 50)
    for name, one in estimates.items():
        low, high = METRICS[name].range
        assert low <= one.low <= one.value <= one.high <= high, name
        assert one.images >= 16
    assert (estimates["image/AUC"].images, estimates["pixel/F1-pooled"].images) == (40, 24)
    assert estimates["pixel/FPR-authentic"].images == 16
    images = [(GroundTruth(1, None), math.nan, None)] * 2
    unscored = estimate(columns(images), metrics_of(), 0)
    reasons = {name: one.reason for name, one in unscored.items()}
    assert reasons["image/AUC"] == "the predictions hold no image scores"
    assert reasons["pixel/FPR-authentic"] == "the set has no authentic image"
    assert reasons["sida/cIoU"] == "no image has both a map and a known mask"
    assert all(reasons.values())


def test_the_document_defines_the_metrics_of_the_table():
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    text = text[text.index("## Definitions") : text.index("**Compared with")]
    found, group = [], ""
    for line in text.splitlines():
        heading = re.match(r"### (\w+)/", line)
        group = heading[1] if heading else group
        for name in re.findall(r"`([^`]+)`", line.split("|")[1] if line.startswith("| `") else ""):
            found.append(name if "/" in name else f"{group}/{name}")
    assert sorted(found) == sorted(METRICS)


def test_a_weight_of_two_equals_the_image_given_twice(images):
    weights = np.ones((1, len(images)))
    weights[0, 3] = 2
    doubled = metrics([*images, images[3]])
    for name, value in compute(columns(images), weights).items():
        assert value[0] == pytest.approx(doubled[name], abs=1e-12), name


def test_an_interval_equals_resampling_by_hand():
    values = np.random.default_rng(0).normal(size=60)
    low, high = bootstrap(lambda w: {"mean": w @ values / w.sum(axis=1)}, 60)["mean"]
    spread = values.std() / np.sqrt(60)
    assert low == pytest.approx(values.mean() - 1.96 * spread, abs=0.2 * spread)
    assert high == pytest.approx(values.mean() + 1.96 * spread, abs=0.2 * spread)


def test_intervals_do_not_depend_on_the_block_size(monkeypatch):
    values = np.arange(10.0)

    def mean(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"mean": weights @ values / 10}

    whole = bootstrap(mean, 10, resamples=100)
    monkeypatch.setattr("loupe.evaluation.bootstrap.BLOCK", 35)
    assert bootstrap(mean, 10, resamples=100) == whole


def test_a_metric_that_most_resamples_leave_undefined_has_no_interval():
    interval = bootstrap(lambda w: {"x": np.where(w[:, 0] > 2, 1.0, np.nan)}, 20)["x"]
    assert all(math.isnan(end) for end in interval)


def test_a_table_keeps_each_image_once_and_in_the_order_of_names():
    table = RecordTable()
    for name, label in [("b", 1), ("a", 0), ("b", 1)]:
        table.append(name, ImageMeasures(label, 0.5))
    assert len(table) == 2
    assert table.columns().label.tolist() == [0, 1]
