from __future__ import annotations

import numpy as np
import pytest
import torch

from loupe.data.images.errors import UnreadableImageError
from loupe.data.sources.entries import make_dataset_dict
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper, label_regions


@pytest.fixture
def entry(tmp_path, photograph, save):
    """A forged 40 x 24 image; the white rectangle is its mask."""
    mask = np.zeros(photograph.shape[:2], np.uint8)
    mask[4:12, 20:30] = 255
    photograph[mask == 255] = 255
    return make_dataset_dict(
        save(tmp_path / "image.png", photograph),
        "the-id",
        label=1,
        mask_file_name=save(tmp_path / "mask.png", mask),
        technique="splice",
        source="somewhere",
    )


def masked_entry(tmp_path, save, mask: np.ndarray, **changes) -> dict:
    image = np.full((*mask.shape, 3), 90, np.uint8)
    entry = make_dataset_dict(
        save(tmp_path / "i.png", image),
        "i",
        label=1,
        mask_file_name=save(tmp_path / "m.png", mask),
    )
    return entry | changes


def test_training_item_has_the_contracts_keys_and_types(entry, cfg):
    item = ForgeryDatasetMapper(cfg, is_train=True)(entry)
    assert set(item) == {
        *("file_name", "image_id", "height", "width", "image", "valid_size", "window"),
        *("mask", "regions", "label", "mask_known", "orientation"),
    }
    assert (item["image_id"], item["height"], item["width"]) == ("the-id", 24, 40)
    assert (item["label"], item["mask_known"]) == (1, True)
    assert (item["image"].dtype, item["image"].shape) == (torch.uint8, (3, 32, 32))
    assert (item["mask"].dtype, item["mask"].shape) == (torch.float32, (32, 32))
    assert (item["regions"].dtype, item["regions"].shape) == (torch.uint8, (32, 32))


def test_evaluation_item_has_the_truth_at_the_images_own_size_and_no_target(entry, cfg):
    item = ForgeryDatasetMapper(cfg, is_train=False)(entry)
    assert not {"mask", "regions", "label"} & set(item)
    truth = item["ground_truth"]
    assert truth.mask.shape == (24, 40)
    assert truth.mask.dtype == bool
    assert truth.mask.sum() == 80
    assert (truth.label, truth.technique, truth.source) == (1, "splice", "somewhere")


def test_pad_keeps_the_aspect_ratio_and_pads_right_and_bottom_with_zeros(entry):
    item = ForgeryDatasetMapper(True, size=32, resize="pad")(entry)
    assert item["valid_size"] == (19, 32)
    assert item["window"] == (0.0, 0.0, 40.0, 24.0)
    assert item["image"][:, 19:].max() == 0
    assert item["mask"][19:].max() == 0
    assert item["image"][:, :19].min() > 0


def test_crop_takes_the_central_window_in_evaluation(entry, photograph):
    item = ForgeryDatasetMapper(False, size=20, resize="crop")(entry)
    assert item["window"] == (10.0, 2.0, 30.0, 22.0)
    np.testing.assert_array_equal(item["image"].permute(1, 2, 0), photograph[2:22, 10:30])


def test_crop_pads_a_smaller_image(entry, photograph):
    item = ForgeryDatasetMapper(False, size=64, resize="crop")(entry)
    assert item["valid_size"] == (24, 40)
    np.testing.assert_array_equal(item["image"][:, :24, :40].permute(1, 2, 0), photograph)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (7, 3)])
@pytest.mark.parametrize("resize", ["squash", "pad", "crop"])
def test_tiny_images_are_mapped(tmp_path, save, shape, resize):
    entry = masked_entry(tmp_path, save, np.full(shape, 255, np.uint8))
    item = ForgeryDatasetMapper(True, size=16, resize=resize)(entry)
    assert item["regions"].max() == 1


def test_soft_mask_stays_soft_and_is_thresholded_at_half_for_regions(tmp_path, save):
    mask = np.full((16, 16), 60, np.uint8)
    mask[:8] = 200
    item = ForgeryDatasetMapper(True, size=16)(masked_entry(tmp_path, save, mask))
    np.testing.assert_allclose(item["mask"][0], 200 / 255, atol=1e-6)
    np.testing.assert_allclose(item["mask"][-1], 60 / 255, atol=1e-6)
    np.testing.assert_array_equal(item["regions"], item["mask"] >= 0.5)


def test_one_forged_pixel_of_a_large_image_does_not_vanish(tmp_path, save):
    mask = np.zeros((500, 500), np.uint8)
    mask[250, 130] = 255
    item = ForgeryDatasetMapper(True, size=16)(masked_entry(tmp_path, save, mask))
    assert item["regions"].sum() >= 1
    assert item["regions"][8, 4] == 1


def test_wholly_forged_image_needs_no_mask_file(tmp_path, save):
    entry = masked_entry(
        tmp_path, save, np.zeros((4, 4), np.uint8), mask_file_name=None, wholly_forged=True
    )
    assert ForgeryDatasetMapper(True, size=16)(entry)["mask"].min() == 1
    assert ForgeryDatasetMapper(False, size=16)(entry)["ground_truth"].mask.all()


def test_forged_image_with_an_empty_mask_keeps_its_label(tmp_path, save):
    item = ForgeryDatasetMapper(True, size=16)(
        masked_entry(tmp_path, save, np.zeros((20, 30), np.uint8))
    )
    assert (item["label"], item["mask_known"], int(item["regions"].max())) == (1, True, 0)


def test_forged_image_without_a_mask_says_that_it_is_unknown(tmp_path, save):
    entry = masked_entry(tmp_path, save, np.zeros((4, 4), np.uint8), mask_file_name=None)
    item = ForgeryDatasetMapper(True, size=16)(entry)
    assert (item["label"], item["mask_known"]) == (1, False)
    assert ForgeryDatasetMapper(False, size=16)(entry)["ground_truth"].mask is None


def test_authentic_image_has_an_empty_known_mask(entry):
    item = ForgeryDatasetMapper(True, size=16)(entry | {"label": 0, "mask_file_name": None})
    assert (item["label"], item["mask_known"], float(item["mask"].max())) == (0, True, 0.0)


def test_unlabelled_image_has_no_truth(entry):
    unlabelled = entry | {"label": None, "mask_file_name": None}
    item = ForgeryDatasetMapper(False, size=16)(unlabelled)
    assert "ground_truth" not in item


def test_regions_are_numbered_by_size():
    mask = np.zeros((10, 10), np.float32)
    mask[0, 0] = 1
    mask[2:5, 2:5] = 1
    mask[7:9, 7:9] = 1
    numbers = label_regions(mask, split=True, max_regions=20)
    assert (numbers[3, 3], numbers[8, 8], numbers[0, 0], numbers[9, 0]) == (1, 2, 3, 0)


def test_regions_that_touch_at_a_corner_are_one():
    numbers = label_regions(np.eye(4, dtype=np.float32), split=True, max_regions=20)
    assert numbers.max() == 1


def test_regions_beyond_the_limit_join_the_last():
    mask = np.zeros((1, 9), np.float32)
    mask[0, ::2] = 1
    numbers = label_regions(mask, split=True, max_regions=3)
    np.testing.assert_array_equal(numbers[0, ::2], [1, 2, 3, 3, 3])


def test_union_has_one_region():
    mask = np.zeros((1, 9), np.float32)
    mask[0, ::2] = 1
    assert label_regions(mask, split=False, max_regions=20).max() == 1


def test_evaluation_is_the_same_every_time(entry, cfg):
    for name in cfg.INPUT.AUGMENTATION:
        cfg.INPUT.AUGMENTATION[name] = 1.0
    mapper = ForgeryDatasetMapper(cfg, is_train=False)
    first, second = mapper(entry), mapper(entry)
    torch.testing.assert_close(first["image"], second["image"], rtol=0, atol=0)


@pytest.mark.parametrize("resize", ["squash", "pad", "crop", "native"])
def test_augmented_mask_still_fits_the_marker(entry, cfg, resize):
    cfg.INPUT.RESIZE = resize
    for name in ("FLIP", "ROTATE90", "SCALE"):
        cfg.INPUT.AUGMENTATION[name] = 0.7
    mapper = ForgeryDatasetMapper(cfg, is_train=True)
    np.random.seed(0)
    for _ in range(20):
        item = mapper(entry)
        height, width = item["valid_size"]
        marker = (item["image"][2, :height, :width].float() - 90) / 165
        torch.testing.assert_close(marker, item["mask"][:height, :width], atol=0.03, rtol=0.0)
        assert item["regions"].max() == 1


@pytest.mark.parametrize(("size", "shape"), [(64, (24, 40)), (20, (12, 20))])
def test_native_images_keep_their_scale_unless_they_are_too_large(entry, size, shape):
    for is_train in (True, False):
        item = ForgeryDatasetMapper(is_train, size=size, resize="native")(entry)
        assert item["image"].shape == (3, *shape)
        assert item["valid_size"] == shape
        assert item["window"] == (0.0, 0.0, 40.0, 24.0)
    assert ForgeryDatasetMapper(True, size=size, resize="native")(entry)["mask"].shape == shape


def test_unreadable_image_is_an_error_item_in_evaluation(entry, tmp_path):
    (tmp_path / "image.png").write_bytes(b"")
    item = ForgeryDatasetMapper(False, size=16)(entry)
    assert set(item) == {"file_name", "image_id", "error", "ground_truth"}
    assert "the file is empty" in item["error"]
    assert (item["ground_truth"].label, item["ground_truth"].mask) == (1, None)


def test_strict_mask_size_is_no_skip(tmp_path, save, entry):
    save(tmp_path / "mask.png", np.zeros((3, 3), np.uint8))
    mapper = ForgeryDatasetMapper(True, size=16, mask_size_mismatch="strict")
    with pytest.raises(ValueError, match="3 x 3 pixels") as error:
        mapper(entry)
    assert not isinstance(error.value, UnreadableImageError)


def test_skipped_mask_size_counts_as_unreadable(tmp_path, save, entry):
    save(tmp_path / "mask.png", np.zeros((3, 3), np.uint8))
    mapper = ForgeryDatasetMapper(True, size=16, mask_size_mismatch="skip")
    with pytest.raises(UnreadableImageError):
        mapper(entry)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "resize",
            "stretch",
            "INPUT.RESIZE is 'stretch'; it must be one of squash, pad, crop",
        ),
        ("targets", "boxes", "INPUT.TARGETS"),
        ("mask_size_mismatch", "ignore", "INPUT.MASK_SIZE_MISMATCH"),
        ("size", 0, "INPUT.SIZE is 0"),
        ("max_regions", 256, "INPUT.MAX_REGIONS is 256"),
    ],
)
def test_wrong_option_is_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        ForgeryDatasetMapper(True, **({"size": 16} | {option: value}))


def test_synthetic_image_takes_the_same_way():
    name = "synthetic://train?size=64&seed=0&index=1"
    entry = make_dataset_dict(name, "1", label=1)
    item = ForgeryDatasetMapper(True, size=32)(entry)
    assert item["mask_known"] is True
    assert item["regions"].max() == 1
