"""Features of a frozen backbone that are kept on disk are those that it would give again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from loupe.modeling.feature_cache import FeatureCache, fingerprint
from tests.trainer.toy import TINY_MODELS, toy_config

STILL = [(f"INPUT.AUGMENTATION.{name}", 0.0) for name in ("FLIP", "SCALE", "JPEG", "BLUR", "NOISE")]
STAGES: dict[str, tuple[object, ...]] = {
    "stage 1": ("MODEL.FREEZE", ["backbone"], "MODEL.SEGMENTER.ENABLED", False),
    "stage 2": ("MODEL.FREEZE", ["backbone", "classifier"], "MODEL.CLASSIFIER.LOSS_WEIGHT", 0.0),
}


def config_of(folder: Path, *options: Any, model: str = "Loupe") -> CfgNode:
    still = [value for pair in STILL for value in pair]
    return toy_config(folder, *TINY_MODELS[model], *still, "INPUT.RESIZE", "pad", *options)


def built(cfg: CfgNode) -> Any:
    torch.manual_seed(0)
    return build_model(cfg)


def cached(cfg: CfgNode, folder: Path, precision: str = "float32", gigabytes: float = 1.0) -> Any:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.FEATURE_CACHE.FOLDER = str(folder)
    cfg.MODEL.FEATURE_CACHE.PRECISION = precision
    cfg.MODEL.FEATURE_CACHE.LIMIT_GB = gigabytes
    return built(cfg)


def step(model: Any, items: list[Any]) -> dict[str, Tensor]:
    """Losses of a batch, and the gradients of all that trains."""
    torch.manual_seed(1)  # Of the points that masks are compared at.
    losses = model.train()(items)
    sum(losses.values()).backward()
    named = model.named_parameters()
    gradients = {name: p.grad for name, p in named if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()} | gradients


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npy"))


@pytest.fixture
def items(make_item) -> list[Any]:
    return [make_item(0, size=64, valid_size=(40, 64)), make_item(1, size=64, label=0)]


@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_gradients_are_those_without_a_cache(tmp_path: Path, items, stage: str):
    cfg = config_of(tmp_path, *STAGES[stage])
    expected = step(built(cfg), items)
    first = step(cached(cfg, tmp_path / "kept"), items)
    assert len(files_in(tmp_path / "kept")) == 2
    again = cached(cfg, tmp_path / "kept")
    again.backbone.forward = None  # It must not be asked again.
    second = step(again, items)
    assert expected.keys() == first.keys() == second.keys()
    for name, value in expected.items():
        assert torch.equal(first[name], value), name
        assert torch.equal(second[name], value), name


def test_predictions_are_those_without_a_cache_in_any_batch(tmp_path: Path, items):
    cfg = config_of(tmp_path, *STAGES["stage 2"])
    with torch.no_grad():
        expected = built(cfg).eval()(items)
        model = cached(cfg, tmp_path / "kept").eval()
        model(items)
        model.backbone.forward = None
        # The second image has no padding, so alone its batch marks none.
        found = [model([item])[0] for item in items]
    for one, other in zip(found, expected, strict=True):
        assert one["forgery_score"] == pytest.approx(other["forgery_score"], abs=1e-6)
        torch.testing.assert_close(one["forgery_map"], other["forgery_map"], rtol=0, atol=1e-5)


def test_half_precision_rounds_features_to_three_digits(tmp_path: Path, items):
    cfg = config_of(tmp_path, *STAGES["stage 2"])
    exact, rounded = built(cfg).eval(), cached(cfg, tmp_path / "kept", "float16").eval()
    inputs = exact.preprocess(items)
    with torch.no_grad():
        expected, first, second = (m.encode(inputs) for m in (exact, rounded, rounded))
    assert np.load(files_in(tmp_path / "kept")[0]).dtype == np.float16
    for name, value in expected.items():
        assert torch.equal(first[name], second[name])
        assert not torch.equal(first[name], value)
        torch.testing.assert_close(first[name], value, rtol=5e-4, atol=1e-7)


def test_the_tower_of_an_expert_is_kept_likewise(tmp_path: Path, items):
    cfg = config_of(tmp_path, "MODEL.FREEZE", ["backbone"], model="ForgeryExpert")
    expected = step(built(cfg), items)
    step(cached(cfg, tmp_path / "kept"), items)
    model = cached(cfg, tmp_path / "kept")
    model.backbone.forward = None
    for name, value in step(model, items).items():
        assert torch.equal(value, expected[name]), name


# ---- The cache by itself


def doubled(images: Tensor, valid: Tensor | None) -> Tensor:
    return images * 2


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "kept", precision="float16", limit_gb=1.0)


def test_another_image_padding_encoder_or_precision_has_another_name(cache, tmp_path: Path):
    encoder, image = nn.Linear(2, 2), torch.zeros(3, 4, 4)
    padded = torch.arange(4) < 3
    names = [cache.path(encoder, image, None), cache.path(encoder, image + 1, None)]
    names += [cache.path(encoder, image.reshape(3, 2, 8), None)]
    names += [cache.path(encoder, image, padded.expand(4, 4))]
    names += [
        FeatureCache(cache.folder, precision="float32", limit_gb=1).path(encoder, image, None)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        names.append(cache.path(encoder, image, None))
    assert cache.path(encoder, image, torch.ones(4, 4, dtype=torch.bool)) == names[0]
    # Weights that are loaded after the first image count.
    nn.Sequential(encoder).load_state_dict({"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)})
    names.append(cache.path(encoder, image, None))
    assert len(set(names)) == len(names)
    assert fingerprint(nn.ReLU()) != fingerprint(nn.GELU())


def test_a_folder_at_its_limit_grows_no_more_and_everything_is_encoded(tmp_path, caplog):
    images = torch.rand(4, 3, 8, 8)
    size = 128 + 3 * 8 * 8 * 4
    cache = FeatureCache(tmp_path, precision="float32", limit_gb=2.5 * size / 1e9)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(cache(nn.Identity(), images, None, doubled), 2 * images)
    assert len(files_in(tmp_path)) == 2
    assert ["reached its limit" in record.getMessage() for record in caplog.records] == [True]
    # Another process sees what is there.
    other = FeatureCache(tmp_path, precision="float32", limit_gb=2.5 * size / 1e9)
    other(nn.Identity(), images + 1, None, doubled)
    assert len(files_in(tmp_path)) == 2


def test_a_damaged_file_is_written_again_and_large_numbers_stay(cache, caplog):
    images = torch.rand(1, 3, 4, 4) * 1e6
    assert torch.equal(cache(nn.Identity(), images, None, doubled), 2 * images)
    (path,) = files_in(cache.folder)
    path.write_bytes(path.read_bytes()[:90])
    assert torch.equal(cache(nn.Identity(), images, None, doubled), 2 * images)
    assert str(path) in caplog.text
    assert np.load(path).dtype == np.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.FREEZE", []), "add backbone to MODEL.FREEZE"),
        (("INPUT.AUGMENTATION.JPEG", 0.5), "INPUT.AUGMENTATION.JPEG 0"),
        (("INPUT.RESIZE", "crop"), "INPUT.RESIZE crop"),
        (("DATASETS.TRAIN", ("synthetic://train?size=64",)), "loupe synthesize"),
    ],
    ids=["trained", "augmentation", "crop", "stream"],
)
def test_what_is_not_the_same_each_time_is_refused(tmp_path: Path, options, message: str):
    cfg = config_of(tmp_path, *STAGES["stage 1"], *options)
    with pytest.raises(ValueError, match=message):
        cached(cfg, tmp_path / "kept")
