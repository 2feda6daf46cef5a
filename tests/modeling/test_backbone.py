"""The encoder is timm's, and its weights come from every kind of file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from loupe import Loupe, PerceptionEncoder
from loupe.checkpoint import CheckpointError, to_released
from loupe.modeling.forensic.stems import (
    STEPS,
    ForensicStem,
    QuantisationBranch,
    ResidualBranch,
    SpectrumBranch,
    _relative,
)
from tests.pictures import as_jpeg, in_colour, textured

CORE = timm.list_models("vit_pe_core_*")
SPATIAL = timm.list_models("vit_pe_spatial_*")
TINY = {"patch_size": 14, "embed_dim": 64, "depth": 2, "num_heads": 4}
# Published widths are multiples of 64 per head; so small ones build even the gigantic in no time.
NARROW = {"embed_dim": 64, "num_heads": 2, "depth": 1}
# Numbers of the published encoders, Table 1 of the Perception Encoder and LOUPE's part 3.1.
LARGE_CORE = 316_102_656


def encoder_of(name: str, **arguments: Any) -> PerceptionEncoder:
    """timm's encoder of this name at its published size, but for the arguments."""
    defaults: dict[str, Any] = {"image_size": 0, "weights": "", "stem": "patch", "depth": 0}
    defaults |= {"new_parts": [], "overrides": {}}
    return PerceptionEncoder(name=name, **defaults | arguments).eval()


def tiny(name: str = "vit_pe_core_tiny_patch16_384", **arguments: Any) -> PerceptionEncoder:
    return encoder_of(name, **{"image_size": 84, "overrides": dict(TINY)} | arguments)


def test_all_published_sizes_are_known_to_timm():
    assert len(CORE) == 5
    assert len(SPATIAL) == 5


@pytest.mark.parametrize("name", CORE + SPATIAL)
@torch.no_grad()
def test_patches_and_pooled_feature_equal_timms_own_calls(name: str):
    encoder = encoder_of(name, image_size=64, overrides=dict(NARROW))
    side = 3 * encoder.patch_size
    images = torch.randn(2, 3, side, side + encoder.patch_size)
    features = encoder(images)
    vit = encoder.vit
    tokens = vit.forward_features(images)[:, vit.num_prefix_tokens :]
    patches = features["patches"].flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches, tokens, rtol=0, atol=0)
    (intermediate,) = vit.forward_intermediates(
        images, indices=1, norm=True, intermediates_only=True
    )
    torch.testing.assert_close(features["patches"], intermediate)
    torch.testing.assert_close(features["pooled"], vit(images))


@pytest.mark.parametrize("name", CORE + SPATIAL)
def test_every_published_size_builds_at_its_own_size(name: str):
    with torch.device("meta"):
        encoder = encoder_of(name)
        features = encoder(torch.empty(1, 3, *encoder.vit.patch_embed.img_size))
    assert features["patches"].shape == (1, encoder.embed_dim, *encoder.grid_size)
    assert features["pooled"].shape == (1, encoder.embed_dim)
    assert str(encoder.patch_size) in name


def test_the_default_encoder_has_the_published_number_of_parameters():
    with torch.device("meta"):
        encoder = encoder_of("vit_pe_core_large_patch14_336")
    assert sum(p.numel() for p in encoder.parameters()) == LARGE_CORE


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"vit_pe_lang.*vit_pe_core_tiny_patch16_384"):
        encoder_of("vit_pe_lang_large_patch14_448")


def test_an_image_that_is_no_multiple_of_the_patch_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"84 x 90 px.*14.*INPUT\.SIZE"):
        tiny()(torch.zeros(1, 3, 84, 90))


@pytest.mark.parametrize(
    "name", ["vit_pe_core_tiny_patch16_384", "vit_pe_spatial_tiny_patch16_512"]
)
@torch.no_grad()
def test_padding_tokens_change_no_valid_feature(name: str):
    encoder = tiny(name)
    valid = torch.ones(1, 6, 6, dtype=torch.bool)
    valid[:, 4:] = valid[:, :, 5:] = False
    pixels = valid.float().repeat_interleave(14, 1).repeat_interleave(14, 2)[:, None]
    images = torch.randn(1, 3, 84, 84)
    one = encoder(images * pixels, valid)
    other = encoder(images * pixels + 9 * torch.randn(1, 3, 84, 84) * (1 - pixels), valid)
    torch.testing.assert_close(one["pooled"], other["pooled"])
    mask = valid[:, None]
    torch.testing.assert_close(one["patches"] * mask, other["patches"] * mask)


@torch.no_grad()
def test_a_mask_that_is_valid_everywhere_is_the_same_as_none():
    encoder, images = tiny(), torch.randn(2, 3, 84, 84)
    with_mask = encoder(images, torch.ones(2, 6, 6, dtype=torch.bool))
    torch.testing.assert_close(with_mask, encoder(images))


@pytest.mark.parametrize("image_side", ["grid", "taller"])
@torch.no_grad()
def test_a_batch_of_two_equals_two_batches_of_one(image_side: str):
    encoder = tiny()
    images = torch.randn(2, 3, 84 if image_side == "grid" else 112, 84)
    both = encoder(images)
    for b in range(2):
        alone = encoder(images[b : b + 1])
        torch.testing.assert_close(both["patches"][b], alone["patches"][0])
        torch.testing.assert_close(both["pooled"][b], alone["pooled"][0])


# ---- Frozen


def trained(model: Loupe, item: dict[str, Any]) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    model.backbone.register_forward_hook(lambda _m, _i, output: kept.update(output))
    model.train()
    sum(model([item]).values()).backward()
    return kept


def test_a_frozen_encoder_has_no_graph_and_no_gradient(
    tiny_model: Loupe, make_item: Callable[..., dict[str, Any]]
):
    features = trained(tiny_model, make_item())
    assert not any(feature.requires_grad for feature in features.values())
    assert all(feature.grad_fn is None for feature in features.values())
    assert not any(p.requires_grad for p in tiny_model.backbone.parameters())
    assert all(p.grad is None for p in tiny_model.backbone.parameters())
    assert any(p.grad is not None for p in tiny_model.segmenter.parameters())


def test_a_frozen_encoder_saves_nothing_for_a_backward_pass(
    tiny_model: Loupe, make_item: Callable[..., dict[str, Any]]
):
    saved: list[Tensor] = []
    tiny_model.train()
    inputs = tiny_model.preprocess([make_item()])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        tiny_model.encode(inputs)
    assert saved == []


def test_a_frozen_encoder_has_no_graph_even_if_a_parameter_was_made_trainable_afterwards(
    tiny_model: Loupe, make_item: Callable[..., dict[str, Any]]
):
    # The released code did just that, and so ran a whole backward pass through its frozen encoder.
    tiny_model.backbone.vit.cls_token.requires_grad_(True)
    features = trained(tiny_model, make_item())
    assert all(feature.grad_fn is None for feature in features.values())
    assert tiny_model.backbone.vit.cls_token.grad is None


def test_a_frozen_encoder_stays_in_evaluation_mode(tiny_model: Loupe):
    tiny_model.train()
    assert not any(module.training for module in tiny_model.backbone.modules())
    assert tiny_model.segmenter.training


def test_a_frozen_forensic_stem_keeps_its_statistics(
    build: Callable[..., Loupe], make_item: Callable[..., dict[str, Any]]
):
    model = build(
        *("MODEL.PERCEPTION_ENCODER.PATCH_SIZE", 16, "MODEL.PERCEPTION_ENCODER.STEM", "forensic"),
        *("INPUT.SIZE", 96),
    )
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    trained(model, make_item(size=96, valid_size=(96, 96)))
    assert all(torch.equal(before[k], v) for k, v in model.backbone.state_dict().items())


def test_an_unfrozen_encoder_receives_gradients(
    build: Callable[..., Loupe], make_item: Callable[..., dict[str, Any]]
):
    model = build("MODEL.FREEZE", [])
    trained(model, make_item())
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_a_part_that_does_not_exist_cannot_be_frozen(build: Callable[..., Loupe]):
    with pytest.raises(ValueError, match=r"MODEL\.FREEZE.*decoder.*backbone"):
        build("MODEL.FREEZE", ["decoder"])


# ---- The forensic stem


def forensic(**sizes: int) -> PerceptionEncoder:
    return tiny(stem="forensic", overrides={**TINY, "patch_size": 16}, image_size=96, **sizes)


@pytest.mark.parametrize("quantisation", [False, True])
@pytest.mark.parametrize("patch_size", [8, 16, 32])
def test_the_forensic_stem_has_the_patch_embeddings_grid(patch_size: int, quantisation: bool):
    stem = ForensicStem(24, patch_size, quantisation)
    assert stem(torch.randn(2, 3, 96, 64)).shape == (2, 24, 96 // patch_size, 64 // patch_size)


def test_the_forensic_stem_sees_no_constant_in_its_residuals():
    kernels = forensic().vit.patch_embed.proj.residuals.kernels
    assert torch.equal(kernels.sum(dim=(1, 2, 3)), torch.zeros(len(kernels)))


def test_the_spectrum_is_that_of_jpegs_cosine_transform():
    block = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    kernels = SpectrumBranch(8, 8).kernels
    coefficients = F.conv2d(torch.from_numpy(block)[None, None], kernels).flatten()
    expected = torch.from_numpy(cv2.dct(block)).flatten()[1:]
    torch.testing.assert_close(coefficients, expected, atol=1e-5, rtol=0)


def test_the_forensic_stem_refuses_a_patch_size_that_is_not_of_blocks():
    with pytest.raises(ValueError, match="8, 16 or 32, not 14"):
        tiny(stem="forensic")


def test_padding_does_not_change_what_an_image_is_relative_to():
    features = torch.randn(1, 4, 12, 12)
    padded = F.pad(features, (0, 12, 0, 12), value=9.0)
    valid = F.pad(torch.ones(1, 6, 6), (0, 6, 0, 6)).bool()
    relative = _relative(padded, valid)[..., :12, :12]
    torch.testing.assert_close(relative, _relative(features, None))


def test_the_encoder_tells_its_stem_what_is_padding():
    encoder = forensic().eval()
    images = torch.zeros(1, 3, 96, 96)
    images[..., :48] = torch.randn(1, 3, 96, 48)
    valid = torch.zeros(1, 6, 6, dtype=torch.bool)
    valid[..., :3] = True
    with torch.no_grad():
        told = encoder(images, valid)["patches"][..., :2]
        cropped = encoder(images[..., :48])["patches"][..., :2]
        untold = encoder(images)["patches"][..., :2]
    assert (told - cropped).abs().mean() < 0.5 * (untold - cropped).abs().mean()


def test_half_precision_does_not_blur_the_traces():
    images = torch.full((1, 3, 32, 32), 0.9) + 0.004 * torch.randn(1, 3, 32, 32)
    branch = ResidualBranch(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        halved = branch._energies(images)[0]
    torch.testing.assert_close(halved, branch._energies(images)[0], rtol=0, atol=0)


# ---- Quantisation


def normalised(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1


def soft(height: int, width: int) -> np.ndarray:
    """A picture far from both ends of the range."""
    return in_colour(textured(height, width, contrast=12))


def excess_of(image: np.ndarray) -> Tensor:
    """(h, w) of the blocks, in standard deviations, of all periods."""
    excess, variance, _ = QuantisationBranch(8, 8).excess(normalised(image))
    return excess[0, 0] / (variance[0, 0] + 1).sqrt()


def test_the_step_of_a_jpeg_leaves_a_period_and_others_do_not():
    picture = soft(128, 128)
    # Quality 50 divides the first coefficient by 11 (luma table of the standard).
    _, _, period = QuantisationBranch(8, 8).excess(normalised(as_jpeg(picture, 50)))
    _, _, untouched = QuantisationBranch(8, 8).excess(normalised(picture))
    eleven, thirteen = STEPS.index(11), STEPS.index(13)
    assert period[0, 0, eleven] > 0.9
    assert period[0, 0, thirteen] < 0.5
    assert untouched[0, 0, eleven].abs() < 0.3


def test_a_region_moved_off_the_grid_of_blocks_lacks_the_period():
    image = as_jpeg(soft(192, 192), 60)
    image[64:128, 64:128] = as_jpeg(soft(192, 192), 60)[3:67, 5:69]
    excess = excess_of(image)
    inside = torch.zeros_like(excess, dtype=torch.bool)
    inside[8:16, 8:16] = True
    assert excess[inside].mean() < excess[~inside].mean() - 3 * excess[~inside].std()


def test_the_period_survives_a_second_jpeg_of_higher_quality():
    image = as_jpeg(soft(192, 192), 60)
    image[64:128, 64:128] = soft(192, 192)[3:67, 5:69]
    excess = excess_of(as_jpeg(image, 92))
    inside = torch.zeros_like(excess, dtype=torch.bool)
    inside[8:16, 8:16] = True
    assert excess[inside].mean() < excess[~inside].mean() - excess[~inside].std()


@pytest.mark.parametrize("level", [0, 255])
def test_a_block_with_a_clipped_pixel_counts_for_nothing(level: int):
    image = as_jpeg(soft(64, 64), 60)
    image[20, 20] = level
    excess, variance, _ = QuantisationBranch(8, 8).excess(normalised(image))
    assert not excess[..., 2, 2].any()
    assert not variance[..., 2, 2].any()
    assert variance[..., 3, 3].all()


def test_blocks_that_reach_into_padding_do_not_count():
    image = normalised(as_jpeg(soft(64, 72), 60))
    branch = QuantisationBranch(8, 16)
    _, _, whole_blocks = branch.excess(image[..., :56, :64])
    _, _, period = branch.excess(F.pad(image[..., :60, :68], (0, 28, 0, 20)))
    torch.testing.assert_close(period, whole_blocks)


def test_padding_does_not_change_what_the_branch_sees_of_an_image():
    image = normalised(as_jpeg(soft(64, 96), 60))
    branch = QuantisationBranch(8, 16)
    alone, _ = branch.statistics(image)
    padded, _ = branch.statistics(F.pad(image, (0, 64, 0, 32)))
    torch.testing.assert_close(padded[..., :4, :6], alone, rtol=0, atol=1e-4)


def test_periods_below_zero_do_not_enter_the_sums_of_those_above():
    excess, variance, period = QuantisationBranch(8, 8).excess(normalised(soft(128, 128)))
    assert (period < 0).any()
    assert (variance[:, 1] <= variance[:, 0]).all()
    assert not torch.equal(excess[:, 1], excess[:, 0])


@pytest.mark.parametrize("stem", ["forensic-jpeg", "forensic-copies"])
@pytest.mark.parametrize("key", ["PIXEL_MEAN", "PIXEL_STD"])
def test_a_stem_of_grey_levels_refuses_pixels_of_another_scale(
    build: Callable[..., Loupe], key: str, stem: str
):
    with pytest.raises(ValueError, match=rf"MODEL\.{key} .*128.*127\.5"):
        build(
            *("MODEL.PERCEPTION_ENCODER.PATCH_SIZE", 16, "INPUT.SIZE", 96),
            *("MODEL.PERCEPTION_ENCODER.STEM", stem),
            *(f"MODEL.{key}", [128.0, 128.0, 128.0]),
        )


def test_the_quantisation_branch_is_silent_at_first_and_then_learns():
    stem, plain = ForensicStem(24, 16, quantisation=True), ForensicStem(24, 16)
    plain.load_state_dict(stem.state_dict(), strict=False)
    images = normalised(as_jpeg(soft(64, 64), 60))
    torch.testing.assert_close(stem(images), plain(images))
    stem(images).square().sum().backward()
    assert stem.quantisation.tokens[-1].weight.grad.any()


def test_an_encoder_takes_over_one_without_the_branch_if_that_is_declared_new(
    build: Callable[..., Loupe], tmp_path: Path
):
    path = tmp_path / "encoder.safetensors"
    save_file(forensic().vit.state_dict(), path)
    options = [
        *("MODEL.PERCEPTION_ENCODER.PATCH_SIZE", 16, "INPUT.SIZE", 96),
        *("MODEL.PERCEPTION_ENCODER.STEM", "forensic-jpeg"),
        *("MODEL.PERCEPTION_ENCODER.WEIGHTS", str(path)),
    ]
    new = ["backbone.vit.patch_embed.proj.quantisation"]
    build(*options, "MODEL.NEW_PARTS", new)
    with pytest.raises(CheckpointError, match=r"missing: patch_embed\.proj\.quantisation"):
        build(*options)


# ---- Files


def original_names(encoder: PerceptionEncoder) -> dict[str, Tensor]:
    """The encoder's weights as the Perception Encoder's own files name them."""
    weights = {f"backbone.{name}": value for name, value in encoder.state_dict().items()}
    return {k.removeprefix("backbone."): v.clone() for k, v in to_released(weights).items()}


def assert_same(one: PerceptionEncoder, other: PerceptionEncoder) -> None:
    images = torch.randn(1, 3, 84, 84)
    with torch.no_grad():
        torch.testing.assert_close(one(images), other(images), rtol=0, atol=0)


def randomised(encoder: PerceptionEncoder) -> PerceptionEncoder:
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return encoder


@pytest.mark.parametrize(
    "name", ["vit_pe_core_tiny_patch16_384", "vit_pe_spatial_tiny_patch16_512"]
)
@pytest.mark.parametrize("prefix", ["", "visual.", "module.visual."])
def test_a_file_with_the_original_names_loads(name: str, prefix: str, tmp_path: Path):
    encoder = randomised(tiny(name))
    weights = original_names(encoder)
    assert {"class_embedding", "positional_embedding", "conv1.weight"} <= set(weights)
    assert weights["class_embedding"].shape == (64,)
    assert weights["positional_embedding"].shape == (37, 64)
    content = {prefix + key: value for key, value in weights.items()}
    content[prefix + "proj"] = torch.randn(64, 32)
    if prefix:
        content[prefix.replace("visual.", "") + "transformer.resblocks.0.ln_1.weight"] = torch.ones(
            8
        )
        content[prefix.replace("visual.", "") + "logit_scale"] = torch.tensor(1.0)
    path = tmp_path / "pe.pt"
    torch.save(content, path)
    assert_same(tiny(name, weights=str(path)), encoder)


def test_a_file_with_timms_names_loads(tmp_path: Path):
    encoder = randomised(tiny())
    weights = {**encoder.vit.state_dict(), "head.weight": torch.randn(32, 64)}
    save_file(weights, tmp_path / "pe.safetensors")
    assert_same(tiny(weights=str(tmp_path / "pe.safetensors")), encoder)


@pytest.mark.parametrize("original", [True, False])
def test_a_position_table_of_another_grid_is_resized_as_timm_does(original: bool, tmp_path: Path):
    encoder = randomised(tiny(image_size=140))
    weights = original_names(encoder) if original else encoder.vit.state_dict()
    save_file(weights, tmp_path / "pe.safetensors")
    loaded = tiny(weights=str(tmp_path / "pe.safetensors")).vit.pos_embed
    table = encoder.vit.pos_embed
    grid = table[:, 1:].reshape(1, 10, 10, 64).permute(0, 3, 1, 2)
    small = F.interpolate(grid, (6, 6), mode="bicubic", antialias=True)
    expected = torch.cat([table[:, :1], small.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(loaded, expected)


def test_a_model_of_fewer_blocks_takes_the_first_ones_of_a_file(tmp_path: Path):
    encoder = randomised(tiny())
    torch.save(original_names(encoder), tmp_path / "pe.pt")
    short = tiny(weights=str(tmp_path / "pe.pt"), depth=1)
    assert len(short.vit.blocks) == 1
    encoder.vit.blocks = encoder.vit.blocks[:1]
    assert_same(short, encoder)


def test_a_file_of_another_width_is_refused_with_the_keys(tmp_path: Path):
    torch.save(tiny(overrides={**TINY, "embed_dim": 32}).vit.state_dict(), tmp_path / "pe.pt")
    with pytest.raises(CheckpointError, match=r"misshapen: patch_embed\.proj\.weight"):
        tiny(weights=str(tmp_path / "pe.pt"))


def test_a_file_that_lacks_a_block_is_refused_with_the_keys(tmp_path: Path):
    torch.save(tiny(overrides={**TINY, "depth": 1}).vit.state_dict(), tmp_path / "pe.pt")
    with pytest.raises(CheckpointError, match=r"missing: blocks\.1\.attn\.qkv\.weight"):
        tiny(weights=str(tmp_path / "pe.pt"))
