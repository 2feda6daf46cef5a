"""Models beside each other: means over seeds, and differences paired by seed and by image."""

from __future__ import annotations

import numpy as np
import pytest

from loupe.evaluation.measures import Columns, ImageMeasures
from loupe.evaluation.metrics import compute
from loupe.evaluation.records import columns_of
from research.benchmarks.side_by_side import METRICS, compared
from research.experiments.intervals import t_interval

F1 = "pixel/F1-pooled"


def columns(seed: int) -> Columns:
    """Forty images of 100 pixels, every other one forged."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(40):
        hits = int(generator.integers(0, 40)) * (index % 2)
        wrong = {"false_positives": 5, "false_negatives": 40 * (index % 2) - hits}
        numbers = wrong | {"true_positives": hits, "true_negatives": 55 + 40 * (1 - index % 2)}
        rows.append(ImageMeasures(float(index % 2), generator.random(), **numbers))
    return columns_of(rows)


def of_all(one: Columns, name: str) -> float:
    return float(compute(one, np.ones((1, 40)), [name])[name][0])


def test_seeds_are_averaged_and_differences_paired_by_seed():
    ours, theirs = [columns(0), columns(1)], [columns(2), columns(3)]
    row = compared(ours, theirs)[F1]
    values = [of_all(one, F1) for one in ours]
    differences = [a - of_all(b, F1) for a, b in zip(values, theirs, strict=True)]
    assert row["by_seed"] == values
    assert row["value"] == pytest.approx(np.mean(values))
    assert row["difference"] == pytest.approx(np.mean(differences))
    assert row["difference_t95"] == list(t_interval(differences)[1:3])
    assert row["ci95"][0] < row["value"] < row["ci95"][1]
    assert row["difference_ci95"][0] < row["difference"] < row["difference_ci95"][1]


def test_a_model_beside_itself_differs_by_nothing_and_one_seed_has_no_t():
    rows = compared([columns(0)], [columns(0)])
    assert rows.keys() == set(METRICS)
    assert rows[F1]["difference_ci95"] == [0, 0]
    assert "difference_t95" not in rows[F1]
    assert "difference" not in compared([columns(0)], None)[F1]


def test_another_number_of_seeds_is_refused():
    with pytest.raises(ValueError, match="1 seeds beside 2"):
        compared([columns(0)], [columns(1), columns(2)])
