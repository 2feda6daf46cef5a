from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from loupe.data.camera import draw_camera, take_photograph
from loupe.data.photographs import PHOTOGRAPHS, SPLITS, load_photographs, make_scene
from loupe.data.synthetic import (
    AUTHENTIC,
    TECHNIQUES,
    draw_region,
    forge,
    make_forgery,
    post_process,
)
from loupe.data.synthetic_stream import make_sample, render


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    return [make_scene(np.random.default_rng(seed), 160, shapes=80) for seed in range(3)]


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


@pytest.mark.parametrize("technique", [*TECHNIQUES, AUTHENTIC])
def test_same_seed_gives_the_same_bytes(scenes, technique):
    first, second, other = (
        make_forgery(np.random.default_rng(seed), scenes, 64, (technique,), forged=True)
        for seed in (1, 1, 2)
    )
    assert digest(first.image, first.mask) == digest(second.image, second.mask)
    assert digest(first.image) != digest(other.image)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("seed", range(12))
def test_pixels_outside_the_mask_are_untouched_and_inside_changed(scenes, technique, seed):
    rng = np.random.default_rng(seed)
    host = take_photograph(rng, scenes, 96, draw_camera(rng))
    image, mask = forge(rng, host, scenes, technique)
    changed = (image != host).any(axis=2)
    assert not changed[~mask].any()
    assert changed[mask].mean() >= 0.6
    assert 0 < mask.mean() < 0.6


def test_flat_host_is_forged_all_the_same():
    rng = np.random.default_rng(0)
    host = np.zeros((64, 64, 3), np.uint8)
    image, mask = forge(rng, host, [host], "copy-move")
    changed = (image != host).any(axis=2)
    assert changed[mask].mean() > 0.6
    assert not changed[~mask].any()


def test_authentic_image_has_an_empty_mask(scenes):
    sample = make_forgery(np.random.default_rng(0), scenes, 64, forged=False)
    assert (sample.label, sample.technique, sample.mask.any()) == (0, AUTHENTIC, False)


@pytest.mark.parametrize("size", [32, 64, 130])
@pytest.mark.parametrize("seed", range(8))
def test_every_size_is_met_after_rescaling(scenes, size, seed):
    sample = make_forgery(np.random.default_rng(seed), scenes, size, forged=True)
    assert sample.image.shape == (size, size, 3)
    assert sample.image.dtype == np.uint8
    assert sample.mask.shape == (size, size)
    assert sample.mask.dtype == bool
    assert sample.mask.any()


def test_mask_follows_the_rescaling_of_the_image():
    image = np.zeros((80, 80, 3), np.uint8)
    mask = np.zeros((80, 80), bool)
    mask[16:40, 48:72] = True
    image[mask] = 255
    resized, moved = post_process(np.random.default_rng(3), image, mask, 60)
    difference = (cv2.cvtColor(resized, cv2.COLOR_RGB2GRAY) > 127) != moved
    assert difference.mean() < 0.02


def test_a_coin_decides_between_forged_and_authentic(scenes):
    rng = np.random.default_rng(0)
    labels = [make_forgery(rng, scenes, 32).label for _ in range(100)]
    assert 30 < sum(labels) < 70


def test_post_processing_tells_nothing_of_the_label(scenes):
    """Forged and authentic images are as noisy and as compressible outside of the forgeries."""
    rng = np.random.default_rng(0)
    sharpness = {0: [], 1: []}
    for index in range(240):
        sample = make_forgery(rng, scenes, 64, forged=bool(index % 2))
        outside = ~cv2.dilate(sample.mask.astype(np.uint8), np.ones((9, 9))).astype(bool)
        detail = cv2.Laplacian(cv2.cvtColor(sample.image, cv2.COLOR_RGB2GRAY), cv2.CV_32F)
        sharpness[sample.label].append(np.log1p(np.abs(detail[outside]).mean()))
    authentic, forged = (np.array(sharpness[label]) for label in (0, 1))
    error = np.sqrt(authentic.var() / len(authentic) + forged.var() / len(forged))
    assert abs(authentic.mean() - forged.mean()) < 3 * error


@pytest.mark.parametrize("seed", range(10))
def test_region_is_neither_empty_nor_everything(seed):
    region = draw_region(np.random.default_rng(seed), 64)
    assert 0.003 < region.mean() < 0.6


def test_donor_and_host_come_from_different_cameras():
    rng = np.random.default_rng(0)
    assert len({draw_camera(rng) for _ in range(20)}) == 20


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


def test_splits_share_no_photograph():
    names = [entry for split in SPLITS for entry in PHOTOGRAPHS[split]]
    assert len(names) == len(set(names)) == 18
    motorcycles = [s for s in SPLITS for _, name in PHOTOGRAPHS[s] if name.startswith("motor")]
    assert motorcycles == ["train", "train"]


@pytest.mark.parametrize("split", SPLITS)
def test_photographs_ship_with_the_dependencies(split):
    for photograph in load_photographs(split):
        assert photograph.ndim == 3
        assert photograph.shape[2] == 3
        assert min(photograph.shape[:2]) >= 300
        assert not photograph.flags.writeable


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="the split is 'dev'"):
        load_photographs("dev")


def test_stream_gives_an_image_by_its_name_alone():
    name = "synthetic://test?size=48&seed=3&index=7"
    image, mask = render(name)
    again, _ = render(name)
    np.testing.assert_array_equal(image, again)
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {0.0, 1.0}


def test_streams_of_splits_and_seeds_differ():
    images = [make_sample(*key, 48).image for key in (("test", 0, 1), ("test", 1, 1))]
    images.append(make_sample("valid", 0, 1, 48).image)
    assert len({digest(image) for image in images}) == 3


def test_stream_takes_the_techniques_in_turn():
    samples = [make_sample("test", 0, index, 48) for index in range(8)]
    assert [sample.label for sample in samples] == [0, 1] * 4
    assert [sample.technique for sample in samples[1::2]] == list(TECHNIQUES)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("seed", range(4))
def test_easy_forgery_is_smoother_than_its_noisy_host(scenes, technique, seed):
    rng = np.random.default_rng(seed)
    flat = [np.full((160, 160, 3), level, np.uint8) for level in (70, 160)]
    host = take_photograph(rng, flat, 96, draw_camera(rng, difficulty=0.0))
    image, mask = forge(rng, host, flat, technique, difficulty=0.0)
    inside = cv2.erode(mask.astype(np.uint8), np.ones((9, 9))).astype(bool)
    detail = np.abs(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_32F))
    assert inside.any()
    assert detail[inside].mean() < 0.8 * detail[~mask].mean()


def test_difficulty_is_a_part_of_the_streams_name():
    easy, hard = (render(f"synthetic://test?size=48&index=1&difficulty={d}")[0] for d in (0, 100))
    assert digest(easy) != digest(hard)
