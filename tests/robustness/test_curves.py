"""Areas under curves: their scale, their intervals, the images that enter."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from loupe.evaluation import ForgeryEvaluator
from loupe.robustness.curves import areas
from loupe.robustness.points import METRICS, Point
from loupe.structures import GroundTruth


class Found(NamedTuple):
    """How much of each image's mask a made-up detector finds at one level."""

    level: float | str
    fractions: list[float]


def point_of(found: Found, names: str = "abcdefgh") -> Point:
    evaluator = ForgeryEvaluator("toy", protocols=(), resamples=0, distributed=False)
    mask = np.zeros((10, 10), bool)
    mask[:5] = True
    for name, fraction in zip(names, found.fractions, strict=True):
        forgery_map = np.zeros((10, 10), np.float32)
        forgery_map[: round(5 * fraction)] = 1
        evaluator.add(name, name, GroundTruth(1, mask), 0.5, forgery_map)
    shard = evaluator.shard()
    return Point("axis", found.level, evaluator.summarise([shard]), shard.table)


def area_of(curve: list[Found], **options):
    points = [point_of(one) for one in curve]
    return areas(points, ("pixel/IoU-image",), **({"resamples": 200, "seed": 0} | options))[
        "pixel/IoU-image"
    ]


def test_an_area_is_the_mean_height_on_the_levels_own_scale():
    curve = [Found(0, [1.0] * 8), Found(1, [0.6] * 8), Found(3, [0.2] * 8)]
    assert area_of(curve).value == pytest.approx(((1 + 0.6) / 2 * 1 + (0.6 + 0.2) / 2 * 2) / 3)


def test_falling_levels_and_chains_in_equal_steps_have_areas():
    rising = [Found(50, [0.2] * 8), Found(60, [0.4] * 8), Found(90, [1.0] * 8)]
    assert area_of(rising).value == pytest.approx(area_of(rising[::-1]).value)
    chains = [Found("a", [1.0] * 8), Found("b", [0.2] * 8), Found("c", [0.6] * 8)]
    assert area_of(chains).value == pytest.approx((0.6 + 0.4) / 2)


def test_one_level_is_its_own_area():
    assert area_of([Found(7, [0.4] * 8)]).value == pytest.approx(0.4)


def test_an_interval_is_as_wide_as_the_images_differ():
    level = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.0]
    metric = area_of([Found(0, level), Found(1, level)], resamples=2000)
    error = np.std(level) / np.sqrt(8)
    assert metric.high - metric.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    same = area_of([Found(0, [0.6] * 8), Found(1, [0.6] * 8)])
    assert same.low == pytest.approx(same.high)


def test_images_are_drawn_together_at_all_levels():
    level = [0.0, 1.0] * 4
    opposed = area_of([Found(0, level), Found(1, level[::-1])])
    assert opposed.low == pytest.approx(opposed.value)
    assert opposed.high == pytest.approx(opposed.value)


def test_only_images_that_all_levels_have_enter_an_area():
    points = [
        point_of(Found(0, [0.2, 0.4, 1.0]), "abc"),
        point_of(Found(1, [1.0, 0.4, 0.2]), "cba"),
        point_of(Found(2, [0.4, 0.2]), "ba"),
    ]
    metric = areas(points, ("pixel/IoU-image",), 10, 0)["pixel/IoU-image"]
    assert (metric.value, metric.images) == (pytest.approx(0.3), 2)


def test_an_area_that_no_image_defines_says_so():
    points = [point_of(Found(level, [0.2] * 8)) for level in (0, 1)]
    metric = areas(points, ("image/AUC",), 10, 0)["image/AUC"]
    assert np.isnan(metric.value)
    assert metric.reason


def test_metrics_without_numbers_of_single_images_have_no_area():
    assert "pixel/AUC-pooled" not in METRICS
    assert "pixel/F1-pooled" in METRICS
