"""Plain transformers of timm as backbone, and low-rank adapters in any backbone."""

from __future__ import annotations

import pytest
import timm
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model

from loupe import add_loupe_config
from loupe.checkpoint import CheckpointError, load_into, merge_adapters
from loupe.modeling.lora import add_adapters
from loupe.modeling.plain_vit import PlainViT
from tests.modeling.expert.sizes import OWN

# A model with a class token and registers, one with an attention pool, one with rotary positions.
NAMES = (
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224",
    "vit_small_patch16_dinov3",
)
OURS = (*OWN, "INPUT.SIZE", 64, "MODEL.FREEZE", [])


def tiny(name: str) -> PlainViT:
    torch.manual_seed(0)
    side = 56 if "14" in name else 64
    return PlainViT(name=name, image_size=side, weights="", depth=1).eval()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_are_timms_and_padding_says_nothing(name):
    backbone = tiny(name)
    patch = backbone.patch_size
    images = torch.randn(2, 3, 3 * patch, 4 * patch)
    features = backbone(images)
    tokens = backbone.vit.forward_features(images)
    patches = features["patches"].flatten(2).transpose(1, 2)
    assert torch.equal(patches, tokens[:, backbone.vit.num_prefix_tokens :])
    torch.testing.assert_close(features["pooled"], _pooled(backbone, tokens))
    valid = torch.ones(2, 3 * patch, 4 * patch, dtype=torch.bool)
    valid[:, :, 2 * patch :] = False
    other = images.clone()
    other[:, :, :, 2 * patch :] = 5.0
    first, second = backbone(images, valid), backbone(other, valid)
    for key, kept in (("patches", slice(0, 2)), ("pooled", slice(None))):
        torch.testing.assert_close(first[key][..., kept], second[key][..., kept])


def _pooled(backbone: PlainViT, tokens: torch.Tensor) -> torch.Tensor:
    if backbone.vit.attn_pool is not None:
        return backbone.vit.fc_norm(backbone.vit.attn_pool(tokens))
    return tokens[:, 0]


@pytest.mark.parametrize("name", ["vit_none", "resnet18", "swin_tiny_patch4_window7_224"])
def test_what_is_no_plain_transformer_is_refused(name):
    with pytest.raises(ValueError, match=r"MODEL\.VIT\.NAME"):
        PlainViT(name=name, image_size=0, weights="", depth=0)


def test_published_weights_need_their_own_statistics(tmp_path):
    name = "vit_small_patch16_dinov3"
    torch.save(tiny(name).vit.state_dict(), tmp_path / "vit.pth")
    cfg = add_loupe_config(get_cfg())
    options = ["MODEL.VIT.NAME", name, "MODEL.VIT.WEIGHTS", str(tmp_path / "vit.pth")]
    options += ["MODEL.BACKBONE.NAME", "build_plain_vit", "INPUT.SIZE", 64, "MODEL.VIT.DEPTH", 1]
    cfg.merge_from_list([*options, "MODEL.DEVICE", "cpu"])
    with pytest.raises(ValueError, match=r"PIXEL_MEAN .* was trained with \[123\.675"):
        build_backbone(cfg)
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    assert build_backbone(cfg).embed_dim == 384


@pytest.mark.parametrize("name", NAMES)
def test_every_adapter_learns_and_nothing_else_of_the_backbone(name):
    backbone = add_adapters(tiny(name), rank=2, alpha=4.0)
    with torch.no_grad():
        for key, parameter in backbone.named_parameters():
            if "lora_B" in key:
                parameter.normal_()
    features = backbone(torch.randn(1, 3, *(4 * backbone.patch_size,) * 2))
    sum(value.square().sum() for value in features.values()).backward()
    learns = {key for key, p in backbone.named_parameters() if p.grad is not None and p.grad.any()}
    assert learns == {key for key, _ in backbone.named_parameters() if "lora_" in key}
    assert len(learns) == 4


def test_merged_adapters_give_the_same_predictions_without_them(make_item):
    cfg = add_loupe_config(get_cfg())
    cfg.merge_from_list([*OURS, "MODEL.LORA.RANK", 2, "MODEL.LORA.ALPHA", 6.0])
    adapted = build_model(cfg).eval()
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.normal_()
    cfg.MODEL.LORA.RANK = 0
    plain = build_model(cfg).eval()
    load_into(plain, merge_adapters(adapted.state_dict()))
    item = make_item(size=64, valid_size=(64, 64))
    with torch.no_grad():
        (first,), (second,) = adapted([item]), plain([item])
    torch.testing.assert_close(first["forgery_map"], second["forgery_map"])
    with pytest.raises(CheckpointError, match="no adapters"):
        merge_adapters(plain.state_dict())


def test_adapters_of_a_frozen_backbone_are_refused():
    cfg = add_loupe_config(get_cfg())
    cfg.merge_from_list([*OURS, "MODEL.LORA.RANK", 2, "MODEL.FREEZE", ["backbone"]])
    with pytest.raises(ValueError, match=r"MODEL\.FREEZE"):
        build_model(cfg)


def test_attention_that_passes_by_an_adapter_is_refused():
    vit = timm.create_model("beit_base_patch16_224", num_classes=0, depth=1, pretrained=False)
    with pytest.raises(ValueError, match="pass by an adapter"):
        add_adapters(vit, rank=2, alpha=4.0)
