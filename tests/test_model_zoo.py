"""Weights of the repository are found by name, and only if they are what was published."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from loupe.checkpoint import CheckpointError, load_weights
from loupe.model_zoo import SUMS, ShippedWeightsError, shipped_file


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
