from __future__ import annotations

import os

import numpy as np
import pytest

from loupe.data.images.masks import read_mask
from loupe.data.sources.catalog import load_dataset
from loupe.data.sources.entries import make_dataset_dict
from loupe.data.sources.formats.manifest import write_manifest


@pytest.fixture
def entries(tmp_path, save):
    mask = save(tmp_path / "set/m.png", np.array([[0, 255]], np.uint8))
    return [
        make_dataset_dict(
            save(tmp_path / "set/f.png"), "f", label=1, mask_file_name=mask, technique="splice"
        ),
        make_dataset_dict(save(tmp_path / "set/a.png"), "a", label=0, source="camera, 1"),
        make_dataset_dict(save(tmp_path / "set/u.png"), "u", label=None),
        make_dataset_dict(save(tmp_path / "set/k.png"), "k", label=1),
        make_dataset_dict(save(tmp_path / "set/w.png"), "w", label=1, wholly_forged=True),
    ]


def test_written_manifest_gives_the_same_set(entries, tmp_path):
    read = load_dataset(write_manifest(entries, tmp_path / "out"))
    for before, after in zip(entries, read, strict=True):
        for key in ("label", "technique", "source"):
            assert before[key] == after[key]
        assert before.get("wholly_forged") == after.get("wholly_forged")
        assert (before["mask_file_name"] is None) == (after["mask_file_name"] is None)
    assert (tmp_path / "out" / "../set/f.png").samefile(read[0]["file_name"])


def test_no_image_is_copied(entries, tmp_path):
    write_manifest(entries, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.csv"]


def test_mask_with_a_rule_is_written_anew(entries, tmp_path):
    write_manifest([entries[0] | {"mask_rule": "inverted"}], tmp_path / "out")
    (entry,) = load_dataset(tmp_path / "out")
    np.testing.assert_array_equal(read_mask(entry["mask_file_name"]), [[1.0, 0.0]])


def test_existing_manifest_is_kept(entries, tmp_path):
    write_manifest(entries, tmp_path / "out")
    with pytest.raises(FileExistsError, match="remove it or choose another"):
        write_manifest(entries, tmp_path / "out")


def test_names_of_any_kind_are_read_back(tmp_path, save):
    names = [os.fsdecode(b"caf\xe9.png"), "=1+1.png", "-a,b.png", "a 'b'\".png", "new\nline.png"]
    entries = [make_dataset_dict(save(tmp_path / name), name, label=0) for name in names]
    read = load_dataset(write_manifest(entries, tmp_path))
    assert [entry["file_name"] for entry in read] == [entry["file_name"] for entry in entries]
    assert "\n=" not in (tmp_path / "manifest.csv").read_text(errors="surrogateescape")
