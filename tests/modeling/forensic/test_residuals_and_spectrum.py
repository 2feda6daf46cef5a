"""Residuals see noise and no content; the spectrum is JPEG's; padding enters neither."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from loupe.modeling.forensic.pixels import cell_mean, normalised_log, relative_to_image
from loupe.modeling.forensic.residuals import ResidualBranch
from loupe.modeling.forensic.spectrum import cosine_kernels

# Second differences along four directions, and the square kernel.
KERNELS = (
    ((0, 0, 0), (1, -2, 1), (0, 0, 0)),
    ((0, 1, 0), (0, -2, 0), (0, 1, 0)),
    ((1, 0, 0), (0, -2, 0), (0, 0, 1)),
    ((0, 0, 1), (0, -2, 0), (1, 0, 0)),
    ((-1, 2, -1), (2, -4, 2), (-1, 2, -1)),
)


def test_energies_are_means_of_residuals_over_cells_and_raster_positions():
    images = torch.rand(2, 3, 24, 40)
    kernels = torch.tensor(KERNELS, dtype=torch.float32)[:, None].repeat(3, 1, 1, 1)
    size = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernels, groups=3).abs()
    raster = torch.stack([size[..., y::2, x::2] for y in range(2) for x in range(2)], dim=2)
    fine, by_position = ResidualBranch(8, 16).energies(images)
    torch.testing.assert_close(fine, normalised_log(F.avg_pool2d(size, 4)))
    torch.testing.assert_close(by_position, normalised_log(F.avg_pool2d(raster.flatten(1, 2), 4)))


def test_the_mean_of_cells_is_a_pooling():
    images = torch.rand(2, 3, 16, 24)
    torch.testing.assert_close(cell_mean(images, 8), F.avg_pool2d(images, 8))


def test_the_spectrum_is_that_of_jpegs_cosine_transform():
    block = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    coefficients = F.conv2d(torch.from_numpy(block)[None, None], cosine_kernels()).flatten()
    expected = torch.from_numpy(cv2.dct(block)).flatten()[1:]
    torch.testing.assert_close(coefficients, expected, atol=1e-5, rtol=0)


def test_padding_does_not_change_what_an_image_is_relative_to():
    features = torch.randn(1, 4, 12, 12)
    padded = F.pad(features, (0, 12, 0, 12), value=9.0)
    valid = F.pad(torch.ones(1, 6, 6), (0, 6, 0, 6)).bool()
    relative = relative_to_image(padded, valid)[..., :12, :12]
    torch.testing.assert_close(relative, relative_to_image(features, torch.ones(1, 6, 6)))


def test_half_precision_does_not_blur_the_traces():
    images = torch.full((1, 3, 32, 32), 0.9) + 0.004 * torch.randn(1, 3, 32, 32)
    branch = ResidualBranch(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        halved = branch.energies(images)
    torch.testing.assert_close(halved, branch.energies(images), rtol=0, atol=0)
