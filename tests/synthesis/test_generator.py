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
def test_bytes_depend_on_the_seed_and_on_nothing_made_before(scenes, technique):
    made = []
    for seed in (1, 2, 1):
        cv2.setRNGSeed(len(made))
        np.random.seed(len(made))
        made.append(make_forgery(np.random.default_rng(seed), scenes, 64, (technique,), True))
    assert digest(made[0].image, made[0].mask) == digest(made[2].image, made[2].mask)
    assert digest(made[0].image) != digest(made[1].image)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_pixels_outside_the_mask_are_untouched_and_inside_changed(scenes, technique):
    for seed in range(24):
        rng = np.random.default_rng(seed)
        host = take_photograph(rng, scenes[0], 96, draw_camera(rng))
        before = host.copy()
        # A plain forgery has no soft seam that reaches beyond the mask.
        difficulty, reach = (0.0, 0) if seed % 4 == 0 else (1.0, REACH)
        image, mask = forge(rng, host, scenes, technique, difficulty)
        changed = (image != host).any(axis=2)
        assert not changed[~grow(mask, reach)].any()
        assert changed[mask].mean() >= 0.6
        assert 0 < mask.mean() <= 0.6
        np.testing.assert_array_equal(host, before)


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


# The last size is larger than every photograph.
@pytest.mark.parametrize("size", [32, 131, 224])
def test_every_size_is_met_after_rescaling(scenes, size):
    for seed in range(6):
        sample = make_forgery(np.random.default_rng(seed), scenes, size, forged=True)
        assert (sample.image.shape, sample.image.dtype) == ((size, size, 3), np.uint8)
        assert (sample.mask.shape, sample.mask.dtype) == ((size, size), bool)
        assert sample.mask.any()


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
        ({"techniques": ()}, "choose from splice"),
        ({"size": 16}, "the size is 16"),
        ({"photographs": []}, "there are no photographs"),
    ],
)
def test_wrong_arguments_are_refused(scenes, options, message):
    arguments = {"photographs": scenes, "size": 64} | options
    with pytest.raises(ValueError, match=message):
        make_forgery(np.random.default_rng(0), **arguments)


# A clone is as hard always: nothing of it is resampled.
@pytest.mark.parametrize("technique", DEFAULT_TECHNIQUES)
def test_easy_forgery_is_smoother_than_its_noisy_host(technique):
    flat = [np.full((160, 160, 3), level, np.uint8) for level in (70, 160)]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        host = take_photograph(rng, flat[0], 96, draw_camera(rng, difficulty=0.0))
        image, mask = forge(rng, host, flat, technique, difficulty=0.0)
        inside = shrink(mask, 4)
        detail = np.abs(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_32F))
        assert inside.any()
        assert detail[inside].mean() < 0.8 * detail[~mask].mean()
