"""One image's numbers: counts, thresholds, masks that are unknown or wrong, errors by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.measure import label as label_regions

from loupe.evaluation.measures import ImageMeasures, largest_region, measure_image
from loupe.structures import GroundTruth


def example(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    mask = np.zeros((30, 50), bool)
    mask[5:15, 10:35] = True
    return np.clip(generator.normal(0.4 + 0.2 * mask, 0.2), 0, 1).astype(np.float32), mask


def measured(truth: GroundTruth, forgery_map: np.ndarray | None, score: float = 0.7):
    return measure_image("a.jpg", truth, score, forgery_map)[0]


def test_the_threshold_itself_is_not_forged():
    truth = GroundTruth(1, np.ones((1, 3), bool))
    for values in (np.float32([[0.5, 0.5, 0.6]]), np.uint8([[127, 127, 128]])):
        assert measured(truth, values).true_positives == 1


@pytest.mark.parametrize("mask", [None, np.zeros((30, 50), bool)])
def test_all_pixels_of_an_authentic_image_are_authentic(mask):
    scores, _ = example()
    numbers = measured(GroundTruth(0, mask), scores)
    assert numbers.false_positives == (scores > 0.5).sum()
    assert numbers.true_positives == numbers.false_negatives == 0
    assert math.isnan(numbers.pixel_auc)
    assert math.isnan(numbers.best_f1)


@pytest.mark.parametrize("truth", [GroundTruth(1, None), GroundTruth(0, example()[1])])
def test_an_unknown_mask_or_one_that_contradicts_the_label_gives_no_pixel_numbers(truth):
    numbers, levels = measure_image("a", truth, 0.7, example()[0])
    assert levels is None
    assert math.isnan(numbers.false_positives)
    assert numbers.probability == 0.7


def test_an_image_without_a_map_keeps_its_probability():
    numbers = measured(GroundTruth(1, example()[1]), None, 0.4)
    assert numbers == pytest.approx(ImageMeasures(1, 0.4), nan_ok=True)


def test_a_wholly_forged_image_has_counts_but_no_area():
    scores, mask = example()
    numbers = measured(GroundTruth(1, np.ones_like(mask)), scores)
    assert numbers.true_positives == (scores > 0.5).sum()
    assert math.isnan(numbers.pixel_auc)
    assert numbers.best_f1 == 1


def test_the_largest_region_is_eight_connected():
    forged = np.zeros((10, 10), bool)
    np.fill_diagonal(forged, True)
    forged[0, 9] = True
    labels = label_regions(forged, connectivity=2)
    expected = np.bincount(labels[labels > 0]).max() / 100
    assert largest_region(forged) == expected == 0.1


def test_a_map_of_another_size_is_refused_by_the_images_name():
    scores, mask = example()
    with pytest.raises(ValueError, match=r"a\.jpg: the forgery map is 30x50 .* truth 50x30"):
        measured(GroundTruth(1, mask.T), scores)


@pytest.mark.parametrize(
    ("forgery_map", "message"),
    [
        (np.full((3, 3), 1.5, np.float32), "reaches from 1.5 to 1.5"),
        (np.full((3, 3), -0.1, np.float32), "reaches from -0.1"),
        (np.full((3, 3), np.nan, np.float32), "nan"),
        (np.zeros((3, 3, 3), np.float32), "shape"),
        (np.zeros((0, 3), np.float32), "shape"),
        (np.zeros((3, 3), np.int64), "int64"),
    ],
)
def test_a_map_that_is_no_probability_is_refused_by_the_images_name(forgery_map, message):
    with pytest.raises(ValueError, match=rf"a\.jpg.*{message}"):
        measured(GroundTruth(0, None), forgery_map)


@pytest.mark.parametrize("score", [-0.1, 1.1, math.inf])
def test_a_number_that_is_no_probability_is_refused_by_the_images_name(score):
    with pytest.raises(ValueError, match=r"a\.jpg: the probability is"):
        measured(GroundTruth(0, None), None, score)


def test_sixteen_bit_bool_and_double_maps_count_as_their_float32_equal():
    scores, mask = example()
    truth = GroundTruth(1, mask)
    assert measured(truth, scores.astype(np.float64)) == measured(truth, scores)
    for values in ((scores * 65535).round().astype(np.uint16), scores > 0.5):
        as_float = values / np.float32(65535 if values.dtype == np.uint16 else 1)
        assert measured(truth, values) == measured(truth, as_float.astype(np.float32))


def test_only_the_protocols_asked_for_are_measured():
    scores, mask = example()
    numbers, _ = measure_image("a", GroundTruth(1, mask), 0.5, scores, protocols=("trufor",))
    assert math.isnan(numbers.benco_f1)
    assert not math.isnan(numbers.trufor_best)
