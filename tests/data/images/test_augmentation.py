from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

from loupe.data.images.augmentation import (
    AntialiasedResize,
    ForgeryInput,
    RandomColour,
    RandomRotate90,
    RandomScale,
    RandomWindow,
    Rotate90,
    build_augmentations,
    draw_blur,
    draw_jpeg,
    draw_noise,
    random_window,
)

OFF = dict.fromkeys(("flip", "rotate90", "scale", "jpeg", "blur", "noise"), 0.0)


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)


@pytest.fixture
def marked(photograph) -> ForgeryInput:
    """A photograph with a white rectangle, which is its mask."""
    mask = np.zeros(photograph.shape[:2], np.float32)
    mask[4:9, 26:36] = 1
    photograph[mask == 1] = 255
    return ForgeryInput(photograph, mask)


@pytest.mark.parametrize(
    "augmentation",
    [T.RandomFlip(prob=1.0), RandomRotate90(), RandomScale(1.5, 1.6), RandomWindow(16)],
    ids=["flip", "rotate90", "scale", "window"],
)
def test_marker_and_mask_move_together(marked, augmentation):
    for _ in range(3):
        augmentation(marked)
    np.testing.assert_array_equal(marked.mask == 1, marked.image.min(axis=2) == 255)
    assert marked.mask.max() == 1


@pytest.mark.parametrize("factor", [0.6, 1.7])
def test_marker_and_mask_move_together_when_resized(marked, factor):
    RandomScale(factor, factor, crop=False)(marked)
    assert marked.image.shape[:2] == (round(24 * factor), round(40 * factor))
    brightness = marked.image[..., 2].astype(float)
    np.testing.assert_allclose((brightness - 90) / 165, marked.mask, atol=0.02)


def test_resized_mask_is_the_soft_share_of_forged_pixels():
    mask = np.zeros((8, 8), np.float32)
    mask[:, :4] = 1
    resized = AntialiasedResize((8, 8), (4, 4)).apply_segmentation(mask)
    assert resized.mean() == pytest.approx(0.5)
    assert 0 < resized[0, 1] < 1


def test_image_is_resized_as_by_pillow(photograph):
    resized = AntialiasedResize((24, 40), (10, 12)).apply_image(photograph)
    expected = Image.fromarray(photograph).resize((12, 10), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resized, np.asarray(expected))


def test_resize_moves_coordinates():
    coordinates = AntialiasedResize((10, 20), (5, 40)).apply_coords(np.array([[4.0, 6.0]]))
    np.testing.assert_array_equal(coordinates, [[8.0, 3.0]])


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_move_coordinates_with_the_pixels(turns):
    image = np.zeros((6, 9), np.uint8)
    image[1, 7] = 1
    transform = Rotate90((6, 9), turns)
    (y,), (x,) = np.nonzero(transform.apply_image(image))
    moved = transform.apply_coords(np.array([[7.5, 1.5]]))  # the pixel's centre
    np.testing.assert_array_equal(moved, [[x + 0.5, y + 0.5]])


@pytest.mark.parametrize("draw", [draw_jpeg, draw_blur, draw_noise], ids=["jpeg", "blur", "noise"])
def test_photometric_augmentations_change_the_image_and_not_the_mask(marked, draw):
    image, mask = marked.image.copy(), marked.mask.copy()
    RandomColour(draw)(marked)
    assert marked.image.shape == image.shape
    assert marked.image.dtype == np.uint8
    assert (marked.image != image).any()
    np.testing.assert_array_equal(marked.mask, mask)


def test_jpeg_keeps_the_order_of_channels():
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    np.testing.assert_allclose(draw_jpeg()(red)[8, 8], [200, 0, 0], atol=8)


def test_noise_and_blur_have_no_bias_and_noise_the_strength_it_says():
    grey = np.full((128, 128, 3), 128, np.uint8)
    add = draw_noise()
    noisy = add(grey).astype(float) - 128
    assert 0.9 < noisy.std() < 6.2
    assert noisy.mean() == pytest.approx(0.0, abs=0.1)
    np.testing.assert_array_equal(add(grey), noisy + 128)
    np.testing.assert_array_equal(draw_blur()(grey), grey)


def test_window_keeps_a_part_of_a_small_forgery():
    mask = np.zeros((200, 300), np.float32)
    mask[3:6, 290:293] = 1
    for _ in range(20):
        window = random_window((200, 300), (32, 32), mask).apply_segmentation(mask)
        assert window.shape == (32, 32)
        assert window.sum() >= 0.25 * mask.sum()


def test_window_of_an_authentic_image_is_anywhere():
    ramp = np.arange(100, dtype=np.uint8)[None, :, None].repeat(9, 0)
    empty = np.zeros((9, 100), np.float32)
    starts = {
        int(random_window((9, 100), (9, 10), empty).apply_image(ramp)[0, 0, 0]) for _ in range(50)
    }
    assert min(starts) < 15
    assert max(starts) > 75


def test_zero_probabilities_give_no_augmentation():
    assert build_augmentations(**OFF, crop=True) == []


@pytest.mark.parametrize("name", list(OFF))
def test_each_probability_switches_its_augmentation_on(marked, name):
    (augmentation,) = build_augmentations(**(OFF | {name: 1.0}), crop=True)
    before = marked.image.copy()
    for _ in range(3):
        augmentation(marked)
    assert marked.image.shape != before.shape or (marked.image != before).any()


def test_same_numpy_seed_gives_the_same_augmentation(photograph):
    augmentations = build_augmentations(**dict.fromkeys(OFF, 0.9), crop=True)
    results = []
    for _ in range(2):
        np.random.seed(5)
        inputs = ForgeryInput(photograph)
        T.AugmentationList(augmentations)(inputs)
        results.append(inputs.image)
    np.testing.assert_array_equal(*results)
