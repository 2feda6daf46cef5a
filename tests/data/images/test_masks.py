"""Masks: what counts as forged, and how a mask meets its image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from loupe.data.images.errors import MaskSizeError, UnreadableImageError
from loupe.data.images.masks import read_image_and_mask, read_mask, read_stored_pair
from loupe.data.images.orientation import turn
from tests.data.images.files import encoded, exif, noise


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_mask_of_zero_and_one_counts_as_such(tmp_path, dtype):
    Image.fromarray(np.array([[0, 1]], dtype)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), [[0.0, 1.0]])


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_mask_is_scaled_by_the_range_of_its_type(tmp_path, dtype, top):
    Image.fromarray(np.array([[0, top // 5, top]], dtype)).save(tmp_path / "mask.png")
    np.testing.assert_allclose(read_mask(tmp_path / "mask.png"), [[0, 0.2, 1]], atol=1e-6)


def test_soft_mask_is_not_stretched(tmp_path):
    Image.fromarray(np.array([[0, 51]], np.uint8)).save(tmp_path / "mask.png")
    np.testing.assert_allclose(read_mask(tmp_path / "mask.png"), [[0.0, 0.2]], atol=1e-6)


def test_float_mask_is_taken_as_it_is(tmp_path):
    Image.fromarray(np.array([[0, 0.25, 1]], np.float32)).save(tmp_path / "mask.tif")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), [[0, 0.25, 1]])


def test_red_region_of_a_colour_mask_counts_fully(tmp_path):
    Image.fromarray(np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), [[1.0, 0.0]])


def test_palette_mask_is_read_by_colour_not_by_index(tmp_path):
    mask = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    mask.putpalette([255, 255, 255, 0, 0, 0])
    mask.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), [[1.0, 0.0]])


def test_bilevel_mask_is_read(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), [[1.0, 0.0]])


def test_transparent_part_of_a_mask_is_authentic(tmp_path):
    pixels = np.array([[[255, 255, 255, 255], [255, 255, 255, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), [[1.0, 0.0]])


@pytest.mark.parametrize("mode", ["strict", "skip"])
def test_mask_of_another_size_is_refused_with_both_sizes(tmp_path, save, mode):
    image = save(tmp_path / "image.png", np.zeros((4, 6, 3), np.uint8))
    mask = save(tmp_path / "mask.png", np.zeros((2, 3), np.uint8))
    with pytest.raises(MaskSizeError, match="3 x 2 pixels, its image .* is 6 x 4"):
        read_image_and_mask(image, mask, mode)


def test_mask_of_another_size_is_resized_to_the_nearest(tmp_path, save):
    image = save(tmp_path / "image.png", np.zeros((2, 4, 3), np.uint8))
    mask = save(tmp_path / "mask.png", np.array([[0, 255]], np.uint8))
    _, resized = read_image_and_mask(image, mask, "resize")
    np.testing.assert_array_equal(resized, [[0, 0, 1, 1], [0, 0, 1, 1]])


def test_inverted_mask_is_turned_over(tmp_path, save):
    image = save(tmp_path / "image.png", np.zeros((1, 2, 3), np.uint8))
    mask = save(tmp_path / "mask.png", np.array([[0, 255]], np.uint8))
    _, read = read_image_and_mask(image, mask, mask_rule="inverted")
    np.testing.assert_array_equal(read, [[1.0, 0.0]])


@pytest.mark.parametrize("rule", ["", "green", "inverted"])
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_grey_mask_has_two_sides_whatever_its_file(tmp_path, rule, ending):
    path = tmp_path / f"grey.{ending}"
    Image.fromarray(np.full((8, 12), 255, np.uint8)).save(path)
    mask = read_mask(path, rule)
    assert mask.shape == (8, 12)
    assert (mask == (rule != "inverted")).all()


def test_a_mask_of_wide_integers_is_refused_unless_it_is_of_0_and_1(tmp_path):
    path = tmp_path / "mask.tif"
    Image.fromarray(np.array([[0, 1]], np.int32)).save(path)
    np.testing.assert_array_equal(read_mask(path), [[0.0, 1.0]])
    Image.fromarray(np.array([[0, 255]], np.int32)).save(path)
    with pytest.raises(UnreadableImageError, match=r"32-bit integers.*store it with 8 bits"):
        read_mask(path)


@pytest.mark.parametrize("drawn_on", ["upright", "stored"])
def test_a_mask_meets_its_photograph_in_both_frames_whatever_it_was_drawn_on(tmp_path, drawn_on):
    stored, mask = noise(24, 40), np.zeros((24, 40), np.uint8)
    stored[2:5, 3:9] = mask[2:5, 3:9] = 255
    for orientation in range(5 if drawn_on == "stored" else 1, 9):
        drawn = mask if drawn_on == "stored" else turn(mask, orientation)
        (tmp_path / "m.png").write_bytes(encoded(drawn, "PNG"))
        (tmp_path / "i.png").write_bytes(encoded(stored, "PNG", exif=exif(orientation)))
        files = tmp_path / "i.png", tmp_path / "m.png"
        pair = read_stored_pair(*files, "strict")
        np.testing.assert_array_equal(pair.picture.pixels, stored)
        np.testing.assert_array_equal(pair.mask * 255, mask)
        image, upright = read_image_and_mask(*files, "strict")
        np.testing.assert_array_equal(image, turn(stored, orientation))
        np.testing.assert_array_equal(upright, turn(pair.mask, orientation))


def test_the_mask_of_a_reduced_image_keeps_its_size(tmp_path):
    mask = np.zeros((90, 130), np.uint8)
    mask[:20] = 255
    (tmp_path / "i.jpg").write_bytes(encoded(noise(), "JPEG", exif=exif(6)))
    (tmp_path / "m.png").write_bytes(encoded(mask, "PNG"))
    pair = read_stored_pair(tmp_path / "i.jpg", tmp_path / "m.png", "strict", at_least=20)
    assert pair.picture.pixels.shape == (23, 33, 3)
    np.testing.assert_array_equal(pair.mask * 255, mask)
