from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from loupe.data.sources.catalog import load_dataset, register_forgery_datasets
from loupe.data.sources.entries import DatasetError
from loupe.data.sources.formats.published import PUBLISHED


@pytest.fixture
def ddl_root(tmp_path, save, monkeypatch):
    for name in ("real/a.png", "fake/b.png", "masks/b.png"):
        save(tmp_path / "ddl/train" / name)
    save(tmp_path / "ddl/test/c.png")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def _clean_catalog():
    yield
    for name in PUBLISHED:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.usefixtures("ddl_root")
def test_named_set_is_found_below_the_environments_root():
    assert sorted(entry["label"] for entry in load_dataset("ddl_train")) == [0, 1]


@pytest.mark.usefixtures("ddl_root")
def test_ddl_test_split_is_unlabelled():
    assert [entry["label"] for entry in load_dataset("ddl_test")] == [None]


def test_missing_named_set_says_where_its_files_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetError, match="ddl_train: .*put there: real/ fake/ masks/, or set"):
        load_dataset("ddl_train")


def test_registering_twice_is_the_same_as_once(ddl_root):
    register_forgery_datasets(ddl_root)
    register_forgery_datasets(ddl_root)
    assert len(DatasetCatalog.get("ddl_train")) == 2
    assert MetadataCatalog.get("ddl_train").evaluator_type == "forgery"


def test_registering_reads_no_file(tmp_path):
    register_forgery_datasets(tmp_path / "nowhere")
    assert "ddl_valid" in DatasetCatalog.list()


def test_importing_registers_nothing():
    assert not set(PUBLISHED) & set(DatasetCatalog.list())


@pytest.fixture
def register():
    """Registers a set as another program does."""
    yield lambda entries: DatasetCatalog.register("theirs", lambda: entries)
    DatasetCatalog.remove("theirs")


def test_dicts_of_detectron2_take_their_label_from_the_mask(tmp_path, save, register):
    masks = [save(tmp_path / f"{n}.png", np.full((4, 5), n, np.uint8)) for n in range(2)]
    keys = {"file_name": "x.png", "height": 4, "width": 5}
    register([{**keys, "image_id": n, "sem_seg_file_name": mask} for n, mask in enumerate(masks)])
    authentic, forged = load_dataset("theirs")
    assert (authentic["label"], forged["label"]) == (0, 1)
    assert forged["mask_file_name"] == str(masks[1])
    assert (forged["image_id"], forged["height"]) == ("1", 4)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"file_name": "x.png", "annotations": []}, "keys file_name, annotations; it needs"),
        ({"file_name": "x.png", "label": 2}, "entry 0: the label is 2"),
        ({"file_name": "x.png", "sem_seg_file_name": "no.png"}, "no.png: the file does not exist"),
    ],
)
def test_dicts_that_say_too_little_are_refused_by_what_they_say(register, entry, message):
    register([entry])
    with pytest.raises(DatasetError, match=message):
        load_dataset("theirs")


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(DatasetError, match="'ddl_trian' is neither .*ddl_train"):
        load_dataset("ddl_trian")


@pytest.mark.parametrize(
    "name",
    ["synthetic://all?size=64", "synthetic://train?sise=64", "synthetic://train?size=-1"],
)
def test_malformed_synthetic_name_is_refused(name):
    with pytest.raises(DatasetError, match="synthetic data are named"):
        load_dataset(name)
