"""The peers' per-image numbers against transcriptions of their definitions, written separately."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter, minimum_filter
from sklearn.metrics import confusion_matrix, roc_auc_score

from loupe.evaluation.protocols import area_with_ties_in_order, benco_measures, trufor_measures


def example(seed: int, kind: str = "float", height: int = 40, width: int = 56):
    generator = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    mask[8:30, 10 : 30 + seed] = True
    scores = np.clip(generator.normal(0.35 + 0.2 * mask, 0.2), 0, 1).astype(np.float32)
    # Fewer thresholds, so that the transcriptions below can try each of them.
    scores = np.round(scores * 150) / np.float32(150)
    if kind == "8-bit":
        scores = (scores * 255).astype(np.uint8)
    return scores, mask


def as_float(scores: np.ndarray) -> np.ndarray:
    return scores / np.float32(255) if scores.dtype == np.uint8 else scores


def torch_f1(scores: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """F1 from precision and recall, and IoU, each with an epsilon of 1e-8 in every denominator."""
    called, truth = torch.tensor(scores > 0.5).double(), torch.tensor(mask).double()
    hits = (called * truth).sum()
    precision, recall = hits / (called.sum() + 1e-8), hits / (truth.sum() + 1e-8)
    iou = hits / (called.sum() + truth.sum() - hits + 1e-8)
    return float(2 * precision * recall / (precision + recall + 1e-8)), float(iou)


def torch_area(scores: np.ndarray, mask: np.ndarray) -> float:
    """Trapezoids under the points of a stable descending sort, ties not grouped."""
    order = torch.argsort(torch.tensor(scores).flatten(), descending=True, stable=True)
    truth = torch.tensor(mask).flatten()[order].double()
    found, wrong = truth.cumsum(0) / truth.sum(), (1 - truth).cumsum(0) / (1 - truth).sum()
    return float(torch.trapz(found, wrong))


@pytest.mark.parametrize("kind", ["float", "8-bit"])
@pytest.mark.parametrize("seed", range(2))
def test_benco_equals_its_transcription_at_the_own_size(seed, kind):
    scores, mask = example(seed, kind)
    measures = benco_measures(scores, mask, None)
    f1, iou = torch_f1(as_float(scores), mask)
    assert measures["benco_f1"] == pytest.approx(f1, abs=1e-9)
    assert measures["benco_iou"] == pytest.approx(iou, abs=1e-9)
    assert measures["benco_auc"] == pytest.approx(torch_area(as_float(scores), mask), abs=1e-9)


def test_benco_measures_at_the_network_size():
    scores, mask = example(0, height=30, width=40)
    same = benco_measures(scores, mask, None)
    assert benco_measures(scores, mask, 20)["benco_auc"] != same["benco_auc"]


def test_benco_gives_an_authentic_image_zero_and_a_wholly_forged_one_no_area():
    scores, mask = example(1)
    measures = benco_measures(scores, np.zeros_like(mask), None)
    assert measures == pytest.approx({"benco_f1": 0, "benco_iou": 0, "benco_auc": 0}, abs=1e-12)
    assert math.isnan(benco_measures(scores, np.ones_like(mask), None)["benco_auc"])


def test_benco_ranks_ties_in_reading_order_so_that_a_constant_map_depends_on_the_place():
    constant = np.full((10, 10), 0.5, np.float32)
    top, bottom = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    top[:3], bottom[-3:] = True, True
    assert benco_measures(constant, top, None)["benco_auc"] == 1.0
    assert benco_measures(constant, bottom, None)["benco_auc"] == 0.0


def test_a_right_area_is_the_mean_over_both_reading_orders():
    generator = np.random.default_rng(0)
    scores = np.round(generator.random(300) * 6).astype(np.float32) / 6
    forged = generator.random(300) < 0.4
    both = [area_with_ties_in_order(scores[::s], forged[::s]) for s in (1, -1)]
    assert np.mean(both) == pytest.approx(roc_auc_score(forged, scores), abs=1e-12)


def trufor_reference(scores: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Fixed and best F1, threshold by threshold, with scikit-learn's confusion table."""
    inner = minimum_filter(mask, 15)
    outer = ~maximum_filter(mask, 11)
    kept = inner | outer
    values, truth = scores[kept], mask[kept]

    def larger_f1(called: np.ndarray) -> float:
        table = confusion_matrix(truth, called, labels=[False, True])
        passed, alarms, missed, hits = table.ravel()
        f1 = 2 * hits / max(2 * hits + missed + alarms, 1e-32)
        return max(f1, 2 * missed / max(2 * missed + hits + passed, 1e-32))

    called = values > 0.5
    one_class = len(set(truth.tolist()) | set(called.tolist())) < 2
    fixed = math.nan if one_class else larger_f1(called)
    return fixed, max(larger_f1(values > threshold) for threshold in np.unique(values))


@pytest.mark.parametrize("kind", ["float", "8-bit"])
@pytest.mark.parametrize("seed", range(2))
def test_trufor_equals_its_transcription(seed, kind):
    scores, mask = example(seed, kind)
    fixed, best = trufor_reference(as_float(scores), mask)
    measures = trufor_measures(scores, mask)
    assert measures["trufor_fixed"] == pytest.approx(fixed, abs=1e-9)
    assert measures["trufor_best"] == pytest.approx(best, abs=1e-9)


def test_trufor_takes_the_inverted_map_where_that_is_better():
    _, mask = example(2)
    inverted = np.where(mask, np.float32(0.1), np.float32(0.9))
    assert trufor_measures(inverted, mask) == {"trufor_fixed": 1.0, "trufor_best": 1.0}


@pytest.mark.parametrize(
    "region", [np.s_[:20, :25], np.s_[10:14, 10:14]], ids=["at the border", "too small to survive"]
)
def test_trufor_of_an_odd_region_equals_its_transcription(region):
    scores, mask = example(1)
    mask[:] = False
    mask[region] = True
    expected = trufor_reference(scores, mask)
    assert tuple(trufor_measures(scores, mask).values()) == pytest.approx(expected)


def test_trufor_skips_an_image_of_one_class_and_one_of_which_nothing_is_left():
    mask = np.zeros((40, 40), bool)
    mask[10:14, 10:14] = True
    assert math.isnan(trufor_measures(np.zeros((40, 40), np.float32), mask)["trufor_fixed"])
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    measures = trufor_measures(np.full((9, 9), 0.3, np.float32), mask)
    assert all(math.isnan(value) for value in measures.values())
