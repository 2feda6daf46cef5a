"""Which pixels a patch map covers."""

from __future__ import annotations

import pytest
import torch

from loupe.inference.diagnosed import patch_map_and_window

# Patches of 16 pixels. A padded image of 40 columns fills two patches and a half: three reach over
# 48 of the network's pixels. An image of 40 x 10 in a batch with a wider canvas has its own 3 x 1.
CASES = [
    ((64, 40), (0.0, 0.0, 80.0, 128.0), (4, 4), (4, 3), (0.0, 0.0, 96.0, 128.0)),
    ((40, 10), (0.0, 0.0, 10.0, 40.0), (4, 12), (3, 1), (0.0, 0.0, 16.0, 48.0)),
]


@pytest.mark.parametrize(("valid_size", "window", "canvas", "shape", "covered"), CASES)
def test_a_patch_map_loses_its_padding(valid_size, window, canvas, shape, covered):
    item = {"valid_size": valid_size, "window": window}
    patches, found = patch_map_and_window(item, torch.rand(canvas), 16)
    assert patches.shape == shape
    assert found == covered
