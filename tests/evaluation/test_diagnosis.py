"""Facts of a diagnosis on images whose answer is known; every signature on a case made for it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from loupe.evaluation.diagnosis import (
    Diagnosis,
    ModelAnswer,
    centre_prior,
    examine,
    f1_and_iou,
    on_grid,
)
from loupe.evaluation.diagnosis_report import markdown
from loupe.evaluation.signatures import SIGNATURES, find_signatures
from loupe.structures import GroundTruth

SIDE, GRID, IMAGES = 64, (8, 8), 40
MakeMap = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def mask_of(index: int) -> np.ndarray:
    """A rectangle whose place and size depend on the index; from 3% to 25% of the image."""
    mask = np.zeros((SIDE, SIDE), bool)
    side = 12 + index % 10 * 2
    top, left = (index * 13) % (SIDE - side), (index * 29) % (SIDE - side)
    mask[top : top + side, left : left + side] = True
    return mask


def good_map(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return np.clip(0.85 * mask + 0.05 + generator.normal(0, 0.02, mask.shape), 0, 1).astype("f")


def certain(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return mask.astype("f")


def nothing(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return generator.uniform(0, 0.1, mask.shape).astype("f")


def patches_of(map_: np.ndarray) -> np.ndarray:
    return on_grid(map_, None, GRID)


class Case:
    """A model's answers on as many forged as authentic images; a good model by default."""

    forged_score: tuple[float, float] = (0.95, 1.0)
    authentic_score: tuple[float, float] = (0.0, 0.05)
    forged_map: MakeMap = staticmethod(good_map)
    authentic_map: MakeMap = staticmethod(nothing)
    patch_map: MakeMap = staticmethod(good_map)
    told_authentic: MakeMap = staticmethod(nothing)
    told_forged: MakeMap | None = None

    def __init__(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self, name, value)

    def facts(self) -> dict[str, Any]:
        diagnosis, generator = Diagnosis(), np.random.default_rng(0)
        for index in range(IMAGES):
            forged = index % 2 == 1
            mask = mask_of(index) if forged else np.zeros((SIDE, SIDE), bool)
            own = (self.forged_map if forged else self.authentic_map)(mask, generator)
            told = self.told_forged or self.forged_map
            answer = ModelAnswer(
                float(generator.uniform(*(self.forged_score if forged else self.authentic_score))),
                own,
                self.told_authentic(mask, generator),
                told(mask, generator),
                patches_of(self.patch_map(mask, generator)),
            )
            technique = ("splice", "removal")[index // 2 % 2] if forged else ""
            truth = GroundTruth(int(forged), mask if forged else None, technique)
            diagnosis.add(answer, truth)
        return diagnosis.facts()

    def found(self) -> set[str]:
        return {finding.name for finding in find_signatures(self.facts())}


def half_as_strong(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return good_map(mask, generator) * 0.45


def halo(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Points at the right quarter of the image, without an outline."""
    y, x = np.nonzero(mask)
    rows, columns = np.indices(mask.shape)
    distance = np.hypot(rows - y.mean(), columns - x.mean())
    noise = generator.normal(0, 0.25, mask.shape)
    return np.clip(1.0 - distance / 60 + noise, 0, 1).astype("f")


def scattered(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return generator.uniform(0, 1, mask.shape).astype("f")


def border_only(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return (1 - centre_prior(*mask.shape)) * 0.9


def only_large(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return good_map(mask if mask.mean() > 0.12 else np.zeros_like(mask), generator)


def dilated(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    wide = np.zeros_like(mask)
    y, x = np.nonzero(mask)
    if len(y):
        wide[max(0, y.min() - 16) : y.max() + 16, max(0, x.min() - 16) : x.max() + 16] = True
    return good_map(wide, generator)


def half_the_region(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    y, _ = np.nonzero(mask)
    half = mask.copy()
    if len(y):
        half[: (y.min() + y.max()) // 2] = False
    return good_map(half, generator)


def alarm(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return good_map(mask_of(int(generator.integers(9))), generator)


CASES = {
    "high AUC, low IoU: the threshold is wrong": Case(forged_map=half_as_strong),
    "high AUC, low IoU: outlines are wrong at every threshold": Case(forged_map=halo),
    "detects but does not locate": Case(forged_map=scattered),
    "low AUC, high IoU: locates but does not detect": Case(
        forged_score=(0.3, 0.7), authentic_score=(0.3, 0.7)
    ),
    "pixel AUC below the centre prior": Case(forged_map=border_only),
    "masks are empty": Case(forged_map=nothing),
    "patch map better than mask": Case(forged_map=half_the_region),
    "patch map worse than mask": Case(patch_map=dilated),
    "probabilities cannot be trusted": Case(forged_score=(0.55, 0.6)),
    "the condition has no effect": Case(told_authentic=certain, told_forged=certain),
    "wrong verdicts cost masks": Case(forged_map=half_the_region, told_forged=good_map),
    "false alarms on authentic images": Case(authentic_map=alarm),
    "small regions are missed": Case(forged_map=only_large),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_signature_shows_in_the_case_made_for_it(name: str):
    assert name in CASES[name].found()


def test_a_good_model_shows_no_signature():
    assert Case().found() == set()


def test_a_technique_that_is_missed_is_named():
    turn = iter(range(IMAGES))

    def every_other(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return (nothing if next(turn) % 2 else good_map)(mask, generator)

    (finding,) = [
        f
        for f in find_signatures(Case(forged_map=every_other, told_forged=good_map).facts())
        if f.name == "one technique is missed"
    ]
    assert "removal (10 images)" in finding.evidence


def test_every_signature_has_a_case():
    assert {s.name for s in SIGNATURES} == CASES.keys() | {"one technique is missed"}
    assert all(s.remedy and "\n" not in s.remedy for s in SIGNATURES)


# ---- Facts


def test_f1_and_iou_of_known_maps():
    one, other = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert f1_and_iou(one, other) == (0.5, pytest.approx(1 / 3))
    assert f1_and_iou(one & False, other & False) == (1, 1)


def test_the_facts_of_one_image():
    mask = np.zeros((16, 16), bool)
    mask[:8, :8] = True
    own = np.zeros((16, 16), np.float32)
    own[:8, :4] = 0.9
    answer = ModelAnswer(
        0.8,
        own,
        own * 0 + 0.1,
        np.where(mask, 0.9, 0).astype("f"),
        np.array([[0.9, 0.0], [0.0, 0.0]]),
    )
    facts, _ = examine(answer, GroundTruth(1, mask))
    assert facts.area == 0.25
    assert facts.iou == 0.5
    assert facts.f1 == pytest.approx(2 / 3)
    assert (facts.patch_f1, facts.patch_iou) == (1, 1)
    # Half of the one forged patch is called forged, and its mean is 0.45.
    assert facts.grid_f1 == 0
    assert facts.grid_best == 1
    assert facts.told_apart == pytest.approx(0.8 / 4 + 0.1 * 3 / 4)
    assert facts.own_to_forged == pytest.approx(0.9 / 8)
    assert (facts.f1_told_authentic, facts.f1_told_forged) == (0, 1)
    assert facts.auc == pytest.approx(0.75)


def test_the_centre_prior_knows_the_middle_and_nothing_else():
    prior = centre_prior(10, 20)
    assert prior.shape == (10, 20)
    assert prior.argmax() in {4 * 20 + 9, 4 * 20 + 10, 5 * 20 + 9, 5 * 20 + 10}
    np.testing.assert_allclose(prior, prior[::-1, ::-1], rtol=1e-5)


def test_a_window_is_what_the_patch_map_shows():
    values = np.zeros((20, 30), np.float32)
    values[:, 15:] = 1
    assert on_grid(values, (15, 0, 30, 20), (2, 2)).tolist() == [[1.0, 1.0]] * 2
    # A window that reaches beyond the image repeats its edge.
    assert on_grid(values, (0, 0, 45, 20), (2, 3)).tolist() == [[0, 1, 1], [0, 1, 1]]
    with pytest.raises(ValueError, match="shows nothing"):
        on_grid(values, (40, 0, 45, 20), (2, 2))


def test_an_authentic_image_and_one_without_a_mask_have_no_f1():
    own = np.full((8, 8), 0.9, np.float32)
    authentic, levels = examine(ModelAnswer(0.2, own), GroundTruth(0, None))
    assert math.isnan(authentic.f1)
    assert authentic.alarm == 1
    assert levels is None
    unknown, _ = examine(ModelAnswer(0.2, own), GroundTruth(1, None))
    assert math.isnan(unknown.f1)
    assert math.isnan(unknown.area)


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"the map is \(8, 8\), the mask \(4, 4\)"):
        examine(
            ModelAnswer(0.5, np.zeros((8, 8), np.float32)), GroundTruth(1, np.ones((4, 4), bool))
        )


def test_pooled_numbers_are_those_of_all_pixels():
    facts = Case(forged_map=half_the_region).facts()
    hits = forged = 0
    for index in range(1, IMAGES, 2):
        mask = mask_of(index)
        hits += (half_the_region(mask, np.random.default_rng(0)) > 0.5).sum()
        forged += mask.sum()
    assert facts["masks"]["pooled_f1"] == pytest.approx(2 * hits / (hits + forged))
    assert facts["masks"]["pooled_best_f1"] >= facts["masks"]["pooled_f1"]


def test_sizes_are_quarters_of_the_forged_images_in_order():
    quarters = Case().facts()["by_size"]
    assert [quarter["images"] for quarter in quarters] == [5, 5, 5, 5]
    assert quarters[0]["name"].startswith("4.79%")


def test_the_report_is_finite_text_with_the_prior_beside_the_pixel_auc():
    facts = Case(forged_map=half_the_region).facts()
    report = markdown(facts, find_signatures(facts), "toy")
    lines = report.splitlines()
    (row,) = [i for i, line in enumerate(lines) if line.startswith("| pixel AUC (mean")]
    assert lines[row + 1].startswith("| pixel AUC of the centre prior | 0.")
    assert "**patch map better than mask**" in report
    assert "Gap +" in report
    assert "nan" not in report
    json.dumps(facts, allow_nan=False)


def test_a_set_of_nothing_but_authentic_images_is_diagnosed():
    diagnosis = Diagnosis()
    for _ in range(3):
        diagnosis.add(ModelAnswer(0.01, np.zeros((8, 8), np.float32)), GroundTruth(0, None))
    facts = diagnosis.facts()
    report = markdown(facts, find_signatures(facts), "toy")
    assert facts["masks"]["auc"] is None
    assert "Nothing that is known to go wrong." in report
