"""The steps of earlier JPEGs, and the blocks that do not share them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from loupe.modeling.forensic.quantisation import STEPS, Excess, QuantisationBranch
from tests.modeling.forensic.conftest import all_valid, normalised, soft
from tests.pictures import as_jpeg


def measure(image: np.ndarray) -> tuple[Excess, Tensor]:
    images = normalised(image)
    return QuantisationBranch(8, 8).excess(images, all_valid(images))


def z_scores(image: np.ndarray) -> Tensor:
    """(h, w) of the blocks, of all periods."""
    (excess, variance), _ = measure(image)
    return excess[0, 0] / (variance[0, 0] + 1).sqrt()


def with_foreign_region(region: np.ndarray) -> np.ndarray:
    """A JPEG with a square whose blocks are off the grid."""
    image = as_jpeg(soft(192, 192), 60)
    image[64:128, 64:128] = region[3:67, 5:69]
    return image


def foreign_blocks() -> Tensor:
    blocks = torch.zeros(24, 24, dtype=torch.bool)
    blocks[8:16, 8:16] = True
    return blocks


def test_the_step_of_a_jpeg_leaves_a_period_and_others_do_not():
    picture = soft(128, 128)
    # Quality 50 divides the first coefficient by 11 (luma table of the standard).
    _, period = measure(as_jpeg(picture, 50))
    _, untouched = measure(picture)
    eleven, thirteen = STEPS.index(11), STEPS.index(13)
    assert period[0, 0, eleven] > 0.9
    assert period[0, 0, thirteen] < 0.5
    assert untouched[0, 0, eleven].abs() < 0.3


def test_coefficients_that_round_to_zero_fit_no_step():
    # Most high frequencies of this picture are smaller than half of the larger steps.
    _, period = measure(soft(128, 128))
    assert period.max() < 0.3


def test_a_region_moved_off_the_grid_of_blocks_lacks_the_period():
    scores = z_scores(with_foreign_region(as_jpeg(soft(192, 192), 60)))
    foreign, own = scores[foreign_blocks()], scores[~foreign_blocks()]
    assert foreign.mean() < own.mean() - 3 * own.std()


def test_the_period_survives_a_second_jpeg_of_higher_quality():
    scores = z_scores(as_jpeg(with_foreign_region(soft(192, 192)), 92))
    foreign, own = scores[foreign_blocks()], scores[~foreign_blocks()]
    assert foreign.mean() < own.mean() - own.std()


@pytest.mark.parametrize("level", [0, 255])
def test_a_block_with_a_clipped_pixel_counts_for_nothing(level: int):
    image = as_jpeg(soft(64, 64), 60)
    image[20, 20] = level
    (excess, variance), _ = measure(image)
    assert not excess[..., 2, 2].any()
    assert not variance[..., 2, 2].any()
    assert variance[..., 3, 3].all()


def test_blocks_that_reach_into_padding_do_not_count():
    image = normalised(as_jpeg(soft(64, 72), 60))
    branch = QuantisationBranch(8, 16)
    cut = image[..., :56, :64]
    _, whole_blocks = branch.excess(cut, all_valid(cut))
    cut, padding = image[..., :60, :68], (0, 28, 0, 20)
    _, period = branch.excess(F.pad(cut, padding), F.pad(all_valid(cut), padding))
    torch.testing.assert_close(period, whole_blocks)


@pytest.mark.parametrize("fill", [0.0, 0.5])
def test_padding_does_not_change_what_the_branch_sees_of_an_image(fill: float):
    image = normalised(as_jpeg(soft(64, 96), 60))
    branch, padding = QuantisationBranch(8, 16), (0, 64, 0, 32)
    alone, _ = branch.statistics(image, all_valid(image))
    canvas = F.pad(image, padding, value=fill)
    padded, _ = branch.statistics(canvas, F.pad(all_valid(image), padding))
    torch.testing.assert_close(padded[..., :4, :6], alone, rtol=0, atol=1e-4)


def test_periods_below_zero_do_not_enter_the_sums_of_those_above():
    (excess, variance), period = measure(soft(128, 128))
    assert (period < 0).any()
    assert (variance[:, 1] <= variance[:, 0]).all()
    assert not torch.equal(excess[:, 1], excess[:, 0])
