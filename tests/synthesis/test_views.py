"""Views of photographs, and the twins made of them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from loupe.synthesis import AUTHENTIC, TECHNIQUES, make_view
from loupe.synthesis.drawings import draw_interface
from loupe.synthesis.views import Donors, pass_on, resample, store_sometimes, take_view


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    noise = [generator.normal(0, 12, (side, side + 40, 3)) for side in (420, 300)]
    shades = [np.linspace(60, 200, part.shape[1])[None, :, None] for part in noise]
    return [np.clip(a + b, 0, 255).astype(np.uint8) for a, b in zip(noise, shades, strict=True)]


@pytest.mark.parametrize("technique", [AUTHENTIC, *TECHNIQUES])
def test_the_same_seed_gives_the_same_image(photographs, technique):
    first, second = (make_view((1, 2), photographs, 96, technique) for _ in range(2))
    assert first.image.shape == (96, 96, 3)
    assert first.image.dtype == np.uint8
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert first.label == first.mask.any() == (technique != AUTHENTIC)


def test_twins_differ_in_and_round_the_forgery_alone(photographs):
    """JPEG carries a change as far as its blocks reach, and a filter some pixels further."""
    outside = []
    for seed in range(40):
        authentic, forged = (
            make_view((seed,), photographs, 96, technique).image.astype(int)
            for technique in (AUTHENTIC, "splice")
        )
        mask = make_view((seed,), photographs, 96, "splice").mask
        far = cv2.dilate(mask.astype(np.uint8), np.ones((81, 81), np.uint8)) == 0
        if far.any():
            outside.append(np.abs(authentic - forged)[far].max())
        assert np.abs(authentic - forged)[mask].mean() > 0.5
    assert len(outside) > 10
    assert max(outside) == 0


def test_a_window_at_native_scale_keeps_its_pixels(photographs):
    """At least some hosts are cut out and nothing else."""
    found = 0
    for seed in range(60):
        view, index = take_view(np.random.default_rng(seed), photographs, 64)
        matches = cv2.matchTemplate(photographs[index], view, cv2.TM_SQDIFF)
        found += matches.min() == 0
    assert 5 < found < 40


def test_donors_are_as_large_as_their_photographs_let_them(photographs):
    donors = Donors(np.random.default_rng(0), photographs, 300)
    assert len(donors) == 2
    assert donors[0].shape == (420, 420, 3)
    assert donors[1].shape == (300, 300, 3)


def test_storing_repeats_nothing_and_moves_nothing(photographs):
    image = photographs[0][:96, :96]
    for seed in range(20):
        stored = store_sometimes(np.random.default_rng(seed), image, 1.0)
        assert stored.shape == image.shape
        assert np.abs(stored.astype(int) - image).mean() < 12


def test_a_cameras_own_tables_are_used(photographs):
    class WithTables(list):
        tables = (((90,) * 64, (90,) * 64),)

    image = photographs[0][:96, :96]
    errors = []
    for seed in range(40):
        stored = store_sometimes(np.random.default_rng(seed), image, 1.0, WithTables())
        errors.append(np.abs(stored.astype(int) - image).mean())
    # One step of 90 for all coefficients spoils more than any quality from 60 to 98.
    standard = [
        np.abs(store_sometimes(np.random.default_rng(seed), image, 1.0).astype(int) - image).mean()
        for seed in range(40)
    ]
    assert 3 <= sum(error > max(standard) for error in errors) <= 20


def test_a_finished_image_and_its_mask_shrink_together(photographs):
    mask = np.zeros((120, 120), bool)
    mask[:60] = True
    image, shrunk = pass_on(np.random.default_rng(0), photographs[0][:120, :120], mask, 96)
    assert image.shape == (96, 96, 3)
    assert abs(shrunk.mean() - 0.5) < 0.02


@pytest.mark.parametrize("seed", range(12))
def test_resampling_gives_the_wanted_size(photographs, seed):
    small = resample(np.random.default_rng(seed), photographs[0][:200, :200], 77)
    assert small.shape == (77, 77, 3)
    assert abs(small.mean() - photographs[0][:200, :200].mean()) < 3


def test_a_drawing_is_flat_where_no_photograph_is():
    drawing = draw_interface(np.random.default_rng(3), 160)
    flat = (drawing[:, 1:] == drawing[:, :-1]).all(axis=2).mean()
    assert flat > 0.6
