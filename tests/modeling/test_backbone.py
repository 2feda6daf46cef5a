"""The encoder is timm's, and its weights come from every kind of file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from loupe import Loupe, PerceptionEncoder
from loupe.checkpoint import CheckpointError, load_into, to_released
from loupe.modeling.building import encoder_arguments
from loupe.modeling.rotary_attention import rotate

CORE = timm.list_models("vit_pe_core_*")
SPATIAL = timm.list_models("vit_pe_spatial_*")
TINY = {"patch_size": 14, "embed_dim": 64, "depth": 2, "num_heads": 4}
# Published widths are multiples of 64 per head; so small ones build even the gigantic in no time.
NARROW = {"embed_dim": 64, "num_heads": 2, "depth": 1}


def encoder_of(name: str, **arguments: Any) -> PerceptionEncoder:
    """timm's encoder of this name at its published size, but for the arguments."""
    defaults: dict[str, Any] = {"image_size": 0, "weights": "", "stem": "patch", "depth": 0}
    defaults |= {"new_parts": [], "precision": "float32", "overrides": {}}
    return PerceptionEncoder(name=name, **defaults | arguments).eval()


def tiny(name: str = "vit_pe_core_tiny_patch16_384", **arguments: Any) -> PerceptionEncoder:
    return encoder_of(name, **{"image_size": 84, "overrides": dict(TINY)} | arguments)


@pytest.mark.parametrize("name", [CORE[-1], SPATIAL[-1]])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_tokens_and_gradients_equal_those_of_timms_attention(name: str, precision: torch.dtype):
    encoder = tiny(name)
    theirs = timm.create_model(name, num_classes=0, dynamic_img_size=True, img_size=84, **TINY)
    theirs.load_state_dict(encoder.vit.state_dict())
    images, mask = torch.randn(2, 3, 70, 84), torch.rand(2, 1, 1, 30) > 0.3
    mask = torch.nn.functional.pad(mask, (encoder.vit.num_prefix_tokens, 0), value=True)
    results = []
    for vit in (encoder.vit, theirs.eval()):
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            with torch.no_grad():
                predicted = vit.forward_features(images, attn_mask=mask)
            trained = vit.forward_features(images, attn_mask=mask)
        weight = vit.blocks[0].attn.qkv.weight
        results.append((predicted, *torch.autograd.grad(trained.float().square().sum(), weight)))
    # Where the processor joins a product and a sum, the complex product rounds once less.
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    tolerance = 1e-6 if precision == torch.float32 else 0.02
    error = (results[0][1] - results[1][1]).abs().max() / results[1][1].abs().max()
    assert error < tolerance


@torch.no_grad()
def test_compilers_get_the_same_rotation_in_real_numbers(monkeypatch):
    query_key, table = torch.randn(2, 5, 2, 4, 8), torch.randn(5, 4, 2)
    expected = rotate(query_key.clone(), table)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(query_key, table), expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_half_precision_halves_the_blocks_and_stays_near(tiny_cfg):
    encoder, half = tiny(), tiny(precision="bfloat16")
    load_into(half, encoder.state_dict())
    assert half.vit.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    images = torch.randn(2, 3, 84, 84)
    exact, near = encoder(images), half(images)
    for name in ("patches", "pooled"):
        assert near[name].dtype == torch.float32
        assert 0 < (near[name] - exact[name]).abs().max() < 0.1
    tiny_cfg.MODEL.PERCEPTION_ENCODER.PRECISION = "bfloat16"
    tiny_cfg.MODEL.FREEZE = []
    with pytest.raises(ValueError, match="too coarse"):
        encoder_arguments(tiny_cfg)


@torch.no_grad()
def test_patches_and_pooled_feature_equal_timms_own_calls():
    for name in CORE + SPATIAL:
        encoder = encoder_of(name, image_size=64, overrides=dict(NARROW))
        side = 3 * encoder.patch_size
        images = torch.randn(2, 3, side, side + encoder.patch_size)
        features, vit = encoder(images), encoder.vit
        tokens = vit.forward_features(images)[:, vit.num_prefix_tokens :]
        patches = features["patches"].flatten(2).transpose(1, 2)
        torch.testing.assert_close(patches, tokens, rtol=0, atol=0)
        (intermediate,) = vit.forward_intermediates(
            images, indices=1, norm=True, intermediates_only=True
        )
        torch.testing.assert_close(features["patches"], intermediate)
        torch.testing.assert_close(features["pooled"], vit(images))


def test_every_published_size_builds_at_its_own_size():
    for name in CORE + SPATIAL:
        with torch.device("meta"):
            encoder = encoder_of(name)
            features = encoder(torch.empty(1, 3, *encoder.vit.patch_embed.img_size))
        assert features["patches"].shape == (1, encoder.embed_dim, *encoder.grid_size), name
        assert features["pooled"].shape == (1, encoder.embed_dim), name
        assert str(encoder.patch_size) in name


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"vit_pe_lang.*vit_pe_core_tiny_patch16_384"):
        encoder_of("vit_pe_lang_large_patch14_448")


def test_an_image_that_is_no_multiple_of_the_patch_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"84 x 90 px.*14.*INPUT\.SIZE"):
        tiny()(torch.zeros(1, 3, 84, 90))


@pytest.mark.parametrize("name", [CORE[-1], SPATIAL[-1]])
@torch.no_grad()
def test_padding_tokens_change_no_valid_feature(name: str):
    encoder = tiny(name)
    valid = torch.ones(1, 84, 84, dtype=torch.bool)
    valid[:, 56:] = valid[:, :, 70:] = False
    pixels = valid[:, None]
    images = torch.randn(1, 3, 84, 84)
    one = encoder(images * pixels, valid)
    other = encoder(images * pixels + 9 * torch.randn(1, 3, 84, 84) * ~pixels, valid)
    torch.testing.assert_close(one["pooled"], other["pooled"])
    mask = valid[:, None, ::14, ::14]
    torch.testing.assert_close(one["patches"] * mask, other["patches"] * mask)


@torch.no_grad()
def test_a_mask_that_is_valid_everywhere_is_the_same_as_none():
    encoder, images = tiny(), torch.randn(2, 3, 84, 84)
    with_mask = encoder(images, torch.ones(2, 84, 84, dtype=torch.bool))
    torch.testing.assert_close(with_mask, encoder(images))


# ---- Frozen


def trained(model: Loupe, item: dict[str, Any]) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    model.backbone.register_forward_hook(lambda _m, _i, output: kept.update(output))
    model.train()
    sum(model([item]).values()).backward()
    return kept


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


def test_an_unfrozen_encoder_receives_gradients(
    build: Callable[..., Loupe], make_item: Callable[..., dict[str, Any]]
):
    model = build("MODEL.FREEZE", [])
    trained(model, make_item())
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_a_part_that_does_not_exist_cannot_be_frozen(build: Callable[..., Loupe]):
    with pytest.raises(ValueError, match=r"MODEL\.FREEZE.*decoder.*backbone"):
        build("MODEL.FREEZE", ["decoder"])


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


@pytest.mark.parametrize("name", [CORE[-1], SPATIAL[-1]])
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


def test_a_file_that_lacks_a_block_is_refused_with_the_keys(tmp_path: Path):
    torch.save(tiny(overrides={**TINY, "depth": 1}).vit.state_dict(), tmp_path / "pe.pt")
    with pytest.raises(CheckpointError, match=r"missing: blocks\.1\.attn\.qkv\.weight"):
        tiny(weights=str(tmp_path / "pe.pt"))
