"""Files of weights are data: bounded before they are unpacked, and right in every byte."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from loupe.checkpoint import CheckpointError, load_weights, save_weights

WEIGHTS = {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.float16), "n": torch.tensor(3)}
ENDINGS = pytest.mark.parametrize("ending", [".safetensors", ".pth"])


def outcome(path: Path, content: bytes) -> str:
    """What loading a file of this content does: "refused", "equal" or "different"."""
    path.write_bytes(content)
    try:
        loaded = load_weights(path)
    except CheckpointError:
        return "refused"
    same = loaded.keys() == WEIGHTS.keys() and all(
        loaded[name].dtype == value.dtype and torch.equal(loaded[name], value)
        for name, value in WEIGHTS.items()
    )
    return "equal" if same else "different"


@ENDINGS
def test_whatever_byte_is_changed_is_noticed_or_harmless(ending: str, tmp_path: Path):
    path = tmp_path / f"weights{ending}"
    save_weights(WEIGHTS, path)
    whole = path.read_bytes()
    outcomes = []
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        outcomes.append(outcome(path, bytes(flipped)))
    assert "different" not in outcomes
    # Dates and padding of the archive are harmless; values never are.
    values = whole.index(WEIGHTS["a"].numpy().tobytes())
    assert set(outcomes[values : values + 16]) == {"refused"}


@ENDINGS
def test_a_file_cut_anywhere_is_refused(ending: str, tmp_path: Path):
    path = tmp_path / f"weights{ending}"
    save_weights(WEIGHTS, path)
    whole = path.read_bytes()
    assert {outcome(path, whole[:kept]) for kept in range(0, len(whole), 7)} == {"refused"}


@ENDINGS
def test_a_text_file_is_refused(ending: str, tmp_path: Path):
    assert outcome(tmp_path / f"weights{ending}", b"404: not found\n") == "refused"


@ENDINGS
def test_a_file_that_cannot_be_written_leaves_the_one_before(
    ending: str, tmp_path: Path, monkeypatch
):
    path = tmp_path / f"weights{ending}"
    save_weights(WEIGHTS, path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_weights({"a": torch.zeros(9)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Trap:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_never_run(legacy: bool, tmp_path: Path):
    path, folder = tmp_path / "weights.pt", tmp_path / "harm"
    content = {"model": {"weight": torch.ones(2)}, "payload": Trap(folder)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"weights\.pt: "):
        load_weights(path)
    assert not folder.exists()
    torch.load(path, weights_only=False)
    assert folder.exists(), "the pickle was harmless: this test proves nothing"


def looped() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


VIEWED = torch.zeros(99_999)
GREEDY = {
    "a buffer named by its length": (bytearray(9), r"holds more than tensors \(.*bytearray\)"),
    "a small storage seen as a large tensor": (torch.zeros(1).expand(10**12), "unfold"),
    "one tensor seen many times": ([VIEWED[:] for _ in range(9)], "unfold"),
    "a list that holds itself": (looped(), "nest without end"),
}


@pytest.mark.parametrize(("content", "reason"), GREEDY.values(), ids=GREEDY.keys())
def test_what_takes_more_memory_than_the_file_is_refused(content: Any, reason: str, tmp_path: Path):
    torch.save({"model": {"a": torch.ones(2)}, "more": content}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=reason):
        load_weights(tmp_path / "weights.pth")


def refuse_to_load(*_: object, **__: object) -> None:
    raise AssertionError("the file was unpacked before its size was known")


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch):
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "plain.pth")
    path = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    assert torch.load(path, weights_only=True)["a"].numel() == 1_000_000
    monkeypatch.setattr("torch.load", refuse_to_load)
    with pytest.raises(CheckpointError, match="unpacks to more than its size"):
        load_weights(path)


def test_an_index_too_large_to_be_one_is_refused_before_it_is_read(tmp_path: Path, monkeypatch):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps("x" * 9_000_000, 2))
    monkeypatch.setattr("torch.load", refuse_to_load)
    with pytest.raises(CheckpointError, match="one too large"):
        load_weights(path)


@pytest.mark.parametrize("length", [2**63, 10**9, 9_000_000])
def test_a_header_longer_than_the_file_or_any_header_is_refused(length: int, tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{" + b" " * 9_000_000)
    with pytest.raises(CheckpointError, match="its header is"):
        load_weights(path)


def test_files_of_others_have_no_checksum_and_load(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "theirs.safetensors")
    assert torch.equal(load_weights(tmp_path / "theirs.safetensors")["a"], torch.ones(2))
