"""Which pixels a patch map covers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from loupe import Loupe
from loupe.data.images.orientation import turn
from loupe.inference.diagnosed import as_stored, patch_map_and_window, predictions_of
from loupe.modeling.postprocessing import turn_map

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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_padding_is_cut_whatever_the_orientation(orientation: int):
    patches = torch.arange(16.0).reshape(4, 4)
    patches[:, 3] = -1  # Padding: 40 columns of 16 fill three patches of four.
    item = {"valid_size": (64, 40), "window": (0, 0, 40, 64), "orientation": orientation}
    found, window = patch_map_and_window(item, turn_map(patches, orientation), 16)
    np.testing.assert_array_equal(found, patches[:, :3])
    assert window == (0, 0, 48, 64)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_maps_and_patches_of_a_diagnosis_lie_on_each_other(orientation: int, tiny_model, make_item):
    """The tag turns what a user sees, and nothing of what is compared."""
    model: Loupe = tiny_model.eval()
    item = make_item(0, valid_size=(84, 56)) | {"height": 84, "width": 56}
    item["window"] = (0, 0, 56, 84)
    (upright,) = predictions_of(model, [item | {"orientation": 1}])
    (turned,) = predictions_of(model, [item | {"orientation": orientation}])
    for one, other in zip(upright, turned, strict=True):
        np.testing.assert_array_equal(one, other)
    mask = np.random.default_rng(0).random((84, 56)) > 0.5
    stored = as_stored({"orientation": orientation}, turn(mask, orientation))
    np.testing.assert_array_equal(stored, mask)
