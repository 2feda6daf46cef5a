from __future__ import annotations

import filecmp

import numpy as np
import pytest

from loupe.data.images.masks import read_image_and_mask
from loupe.data.sources.catalog import load_dataset
from loupe.data.sources.export import write_synthetic
from loupe.data.training.sheet import draw_sheet


@pytest.fixture
def written(tmp_path):
    write_synthetic(tmp_path / "set", "test", 12, 48, seed=0)
    return tmp_path / "set"


def test_written_set_is_loaded_by_its_manifest(written):
    entries = load_dataset(str(written))
    assert [entry["label"] for entry in entries] == [0, 1] * 6
    for entry in entries:
        image, mask = read_image_and_mask(entry["file_name"], entry["mask_file_name"], "strict")
        assert image.shape == (48, 48, 3)
        if entry["label"] == 1:
            assert set(np.unique(mask)) == {0.0, 1.0}


def test_files_are_a_mix_of_jpeg_and_png_for_both_kinds(written):
    entries = load_dataset(str(written))
    kinds = {(entry["label"], entry["file_name"][-3:]) for entry in entries}
    assert kinds == {(0, "jpg"), (0, "png"), (1, "jpg"), (1, "png")}


def test_same_seed_writes_the_same_files(written, tmp_path):
    write_synthetic(tmp_path / "again", "test", 12, 48, seed=0)
    again = tmp_path / "again"
    names = [path.relative_to(written) for path in written.rglob("*.*")]
    same, different, missing = filecmp.cmpfiles(written, again, names, shallow=False)
    assert (len(same), different, missing) == (12 + 6 + 1, [], [])


def test_existing_set_is_not_overwritten(written):
    with pytest.raises(FileExistsError, match="exists; remove the folder or choose another"):
        write_synthetic(written, "test", 2, 48, seed=1)


def test_sheet_shows_every_image_also_an_unreadable_one(written):
    entries = load_dataset(str(written))
    (written / "images").joinpath(entries[0]["file_name"].rsplit("/", 1)[1]).write_bytes(b"")
    sheet = draw_sheet(entries, tile=32, columns=5)
    assert sheet.shape == (3 * 50, 5 * 32, 3)
