"""Places that an image shows twice."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from loupe.modeling.forensic import copies
from loupe.modeling.forensic.copies import (
    CELL,
    CopyBranch,
    blur,
    likeliest_shifts,
    mean_over,
    self_similarity,
)
from tests.modeling.forensic.conftest import all_valid
from tests.pictures import as_jpeg, textured

# Where the copy lies, and where it was taken from: y, x, of 48 pixels.
COPY, ORIGINAL = (72, 104), (16, 24)
SIDE = 48
SIZE = (128, 160)


def with_copy(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    (y, x), (v, u) = COPY, ORIGINAL
    image[y : y + SIDE, x : x + SIDE] = image[v : v + SIDE, u : u + SIDE]
    return image


def as_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image)[None, None].float()


def find(image: np.ndarray) -> Tensor:
    """(h, w) of the cells: the similarity under any shift."""
    grey = as_tensor(image)
    return self_similarity(grey, all_valid(grey))[0][0].amax(dim=0)


def both_ends(shape: torch.Size) -> Tensor:
    """(h, w) bool: cells well inside copy and original."""
    inside = torch.zeros(shape, dtype=torch.bool)
    for y, x in (COPY, ORIGINAL):
        ends = [slice((start + 12) // CELL, (start + SIDE - 12) // CELL) for start in (y, x)]
        inside[ends[0], ends[1]] = True
    return inside


def test_a_copy_and_its_original_are_found_and_nothing_else_is():
    found = find(with_copy(textured(*SIZE)))
    ends = both_ends(found.shape)
    assert found[ends].min() > 0.8
    assert found[~ends].median() < 0.2
    assert find(textured(*SIZE)).max() < 0.4


@pytest.mark.parametrize("kind", ["jpeg", "shrunk"])
def test_a_copy_is_found_after_recompression_and_rescaling(kind: str):
    image = with_copy(textured(*SIZE))
    if kind == "jpeg":
        found = find(as_jpeg(image, 70))
    else:
        found = find(cv2.resize(image, (120, 96), interpolation=cv2.INTER_AREA))
        found = F.interpolate(found[None, None], (32, 40))[0, 0]
    ends = both_ends(found.shape)
    assert found[ends].mean() > found[~ends].mean() + 0.3


def test_stripes_and_edges_are_no_copies_of_themselves():
    y, x = np.mgrid[:128, :160]
    noise = np.random.default_rng(0).normal(0, 2, (128, 160))
    stripes = (128 + 60 * np.sin(2 * np.pi * (x + y) / 16) + noise).astype(np.uint8)
    edge = (np.where(y < 64, 60, 190) + noise).astype(np.uint8)
    # At the very border slopes are not what they are inside.
    assert find(stripes)[4:-4, 4:-4].max() < 0.3
    assert find(edge)[4:-4, 4:-4].max() < 0.3


def test_the_shift_of_a_copy_is_the_highest_peak():
    shifts, peaks = likeliest_shifts(as_tensor(with_copy(textured(*SIZE)))[0, 0] - 128)
    _, chance = likeliest_shifts(as_tensor(textured(*SIZE))[0, 0] - 128)
    assert shifts[0].tolist() == [COPY[0] - ORIGINAL[0], COPY[1] - ORIGINAL[1]]
    assert peaks[0] > 1.5 * chance.max()


@pytest.mark.parametrize("quality", [30, 50])
def test_the_grid_of_jpeg_is_no_copy(quality: int):
    image = as_jpeg(textured(*SIZE), quality)
    # Its edges repeat every 8 pixels, at frequencies above the passband.
    assert likeliest_shifts(as_tensor(image)[0, 0] - 128)[1].max() < 7.5


def test_the_passband_lets_its_two_edges_through_in_part():
    passed = copies._shift_tables(100, 100, torch.device("cpu"))[0]
    # A column is 1 / 200 cycle per pixel.
    assert passed[0, [6, 60]].tolist() == pytest.approx([1 - math.exp(-1), math.exp(-1)], abs=0.01)
    assert passed[0, [0, 1, 100]].max() < 0.07
    assert passed[0, 20] > 0.85


def test_a_flat_image_has_no_copies_and_no_infinities():
    flat = torch.full((1, 1, 64, 64), 7.0)
    places, image = CopyBranch(8, 16).statistics(flat, all_valid(flat))
    assert torch.isfinite(places).all()
    assert torch.isfinite(image).all()
    assert places.max() < 0.1


@pytest.mark.parametrize("canvas", [(128, 160), (160, 224), (512, 512)])
def test_padding_is_no_part_of_the_image(canvas: tuple[int, int]):
    # Of no whole number of patches, nor of cells.
    image = as_tensor(with_copy(textured(*SIZE))[:126, :157])
    exact = image[..., :124, :156]
    found, texture, peaks = self_similarity(exact, all_valid(exact))
    padding = (0, canvas[1] - 157, 0, canvas[0] - 126)
    padded = self_similarity(F.pad(image, padding), F.pad(all_valid(image), padding))
    torch.testing.assert_close(padded[2], peaks)
    for alone, with_padding in zip((found, texture), padded, strict=False):
        torch.testing.assert_close(with_padding[..., :31, :39], alone)
        assert not with_padding[..., 31:, :].any()
        assert not with_padding[..., 39:].any()


def test_an_image_is_judged_alone_whatever_its_batch():
    images = torch.cat([as_tensor(with_copy(textured(*SIZE))), as_tensor(textured(*SIZE))])
    valid = all_valid(images)
    valid[1, 96:] = False
    together = self_similarity(images, valid)
    for index in range(2):
        alone = self_similarity(*(part[index : index + 1] for part in (images, valid)))
        for one, all_ in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_[index])


@pytest.mark.parametrize("size", [(4, 8), (16, 16), (24, 96), (32, 32), (32, 64)])
def test_an_image_too_small_to_repeat_itself_does_not(size: tuple[int, int]):
    image = as_tensor(textured(*SIZE)[: size[0], : size[1]])
    found, _, peaks = self_similarity(image, all_valid(image))
    assert peaks.min() >= 0
    assert min(size) >= 32 or not found.any()


def test_what_is_no_peak_is_no_shift(monkeypatch: pytest.MonkeyPatch):
    # More than an image of that size has; what fills up may be no shift at all.
    monkeypatch.setattr(copies, "NUM_SHIFTS", 200)
    image = as_tensor(textured(*SIZE)[:48, :48])
    found, _, peaks = self_similarity(image, all_valid(image))
    assert (peaks == 0).any()
    assert not found[peaks == 0].any()


def test_the_mean_of_neighbours_leaves_out_what_lies_beyond_the_image():
    image = torch.rand(1, 2, 14, 11)
    expected = F.avg_pool2d(image, 9, 1, 4, count_include_pad=False)
    torch.testing.assert_close(mean_over(image, 9), expected)


def test_a_blur_is_a_convolution_with_a_gaussian():
    image = torch.rand(1, 1, 20, 30)
    kernel = (-torch.arange(-2.0, 3.0).square() / (2 * 0.7**2)).exp()
    kernel = torch.outer(kernel, kernel) / kernel.sum().square()
    padded = F.pad(image, (2, 2, 2, 2), mode="replicate")
    torch.testing.assert_close(blur(image, 0.7), F.conv2d(padded, kernel[None, None]))
