"""Pyramid, pixel decoder and mask decoder, alone and together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loupe.modeling.deformable_attention import DeformableAttention
from loupe.modeling.feature_pyramid import FeaturePyramid
from loupe.modeling.layers import sine_position
from loupe.modeling.mask_decoder import _attended
from loupe.modeling.pixel_decoder import Condition, _reference_points
from loupe.modeling.segmenter import Segmenter
from loupe.structures import MaskOutput

CONDITIONS = ["token", "pixel", "none"]


def segmenter(**arguments: object) -> Segmenter:
    return Segmenter(
        **{
            "dim_in": 32,
            "dim": 32,
            "num_heads": 4,
            "num_points": 4,
            "pixel_layers": 2,
            "pixel_ffn_dim": 48,
            "mask_layers": 4,
            "mask_ffn_dim": 48,
            "num_queries": 5,
            "predict_boxes": False,
            "condition": "token",
            "condition_tokens": 1,
            **arguments,
        }
    )


def flat(outputs: list[MaskOutput]) -> list[Tensor]:
    return [tensor for output in outputs for tensor in output if tensor is not None]


# ---- Pyramid


def test_the_pyramid_has_four_scales_of_any_grid():
    patches = torch.randn(2, 8, 6, 10)
    levels = FeaturePyramid(8)(patches, [nn.Identity()] * 4)
    sizes = [tuple(level.shape[2:]) for level in levels]
    assert sizes == [(24, 40), (12, 20), (6, 10), (3, 5)]
    assert torch.equal(levels[2], patches)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 1)])
def test_a_grid_of_one_cell_is_not_halved_further(grid: tuple[int, int]):
    coarsest = FeaturePyramid(8)(torch.randn(2, 8, *grid), [nn.Identity()] * 4)[3]
    assert tuple(coarsest.shape[2:]) == tuple(max(1, side // 2) for side in grid)


# ---- Layers


def test_sine_positions_by_hand():
    code = sine_position(2, 3, 8, torch.device("cpu")).view(2, 3, 8)
    y, x = 2 * torch.pi * 1 / 2, 2 * torch.pi * 3 / 3
    expected = [torch.tensor(v) for v in (y, y, y / 100, y / 100, x, x, x / 100, x / 100)]
    functions = [torch.sin, torch.cos] * 4
    expected = torch.stack([f(v) for f, v in zip(functions, expected, strict=True)])
    torch.testing.assert_close(code[0, 2], expected, rtol=0, atol=1e-4)


def test_reference_points_are_cell_centres_x_first():
    points = _reference_points([(1, 2), (2, 1)], torch.device("cpu"))
    assert points.shape == (1, 4, 2, 2)
    assert points[0, :, 0].tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]
    assert torch.equal(points[:, :, 0], points[:, :, 1])


def test_deformable_attention_starts_on_a_ring_of_growing_radius():
    bias = DeformableAttention(
        dim=32, num_heads=4, num_levels=3, num_points=2
    ).sampling_offsets.bias
    ring = bias.detach().view(4, 3, 2, 2)
    torch.testing.assert_close(ring[:, :, 1], 2 * ring[:, :, 0])
    torch.testing.assert_close(ring[:, 0, 0].abs().amax(1), torch.ones(4))
    assert torch.equal(ring[:, 0], ring[:, 1])


# ---- Every parameter, every condition


def test_outputs_have_their_shapes_for_a_grid_that_is_not_square():
    for predict_boxes in (False, True):
        model = segmenter(predict_boxes=predict_boxes)
        outputs = model(torch.randn(2, 32, 4, 6), torch.ones(2))
        assert len(outputs) == 5
        for class_logits, mask_logits, boxes in outputs:
            assert class_logits.shape == (2, 5, 2)
            assert mask_logits.shape == (2, 5, 16, 24)
            assert (boxes is not None) == predict_boxes
            if predict_boxes:
                assert boxes.shape == (2, 5, 4)
                assert 0 <= boxes.min() <= boxes.max() <= 1


@pytest.mark.parametrize("condition", ["token", "pixel"])
@torch.no_grad()
def test_the_condition_matters_and_does_not_leak_between_images(condition: str):
    model, patches = segmenter(condition=condition), torch.randn(2, 32, 4, 4)
    nn.init.normal_(model.condition_embeddings)
    one = model(patches, torch.tensor([0.0, 0.0]))[-1].mask_logits
    other = model(patches, torch.tensor([1.0, 0.0]))[-1].mask_logits
    assert (one[0] - other[0]).abs().max() > 1e-3
    torch.testing.assert_close(one[1], other[1])


@torch.no_grad()
def test_the_final_output_alone_is_the_last_of_all():
    model, patches = segmenter(predict_boxes=True), torch.randn(2, 32, 4, 4)
    probability = torch.rand(2)
    every = model(patches, probability)
    final = model(patches, probability, final_only=True)
    assert (len(every), len(final)) == (1 + len(model.mask_decoder.layers), 1)
    torch.testing.assert_close(flat(final), flat(every[-1:]), rtol=0, atol=0)


@torch.no_grad()
def test_without_condition_the_probability_does_not_matter():
    model, patches = segmenter(condition="none"), torch.randn(2, 32, 4, 4)
    assert model.condition_embeddings is None
    one, other = model(patches, torch.zeros(2)), model(patches, torch.ones(2))
    torch.testing.assert_close(flat(one), flat(other), rtol=0, atol=0)


@torch.no_grad()
def test_the_first_embedding_stands_for_authentic_and_the_second_for_forged():
    model, patches = segmenter(), torch.randn(1, 32, 4, 4)
    nn.init.normal_(model.condition_embeddings)
    forged = flat(model(patches, torch.ones(1)))
    model.condition_embeddings[0] = 7  # Authentic: has no weight at probability 1.
    torch.testing.assert_close(flat(model(patches, torch.ones(1))), forged)
    model.condition_embeddings.copy_(model.condition_embeddings.flip(0))
    model.condition_embeddings[1] = 3
    torch.testing.assert_close(flat(model(patches, torch.zeros(1))), forged)


@torch.no_grad()
def test_a_soft_condition_lies_between_the_hard_ones():
    model = segmenter()
    nn.init.normal_(model.condition_embeddings)
    kept: list[Tensor] = []
    attention = model.pixel_decoder.layers[0].condition.attention
    attention.register_forward_pre_hook(lambda _m, arguments: kept.append(arguments[0]))
    for p in (0.0, 1.0, 0.25):
        model(torch.randn(1, 32, 4, 4), torch.tensor([p]))
    torch.testing.assert_close(kept[2], 0.75 * kept[0] + 0.25 * kept[1])


@pytest.mark.parametrize("condition", ["token", "pixel"])
def test_several_tokens_for_each_verdict_are_taken(condition: str):
    model = segmenter(condition=condition, condition_tokens=3)
    outputs = model(torch.randn(2, 32, 4, 4), torch.tensor([0.0, 1.0]))
    sum(tensor.square().sum() for tensor in flat(outputs)).backward()
    assert model.condition_embeddings.shape == (2, 3, 32)
    assert model.condition_embeddings.grad.abs().sum() > 0


@torch.no_grad()
def test_each_pixel_weighs_the_embeddings_by_their_probability():
    model = segmenter(condition="pixel")
    layer = model.pixel_decoder.layers[0].condition
    layer.attention.in_proj_weight[:64] = 0  # No pixel prefers an embedding.
    layer.attention.in_proj_bias[:64] = 0
    x, embeddings = torch.randn(1, 3, 32), torch.randn(2, 1, 32)
    ours = layer(x, Condition(embeddings, torch.tensor([0.3])), None)
    value = F.linear(
        0.7 * embeddings[0] + 0.3 * embeddings[1],
        layer.attention.in_proj_weight[64:],
        layer.attention.in_proj_bias[64:],
    )
    torch.testing.assert_close(ours, layer.norm(x + layer.attention.out_proj(value)))


def test_masked_attention_looks_where_the_last_mask_was():
    logits = torch.full((1, 1, 8, 8), -5.0)
    logits[..., :4, :] = 5.0
    attended = _attended(logits, (4, 4), None).view(4, 4)
    assert attended[:2].all()
    assert not attended[2:].any()


def test_a_query_whose_mask_is_nowhere_looks_everywhere():
    logits = torch.full((1, 2, 8, 8), -5.0)
    logits[0, 1, 0, 0] = 50.0
    attended = _attended(logits, (4, 4), None)
    assert attended[0, 0].all()
    assert 0 < attended[0, 1].sum() < 6


def test_a_query_never_looks_at_padding():
    logits = torch.randn(1, 5, 8, 8)
    logits[0, 0] = -5.0  # The mask is nowhere,
    logits[0, 1] = 5.0  # everywhere,
    logits[0, 2], logits[0, 2, 6:] = -5.0, 5.0  # and only where there is padding.
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    valid[:, 1] = False
    for shape in ((2, 2), (4, 4), (8, 8), (1, 1)):
        attended = _attended(logits, shape, valid).view(5, *shape)
        if shape != (1, 1):
            assert not attended[:, shape[0] // 2 :].any()
        assert attended.flatten(1).any(dim=1).all()


@torch.no_grad()
def test_a_mask_that_is_false_everywhere_gives_finite_outputs():
    decoder = segmenter(num_queries=3, mask_layers=3).mask_decoder
    nn.init.zeros_(decoder.mask_head[-1].weight)
    decoder.mask_head[-1].bias.fill_(-1)
    features = torch.rand(1, 32, 8, 8) + 1
    outputs = decoder(features, [torch.randn(1, 32, s, s) for s in (1, 2, 4)])
    assert (outputs[0].mask_logits < 0).all()
    assert all(torch.isfinite(tensor).all() for tensor in flat(outputs))


def test_an_unknown_condition_is_refused():
    with pytest.raises(ValueError, match=r"CONDITION_ATTENTION is 'both'.*token"):
        segmenter(condition="both")


def test_a_width_that_group_norm_cannot_divide_is_refused():
    with pytest.raises(ValueError, match=r"FEATURE_DIM is 40; use a multiple of 32"):
        segmenter(dim=40)
