"""Degradations change what they say, by themselves or with the mask, and nothing at random."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from loupe.data.images.degradation import DEGRADATIONS, degrade, resize_mask

EVERY_LEVEL = [(axis, level) for axis, one in DEGRADATIONS.items() for level in one.levels]


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray]:
    """A photograph-like image of odd size, and a mask with a block and a thin line."""
    generator = np.random.default_rng(0)
    image = cv2.resize(generator.integers(0, 256, (9, 13, 3), np.uint8), (101, 67))
    noise = generator.normal(0, 6, image.shape)
    mask = np.zeros((67, 101), bool)
    mask[20:41, 30:62] = True
    mask[50, 5:80] = True
    return np.clip(image + noise, 0, 255).astype(np.uint8), mask


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(int) - second).mean())


@pytest.mark.parametrize("axis", DEGRADATIONS)
def test_every_level_is_a_function_of_its_arguments_alone(axis, scene):
    kept, dot = [part.copy() for part in scene], np.full((1, 1, 3), 90, np.uint8)
    for level in DEGRADATIONS[axis].levels:
        np.random.seed(1)
        image, mask = degrade(*scene, axis, level, seed=3, image_id="a")
        np.random.seed(2)
        again = degrade(*scene, axis, level, seed=3, image_id="a")
        np.testing.assert_array_equal(image, again[0])
        np.testing.assert_array_equal(mask, again[1])
        np.testing.assert_array_equal(scene[0], kept[0])
        np.testing.assert_array_equal(scene[1], kept[1])
        assert image.dtype == np.uint8
        assert image.shape == (*mask.shape, 3)
        assert mask.any()
        assert DEGRADATIONS[axis].geometric or np.array_equal(mask, scene[1])
        image, mask = degrade(dot, np.ones((1, 1), bool), axis, level)
        assert mask.all()
        assert image.shape == (*mask.shape, 3)


@pytest.mark.parametrize("axis", [axis for axis, one in DEGRADATIONS.items() if not one.geometric])
def test_levels_go_from_mild_to_strong(axis, scene):
    changes = [
        difference(degrade(*scene, axis, level)[0], scene[0]) for level in DEGRADATIONS[axis].levels
    ]
    assert changes[-1] > changes[0]
    assert changes[-1] == max(changes)


def test_draws_differ_from_image_to_image_and_seed_to_seed(scene):
    first = degrade(*scene, "noise", 4, image_id="a")[0]
    assert difference(first, degrade(*scene, "noise", 4, image_id="b")[0]) > 1
    assert difference(first, degrade(*scene, "noise", 4, image_id="a", seed=1)[0]) > 1


def test_noise_has_the_strength_that_it_says():
    grey = np.full((200, 200, 3), 128, np.uint8)
    noise = degrade(grey, None, "noise", 8)[0].astype(float) - 128
    assert noise.std() == pytest.approx(8, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.1)


def test_gamma_is_a_power_of_the_grey_level():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    expected = np.rint(255 * (np.arange(256) / 255) ** 2)
    np.testing.assert_array_equal(degrade(ramp, None, "gamma_dark", 2.0)[0][0, :, 1], expected)


@pytest.mark.parametrize("kernel", [3, 7, 23])
def test_benco_blur_is_opencvs_with_sigma_from_the_kernel(kernel, scene):
    positions = np.arange(kernel) - (kernel - 1) / 2
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    weights = np.exp(-(positions**2) / (2 * sigma**2))
    weights /= weights.sum()
    expected = cv2.sepFilter2D(scene[0].astype(np.float64), -1, weights, weights)
    blurred = degrade(*scene, "benco_blur", kernel)[0]
    np.testing.assert_array_equal(blurred, cv2.GaussianBlur(scene[0], (kernel, kernel), sigmaX=0))
    # OpenCV rounds small kernels to eighths.
    assert np.abs(blurred - expected).max() <= (12 if kernel < 9 else 1.5)


def test_benco_blur_zero_is_the_image_itself(scene):
    np.testing.assert_array_equal(degrade(*scene, "benco_blur", 0)[0], scene[0])


def test_benco_noise_has_the_variance_and_is_truncated():
    grey = np.full((300, 300, 3), 128, np.uint8)
    noise = degrade(grey, None, "benco_noise", 23)[0].astype(float) - 128
    assert noise.var() == pytest.approx(23, rel=0.03)
    assert noise.mean() == pytest.approx(-0.5, abs=0.05)


def test_benco_jpeg_is_one_of_two_qualities_with_the_channels_as_they_are(scene):
    choices = [
        cv2.imdecode(cv2.imencode(".jpg", scene[0], [cv2.IMWRITE_JPEG_QUALITY, q])[1], -1)
        for q in (69, 70)
    ]
    drawn = {
        next(i for i, c in enumerate(choices) if np.array_equal(c, found))
        for name in "abcdefghij"
        for found in [degrade(*scene, "benco_jpeg", 70, image_id=name)[0]]
    }
    assert drawn == {0, 1}


def test_the_benco_grid_is_the_published_one():
    assert DEGRADATIONS["benco_blur"].levels == (0, 3, 7, 11, 15, 19, 23)
    assert DEGRADATIONS["benco_noise"].levels == (3, 7, 11, 15, 19, 23)
    assert set(DEGRADATIONS["benco_jpeg"].levels) == {50, 60, 70, 80, 90, 100}


@pytest.mark.parametrize(("axis", "level"), [("shift", 3), ("crop", 0.3)])
def test_cuts_take_the_same_window_of_image_and_mask(axis, level, scene):
    place = np.arange(67 * 101).reshape(67, 101)
    image = np.stack([place // 256, place % 256, place * 0], axis=2).astype(np.uint8)
    cut, mask = degrade(image, scene[1], axis, level)
    origin = cut[..., 0].astype(int) * 256 + cut[..., 1]
    np.testing.assert_array_equal(mask, scene[1].ravel()[origin])
    assert cut.shape[:2] == ((64, 98) if axis == "shift" else (47, 71))


@pytest.mark.parametrize("name", "abcdefgh")
def test_a_crop_of_half_keeps_a_corner_forgery(name):
    mask = np.zeros((60, 80), bool)
    mask[:4, :4] = True
    assert degrade(np.zeros((60, 80, 3), np.uint8), mask, "crop", 0.5, image_id=name)[1].any()


@pytest.mark.parametrize("size", [(33, 50), (17, 25), (60, 91), (134, 202)])
def test_a_resized_mask_is_forged_where_half_of_the_area_is(size, scene):
    factor = np.lcm(67, size[0]) // 67, np.lcm(101, size[1]) // 101
    fine = np.kron(scene[1].astype(np.uint8), np.ones(factor, np.uint8))
    blocks = fine.reshape(size[0], fine.shape[0] // size[0], size[1], fine.shape[1] // size[1])
    np.testing.assert_array_equal(resize_mask(scene[1], size), blocks.mean((1, 3)) >= 0.5)


def test_a_forgery_too_thin_for_the_new_size_stays():
    mask = np.zeros((40, 40), bool)
    mask[17, 5:30] = True
    resized = resize_mask(mask, (10, 10))
    assert resized.sum() == 5
    assert resized[4].sum() == resized.sum()


def test_an_empty_mask_stays_empty(scene):
    empty = np.zeros_like(scene[1])
    for axis, level in EVERY_LEVEL:
        assert not degrade(scene[0], empty, axis, level)[1].any(), axis


def test_a_mask_that_is_not_known_stays_unknown(scene):
    assert all(degrade(scene[0], None, axis, level)[1] is None for axis, level in EVERY_LEVEL)


def test_chains_fit_large_photographs_into_their_limits():
    large = np.zeros((900, 2400, 3), np.uint8)
    assert degrade(large, None, "sharing", "messenger")[0].shape == (600, 1600, 3)
    assert degrade(large, None, "sharing", "feed, messenger")[0].shape == (405, 1080, 3)


def test_double_compression_is_not_single_compression(scene):
    once, twice = degrade(*scene, "jpeg", 80)[0], degrade(*scene, "double_jpeg", 80)[0]
    assert difference(once, twice) > 0.3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"axis": "rain"}, "unknown degradation 'rain'; known are jpeg"),
        ({"axis": "sharing", "level": "fax"}, "unknown chain 'fax'; known are messenger"),
        ({"image": np.zeros((5, 5), np.uint8)}, r"uint8 \(5, 5\); give uint8"),
        ({"mask": np.zeros((5, 5), bool)}, r"the mask is \(5, 5\)"),
    ],
)
def test_what_cannot_be_applied_is_refused_with_the_remedy(change, words, scene):
    arguments = {"image": scene[0], "mask": scene[1], "axis": "jpeg", "level": 50} | change
    with pytest.raises(ValueError, match=words):
        degrade(**arguments)
