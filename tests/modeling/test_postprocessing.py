"""From queries to a map, and from the network's canvas to the image."""

from __future__ import annotations

import pytest
import torch

from loupe.modeling.postprocessing import paste_map, query_map

SURE_FORGED, SURE_NOTHING = (20.0, -20.0), (-20.0, 20.0)


def test_the_map_is_the_sum_of_masks_weighed_by_their_class():
    class_logits, mask_logits = torch.randn(3, 2), torch.randn(3, 4, 4) - 2
    forged = class_logits.softmax(1)[:, 0]
    expected = sum(forged[q] * mask_logits[q].sigmoid() for q in range(3))
    ours = query_map(class_logits, mask_logits, (4, 4))
    torch.testing.assert_close(ours, expected.clamp(max=1))


def test_index_0_of_a_class_is_forged():
    masks = torch.tensor([[[20.0]], [[-20.0]]])
    forged_first = torch.tensor([SURE_FORGED, SURE_NOTHING])
    assert query_map(forged_first, masks, (1, 1)).item() == pytest.approx(1)
    assert query_map(forged_first.flip(0), masks, (1, 1)).item() == pytest.approx(0, abs=1e-6)


def test_the_map_never_exceeds_one():
    ours = query_map(torch.tensor([SURE_FORGED] * 5), torch.full((5, 4, 4), 9.0), (8, 8))
    assert ours.max() == 1


def test_masks_are_resized_as_logits():
    masks = torch.tensor([[[8.0, -8.0], [8.0, -8.0]]])
    ours = query_map(torch.tensor([SURE_FORGED]), masks, (4, 4))
    expected = torch.tensor([8.0, 4.0, -4.0, -8.0]).sigmoid().expand(4, 4)
    torch.testing.assert_close(ours, expected)


def test_the_map_is_float32_under_autocast():
    inputs = (torch.randn(5, 2), torch.randn(5, 4, 4), (8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = query_map(*inputs)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, query_map(*inputs), rtol=0, atol=0)


def test_pasting_at_the_same_size_changes_nothing():
    network_map = torch.rand(6, 8)
    assert torch.equal(paste_map(network_map, (6, 8), (0, 0, 8, 6), (6, 8)), network_map)


def test_padding_is_cut_away_before_resizing():
    network_map = torch.zeros(8, 8)
    network_map[:4] = 0.7
    network_map[4:] = 99  # Padding.
    ours = paste_map(network_map, (4, 8), (0, 0, 30, 15), (15, 30))
    assert ours.shape == (15, 30)
    torch.testing.assert_close(ours, torch.full((15, 30), 0.7))


def test_a_marker_stays_where_it_is_in_the_image():
    network_map = torch.zeros(10, 10)
    network_map[2, 7] = 1
    ours = paste_map(network_map, (10, 10), (0, 0, 100, 50), (50, 100))
    row, column = divmod(int(ours.argmax()), 100)
    assert row in range(10, 15)
    assert column in range(70, 80)


def test_a_window_lies_at_its_place_and_outside_stands_the_nearest_edge():
    network_map = torch.rand(4, 6)
    ours = paste_map(network_map, (4, 6), (5, 3, 11, 7), (12, 20))
    assert torch.equal(ours[3:7, 5:11], network_map)
    assert torch.equal(ours[3:7, :5], network_map[:, :1].expand(4, 5))
    assert torch.equal(ours[3:7, 11:], network_map[:, -1:].expand(4, 9))
    assert torch.all(ours[:3, :5] == network_map[0, 0])
    assert torch.all(ours[7:, 11:] == network_map[-1, -1])


def test_a_window_between_pixels_is_rounded_and_covers_the_image():
    ours = paste_map(torch.rand(4, 4), (4, 4), (2.4, 1.6, 9.5, 7.4), (8, 10))
    assert ours.shape == (8, 10)
