from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loupe.data.images.masks import read_mask
from loupe.data.sources.catalog import load_named
from loupe.data.sources.entries import DatasetError
from loupe.data.sources.formats.published import LAYOUTS, PUBLISHED, read_layout

# name: (files of the tree, {forged image: mask or None}, {authentic images})
TREES = {
    "casia_v1": (
        ["Au/a.jpg", "Tp/CM/b.jpg", "Tp/Sp/c.jpg"]
        + ["CASIA 1.0 groundtruth/CM/b_gt.png", "CASIA 1.0 groundtruth/Sp/c_gt.png"],
        {
            "Tp/CM/b.jpg": "CASIA 1.0 groundtruth/CM/b_gt.png",
            "Tp/Sp/c.jpg": "CASIA 1.0 groundtruth/Sp/c_gt.png",
        },
        {"Au/a.jpg"},
    ),
    "casia_v2": (
        ["Au/Au_a.jpg", "Tp/Tp_D_b.tif", "Tp/Tp_S_c.jpg", "Gt/Tp_D_b_gt.png", "Gt/Tp_S_c_gt.png"],
        {"Tp/Tp_D_b.tif": "Gt/Tp_D_b_gt.png", "Tp/Tp_S_c.jpg": "Gt/Tp_S_c_gt.png"},
        {"Au/Au_a.jpg"},
    ),
    "columbia": (
        ["4cam_auth/a.tif", "4cam_splc/b.tif", "4cam_splc/edgemask/b_edgemask.jpg"],
        {"4cam_splc/b.tif": "4cam_splc/edgemask/b_edgemask.jpg"},
        {"4cam_auth/a.tif"},
    ),
    "coverage": (
        ["image/1.tif", "image/1t.tif", "mask/1forged.tif", "mask/1copy.tif", "mask/1paste.tif"],
        {"image/1t.tif": "mask/1forged.tif"},
        {"image/1.tif"},
    ),
    "dso1": (
        ["DSO-1/normal-1.png", "DSO-1/splicing-1.png", "DSO-1-Fake-Images-Masks/splicing-1.png"],
        {"DSO-1/splicing-1.png": "DSO-1-Fake-Images-Masks/splicing-1.png"},
        {"DSO-1/normal-1.png"},
    ),
    "imd2020": (
        ["x1/x1_orig.jpg", "x1/y_0.png", "x1/y_0_mask.png", "x1/z_0.jpg"],
        {"x1/y_0.png": "x1/y_0_mask.png", "x1/z_0.jpg": None},
        {"x1/x1_orig.jpg"},
    ),
    "korus": (
        ["C/pristine/a.TIF", "C/tampered-realistic/a.TIF", "C/ground-truth/a.PNG"],
        {"C/tampered-realistic/a.TIF": "C/ground-truth/a.PNG"},
        {"C/pristine/a.TIF"},
    ),
    "autosplice": (
        ["Authentic/1.jpg", "Forged_JPEG100/1_0.jpg", "Forged_JPEG75/1_0.jpg", "Mask/1_mask.png"],
        {"Forged_JPEG100/1_0.jpg": "Mask/1_mask.png"},
        {"Authentic/1.jpg"},
    ),
    "defacto": (
        ["splicing_2_img/img/a.tif", "splicing_2_annotations/probe_mask/a.jpg"]
        + ["splicing_2_annotations/donor_mask/a.tif"],
        {"splicing_2_img/img/a.tif": "splicing_2_annotations/probe_mask/a.jpg"},
        set(),
    ),
}


def grow(root: Path, files: list[str]) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_published_tree_is_read(tmp_path, name):
    files, forged, authentic = TREES[name]
    grow(tmp_path, files)
    entries = read_layout(tmp_path, LAYOUTS[name]).entries
    found = {
        entry["image_id"]: entry["mask_file_name"]
        and Path(entry["mask_file_name"]).relative_to(tmp_path).as_posix()
        for entry in entries
        if entry["label"] == 1
    }
    assert found == forged
    assert {entry["image_id"] for entry in entries if entry["label"] == 0} == authentic


@pytest.mark.parametrize(("name", "rule"), [("columbia", "green"), ("dso1", "inverted")])
def test_masks_of_another_polarity_carry_their_rule(tmp_path, name, rule):
    grow(tmp_path, TREES[name][0])
    rules = {e["label"]: e.get("mask_rule") for e in read_layout(tmp_path, LAYOUTS[name]).entries}
    assert rules == {0: None, 1: rule}


def test_missing_masks_are_reported(tmp_path, caplog):
    grow(tmp_path, TREES["imd2020"][0])
    read_layout(tmp_path, LAYOUTS["imd2020"])
    assert "1 forged images have no mask (x1/z_0.jpg)" in caplog.text


def test_foreign_tree_is_refused(tmp_path):
    grow(tmp_path, ["something/else.png"])
    with pytest.raises(DatasetError, match="no image fits the expected tree"):
        read_layout(tmp_path, LAYOUTS["columbia"])


@pytest.fixture
def nist(tmp_path):
    folder = tmp_path / "NC2016_Test0613/reference/manipulation"
    folder.mkdir(parents=True)
    (folder / "NC2016-manipulation-ref.csv").write_text(
        "TaskID|ProbeFileName|ProbeMaskFileName|IsTarget\n"
        "manipulation|probe/a.jpg|reference/manipulation/mask/a.png|Y\n"
        "manipulation|probe/b.jpg||N\n"
    )
    return tmp_path


def test_nist16_is_read_by_its_reference_list(nist):
    forged, authentic = load_named("nist16", nist)
    assert forged["mask_rule"] == "inverted"
    assert forged["mask_file_name"].endswith("reference/manipulation/mask/a.png")
    assert (forged["label"], authentic["label"]) == (1, 0)
    assert authentic["mask_file_name"] is None


def test_nist16_list_without_its_columns_is_refused(nist):
    path = nist / "NC2016_Test0613/reference/manipulation/NC2016-manipulation-ref.csv"
    path.write_text("a|b\n1|2\n")
    with pytest.raises(DatasetError, match="lacks 'ProbeFileName'"):
        load_named("nist16", nist)


def test_every_named_set_says_what_it_expects():
    assert all(dataset.tree and dataset.path for dataset in PUBLISHED.values())


def test_green_mask_is_read(tmp_path, save):
    pixels = np.array([[[0, 200, 0], [200, 0, 0], [0, 0, 0]]], np.uint8)
    save(tmp_path / "edge.png", pixels)
    np.testing.assert_array_equal(read_mask(tmp_path / "edge.png", "green"), [[1, 0, 0]])
