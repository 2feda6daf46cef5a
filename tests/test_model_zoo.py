"""Weights of the repository are found by name, and only if they are what was published."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from loupe.checkpoint import (
    CheckpointError,
    load_weights,
    register_shipped_weights,
    save_weights,
)
from loupe.commands.command_line import UsageError
from loupe.commands.publish import publish
from loupe.model_zoo import CONFIGS, SUMS, ShippedWeightsError, shipped_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / SUMS).write_text(f"{digest}  tiny.safetensors\n")
    return tmp_path


def test_shipped_weights_are_found_by_name(folder: Path):
    assert shipped_file("loupe://tiny.safetensors", folder) == folder / "tiny.safetensors"


def test_changed_weights_are_refused(folder: Path):
    (folder / "tiny.safetensors").write_bytes(b"Weights")
    with pytest.raises(ShippedWeightsError, match=r"tiny\.safetensors: SHA-256 is .* git checkout"):
        shipped_file("loupe://tiny.safetensors", folder)


def test_missing_weights_are_named(folder: Path):
    (folder / "tiny.safetensors").unlink()
    with pytest.raises(ShippedWeightsError, match=r"tiny\.safetensors is missing; git checkout"):
        shipped_file("loupe://tiny.safetensors", folder)


def test_an_installation_without_the_folder_says_what_to_do(tmp_path: Path):
    with pytest.raises(ShippedWeightsError, match="install Loupe from a clone"):
        shipped_file("loupe://tiny.safetensors", tmp_path)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(CheckpointError, match=r"loupe://huge\.pt"):
        load_weights("loupe://huge.pt")


def test_published_weights_are_those_of_training_in_half_precision(folder: Path, tmp_path: Path):
    weights = {"a": torch.randn(3), "steps": torch.tensor(7)}
    save_weights(weights, tmp_path / "model.pth")
    publish(tmp_path / "model.pth", "small.safetensors", folder)
    loaded = load_weights(shipped_file("loupe://small.safetensors", folder))
    assert loaded["a"].dtype is torch.float16
    torch.testing.assert_close(loaded["a"].float(), weights["a"], atol=0, rtol=1e-3)
    assert loaded["steps"] == 7
    assert shipped_file("loupe://tiny.safetensors", folder).is_file()


def test_publishing_again_replaces_the_hash(folder: Path, tmp_path: Path):
    for value in (1.0, 2.0):
        save_weights({"a": torch.tensor([value])}, tmp_path / "model.pth")
        publish(tmp_path / "model.pth", "tiny.safetensors", folder)
    assert len((folder / SUMS).read_text().splitlines()) == 1
    assert load_weights(shipped_file("loupe://tiny.safetensors", folder))["a"] == 2


def test_weights_too_large_for_half_precision_are_refused(folder: Path, tmp_path: Path):
    save_weights({"a": torch.tensor([1e6])}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"not in half precision: a"):
        publish(tmp_path / "model.pth", "tiny.safetensors", folder)
    assert (folder / "tiny.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(
    "name", ["{}/a.safetensors", "../a.safetensors", "a.pth", ".safetensors", "a b.safetensors"]
)
def test_a_name_that_leaves_the_folder_is_refused(name: str, tmp_path: Path):
    save_weights({"a": torch.ones(1)}, tmp_path / "model.pth")
    place = tmp_path / "weights"
    place.mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"without a folder, that ends in \.safetensors"):
        publish(tmp_path / "model.pth", name.format(tmp_path), place)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_detectron2_itself_finds_shipped_weights():
    from detectron2.checkpoint import DetectionCheckpointer

    from loupe import load_config

    cfg = load_config(CONFIGS / "loupe_tiny.yaml", ["MODEL.DEVICE", "cpu"])
    for _ in range(2):
        register_shipped_weights()
    model = build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    weights = load_weights(cfg.MODEL.WEIGHTS)
    assert all(torch.equal(v, weights[k].to(v.dtype)) for k, v in model.state_dict().items())
