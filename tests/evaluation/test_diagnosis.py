"""Facts of a diagnosis on images whose truth is known; every pattern on a case made for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from loupe.evaluation.diagnosis import ConditionedPrediction, Diagnosis, centre_prior, on_grid
from loupe.evaluation.diagnosis_report import markdown
from loupe.evaluation.patterns import RULES, find_patterns
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
    """A model's predictions on as many forged as authentic images; a good model by default."""

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
            prediction = ConditionedPrediction(
                float(generator.uniform(*(self.forged_score if forged else self.authentic_score))),
                own,
                self.told_authentic(mask, generator),
                told(mask, generator),
                patches_of(self.patch_map(mask, generator)),
            )
            technique = ("splice", "removal")[index // 2 % 2] if forged else ""
            truth = GroundTruth(int(forged), mask if forged else None, technique)
            diagnosis.add(str(index), prediction, truth)
        return diagnosis.facts()

    def found(self) -> set[str]:
        return {pattern.name for pattern in find_patterns(self.facts())}


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
    "wrong conditions cost masks": Case(forged_map=half_the_region, told_forged=good_map),
    "false alarms on authentic images": Case(authentic_map=alarm),
    "small regions are missed": Case(forged_map=only_large),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_pattern_shows_in_the_case_made_for_it(name: str):
    assert name in CASES[name].found()


def test_a_good_model_shows_no_pattern():
    assert Case().found() == set()


def test_a_technique_that_is_missed_is_named():
    turn = iter(range(IMAGES))

    def every_other(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return (nothing if next(turn) % 2 else good_map)(mask, generator)

    patterns = find_patterns(Case(forged_map=every_other, told_forged=good_map).facts())
    (missed,) = [pattern for pattern in patterns if pattern.name == "one technique is missed"]
    assert "removal (10 images)" in missed.evidence


def test_every_rule_has_a_case():
    assert {rule.name for rule in RULES} == CASES.keys() | {"one technique is missed"}


def test_the_facts_of_one_image():
    mask = np.zeros((16, 16), bool)
    mask[:8, :8] = True
    own = np.zeros((16, 16), np.float32)
    own[:8, :4] = 0.9
    told = np.where(mask, np.float32(0.9), np.float32(0))
    patches = np.array([[0.9, 0.0], [0.0, 0.0]], np.float32)
    diagnosis = Diagnosis()
    diagnosis.add(
        "a", ConditionedPrediction(0.8, own, own * 0 + 0.1, told, patches), GroundTruth(1, mask)
    )
    facts = diagnosis.facts()
    f1 = {view: numbers["pixel/F1-image"] for view, numbers in facts["views"].items()}
    assert f1["own"] == pytest.approx(2 / 3)
    assert (f1["told authentic"], f1["told forged"]) == (0, 1)
    # Half of the one forged patch is called forged, and its mean is 0.45.
    assert (f1["patch map"], f1["mask on patches"]) == (1, 0)
    assert facts["views"]["mask on patches"]["pixel/F1-best-image"] == 1
    assert facts["views"]["own"]["pixel/AUC-image"] == pytest.approx(0.75)
    assert facts["condition"]["told apart"] == pytest.approx(0.8 / 4 + 0.1 * 3 / 4)
    assert facts["condition"]["own to told forged"] == pytest.approx(0.9 / 8)


def test_a_region_smaller_than_half_a_patch_has_no_truth_on_the_grid():
    mask, blank = np.zeros((16, 16), bool), np.zeros((16, 16), np.float32)
    mask[0, :4] = True
    diagnosis = Diagnosis()
    prediction = ConditionedPrediction(0.8, blank, patch_map=blank[:2, :2])
    diagnosis.add("a", prediction, GroundTruth(1, mask))
    views = diagnosis.facts()["views"]
    assert np.isnan(views["patch map"]["pixel/F1-image"])
    assert views["own"]["pixel/F1-image"] == 0


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


def test_a_map_of_another_size_is_refused_by_name():
    small = ConditionedPrediction(0.5, np.zeros((8, 8), np.float32))
    with pytest.raises(ValueError, match=r"a\.png: the forgery map is 8x8"):
        Diagnosis().add("a.png", small, GroundTruth(1, np.ones((4, 4), bool)))


def test_sizes_are_quarters_of_the_forged_images_in_order():
    quarters = Case().facts()["by_size"]
    assert [quarter["images"] for quarter in quarters.values()] == [5, 5, 5, 5]
    assert next(iter(quarters)).startswith("4.79%")
    assert all(0.5 < quarter["centre prior"] < 1 for quarter in quarters.values())


def test_the_report_holds_patterns_and_views_and_no_markup_of_others():
    facts = Case(forged_map=half_the_region).facts()
    report = markdown(facts, find_patterns(facts), "<script>")
    assert "**patch map better than mask**" in report
    assert "\n| centre prior | " in report
    assert "nan" not in report
    assert "<script>" not in report


def test_a_set_of_nothing_but_authentic_images_is_diagnosed():
    diagnosis = Diagnosis()
    for _ in range(3):
        blank = ConditionedPrediction(0.01, np.zeros((8, 8), np.float32))
        diagnosis.add("a", blank, GroundTruth(0, None))
    facts = diagnosis.facts()
    assert np.isnan(facts["views"]["own"]["pixel/AUC-image"])
    assert "Nothing that is known to go wrong." in markdown(facts, find_patterns(facts), "toy")
