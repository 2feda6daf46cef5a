"""Whole forgeries: exact masks, equal histories, difficulty, refusals."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from loupe.data.sources.photographs import make_scene
from loupe.synthesis import AUTHENTIC, DEFAULT_TECHNIQUES, TECHNIQUES, forge, make_forgery
from loupe.synthesis.camera import draw_camera, take_photograph
from loupe.synthesis.seams import REACH


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    return [make_scene(np.random.default_rng(seed), 160, shapes=80) for seed in range(3)]


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def grow(mask: np.ndarray, reach: int) -> np.ndarray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)


def shrink(mask: np.ndarray, reach: int) -> np.ndarray:
    return ~grow(~mask, reach)


@pytest.mark.parametrize("technique", [*TECHNIQUES, AUTHENTIC])
def test_same_seed_gives_the_same_bytes(scenes, technique):
    first, second, other = (
        make_forgery(np.random.default_rng(seed), scenes, 64, (technique,), forged=True)
        for seed in (1, 1, 2)
    )
    assert digest(first.image, first.mask) == digest(second.image, second.mask)
    assert digest(first.image) != digest(other.image)


def test_a_forgery_depends_on_no_other_made_before(scenes):
    fresh = make_forgery(np.random.default_rng(5), scenes, 64, forged=True)
    for seed in range(4):
        make_forgery(np.random.default_rng(seed), scenes, 64, forged=True)
        cv2.setRNGSeed(seed)
        np.random.seed(seed)
    again = make_forgery(np.random.default_rng(5), scenes, 64, forged=True)
    assert digest(fresh.image, fresh.mask) == digest(again.image, again.mask)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("seed", range(24))
def test_pixels_outside_the_mask_are_untouched_and_inside_changed(scenes, technique, seed):
    rng = np.random.default_rng(seed)
    host = take_photograph(rng, scenes[0], 96, draw_camera(rng))
    before = host.copy()
    image, mask = forge(rng, host, scenes, technique)
    changed = (image != host).any(axis=2)
    assert not changed[~grow(mask, REACH)].any()
    assert changed[mask].mean() >= 0.6
    assert 0 < mask.mean() <= 0.6
    np.testing.assert_array_equal(host, before)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_plain_forgeries_change_nothing_outside_the_mask_at_all(scenes, technique):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        host = take_photograph(rng, scenes[0], 64, draw_camera(rng))
        image, mask = forge(rng, host, scenes, technique, difficulty=0.0)
        assert not (image != host)[~mask].any()


def test_flat_host_is_forged_all_the_same():
    rng = np.random.default_rng(0)
    host = np.zeros((64, 64, 3), np.uint8)
    image, mask = forge(rng, host, [host], "copy-move")
    changed = (image != host).any(axis=2)
    assert changed[mask].mean() > 0.6
    assert not changed[~grow(mask, REACH)].any()


def test_authentic_image_has_an_empty_mask(scenes):
    sample = make_forgery(np.random.default_rng(0), scenes, 64, forged=False)
    assert (sample.label, sample.technique, sample.mask.any()) == (0, AUTHENTIC, False)


@pytest.mark.parametrize("size", [32, 64, 131])
@pytest.mark.parametrize("seed", range(10))
def test_every_size_is_met_after_rescaling(scenes, size, seed):
    sample = make_forgery(np.random.default_rng(seed), scenes, size, forged=True)
    assert sample.image.shape == (size, size, 3)
    assert sample.image.dtype == np.uint8
    assert sample.mask.shape == (size, size)
    assert sample.mask.dtype == bool
    assert sample.mask.any()


def test_images_larger_than_every_photograph_can_be_asked_for(scenes):
    sample = make_forgery(np.random.default_rng(1), scenes, 224, forged=True)
    assert sample.image.shape == (224, 224, 3)


def test_some_images_have_several_forged_regions(scenes):
    rng = np.random.default_rng(0)
    masks = [make_forgery(rng, scenes, 64, ("splice",), forged=True).mask for _ in range(60)]
    parts = [cv2.connectedComponents(mask.astype(np.uint8))[0] - 1 for mask in masks]
    assert 3 <= sum(count > 1 for count in parts) <= 30


def test_a_coin_decides_between_forged_and_authentic(scenes):
    rng = np.random.default_rng(0)
    labels = [make_forgery(rng, scenes, 32).label for _ in range(100)]
    assert 30 < sum(labels) < 70


def statistics(image: np.ndarray, outside: np.ndarray) -> list[float]:
    """Traces of history: level, contrast, detail of grey and colour, steps on the grid of JPEG."""
    luma, *chroma = np.moveaxis(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb), 2, 0)
    details = [
        np.log1p(np.abs(cv2.Laplacian(plane, cv2.CV_32F))[outside].mean())
        for plane in (luma, *chroma)
    ]
    steps = np.abs(np.diff(luma.astype(np.float32), axis=1))
    both = outside[:, 1:] & outside[:, :-1]
    on_grid = np.arange(1, image.shape[1]) % 8 == 0
    blocks = (
        steps[:, on_grid][both[:, on_grid]].mean() - steps[:, ~on_grid][both[:, ~on_grid]].mean()
    )
    used = len(np.unique(luma[outside])) / 256
    return [luma[outside].mean(), luma[outside].std(), *details, blocks, used]


def test_histories_tell_nothing_of_the_label(scenes):
    """Authentic images and the untouched outside of forged ones agree in their statistics.

    Both are looked at through the same forged masks, so that centre and frame weigh alike.
    """
    rng = np.random.default_rng(0)
    found = {0: [], 1: []}
    for _ in range(250):
        forged = make_forgery(rng, scenes, 64, forged=True)
        authentic = make_forgery(rng, scenes, 64, forged=False)
        outside = ~grow(forged.mask, 8)
        if outside.mean() > 0.2:
            for sample in (forged, authentic):
                found[sample.label].append(statistics(sample.image, outside))
    authentic, forged = (np.array(found[label]) for label in (0, 1))
    error = np.sqrt(authentic.var(axis=0) / len(authentic) + forged.var(axis=0) / len(forged))
    assert len(forged) > 200
    assert (np.abs(authentic.mean(axis=0) - forged.mean(axis=0)) < 3.3 * error).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"techniques": ("magic",)}, "magic"),
        ({"techniques": ()}, "some of splice"),
        ({"size": 16}, "size 16"),
        ({"photographs": []}, "0 photographs"),
    ],
)
def test_wrong_arguments_are_refused(scenes, options, message):
    arguments = {"photographs": scenes, "size": 64} | options
    with pytest.raises(ValueError, match=message):
        make_forgery(np.random.default_rng(0), **arguments)


# A clone is as hard always: nothing of it is resampled.
@pytest.mark.parametrize("technique", DEFAULT_TECHNIQUES)
@pytest.mark.parametrize("seed", range(4))
def test_easy_forgery_is_smoother_than_its_noisy_host(technique, seed):
    rng = np.random.default_rng(seed)
    flat = [np.full((160, 160, 3), level, np.uint8) for level in (70, 160)]
    host = take_photograph(rng, flat[0], 96, draw_camera(rng, difficulty=0.0))
    image, mask = forge(rng, host, flat, technique, difficulty=0.0)
    inside = shrink(mask, 4)
    detail = np.abs(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_32F))
    assert inside.any()
    assert detail[inside].mean() < 0.8 * detail[~mask].mean()
