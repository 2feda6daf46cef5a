"""Decoding at a reduced scale changes the network's input a little, and nothing else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from loupe.data.sources.entries import make_dataset_dict
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper
from tests.data.images.files import encoded, noise


@pytest.fixture
def large_entry(tmp_path):
    """A forged JPEG of 260 x 180 pixels."""
    path = tmp_path / "i.jpg"
    path.write_bytes(encoded(cv2.resize(noise(), (260, 180)), "JPEG", quality=95))
    mask = np.zeros((180, 260), np.uint8)
    mask[40:100, 30:150] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    return make_dataset_dict(path, "i", label=1, mask_file_name=tmp_path / "m.png")


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_reduced_decoding_changes_pixels_a_little_and_nothing_else(large_entry, cfg, resize):
    cfg.INPUT.RESIZE = resize
    cfg.INPUT.SIZE = 40
    for is_train in (True, False):
        cfg.INPUT.REDUCED_DECODING = False
        whole = ForgeryDatasetMapper(cfg, is_train=is_train)(large_entry)
        cfg.INPUT.REDUCED_DECODING = True
        reduced = ForgeryDatasetMapper(cfg, is_train=is_train)(large_entry)
        assert whole.keys() == reduced.keys()
        difference = (whole.pop("image").float() - reduced.pop("image").float()).abs()
        assert 0 < difference.mean() < 1
        if is_train:
            # In training it is a window of the augmented image, at whatever scale.
            assert whole.pop("window")[:2] == reduced.pop("window")[:2] == (0, 0)
            assert (whole.pop("mask") - reduced.pop("mask")).abs().max() < 0.3
            assert (whole.pop("regions") != reduced.pop("regions")).float().mean() < 0.02
        else:
            truths = [item.pop("ground_truth") for item in (whole, reduced)]
            np.testing.assert_array_equal(truths[0].mask, truths[1].mask)
        assert whole == reduced


@pytest.mark.parametrize(("resize", "size"), [("crop", 20), ("squash", 50)])
def test_reduced_decoding_leaves_windows_and_smaller_images_alone(large_entry, cfg, resize, size):
    cfg.INPUT.RESIZE, cfg.INPUT.SIZE = resize, size
    cfg.INPUT.REDUCED_DECODING = False
    whole = ForgeryDatasetMapper(cfg, is_train=False)(large_entry)
    cfg.INPUT.REDUCED_DECODING = True
    reduced = ForgeryDatasetMapper(cfg, is_train=False)(large_entry)
    assert (whole["image"] == reduced["image"]).all()


@pytest.mark.parametrize("label", [0, 1, None])
def test_reduced_images_without_masks_have_their_own_size(large_entry, cfg, label):
    cfg.INPUT.SIZE, cfg.INPUT.REDUCED_DECODING = 40, True
    entry = large_entry | {"label": label, "mask_file_name": None, "wholly_forged": label == 1}
    item = ForgeryDatasetMapper(cfg, is_train=False)(entry)
    assert (item["height"], item["width"]) == (180, 260)
    assert item["window"] == (0, 0, 260, 180)
    if label:
        assert item["ground_truth"].mask.shape == (180, 260)
    if label is not None:
        training = ForgeryDatasetMapper(cfg, is_train=True)(entry)
        assert training["mask"].mean() == label


def test_a_forgery_thinner_than_a_reduced_pixel_is_kept(tmp_path, cfg):
    image = np.full((400, 400, 3), 90, np.uint8)
    mask = np.zeros((400, 400), np.uint8)
    mask[201, 100:300] = 255
    Image.fromarray(image).save(tmp_path / "i.jpg")
    Image.fromarray(mask).save(tmp_path / "m.png")
    entry = make_dataset_dict(tmp_path / "i.jpg", "i", label=1, mask_file_name=tmp_path / "m.png")
    cfg.INPUT.SIZE, cfg.INPUT.REDUCED_DECODING = 40, True
    item = ForgeryDatasetMapper(cfg, is_train=True)(entry)
    assert item["mask"].max() >= 0.5
    assert item["regions"].max() == 1
