"""Splitting a manifest by the photographs that its images are made of."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from loupe.data.sources.catalog import load_dataset
from loupe.data.sources.entries import make_dataset_dict
from tests.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("datasets/split_by_source.py")


def rows(*names: str) -> list[dict]:
    return [make_dataset_dict(name, name, label=0) for name in names]


def test_images_connected_through_others_stay_together(script: ModuleType) -> None:
    chain = rows("a_ani_00001.jpg", "b_ani_00001_cha_00002.jpg", "c_cha_0002_pla_00003.jpg")
    alone = rows("d_nat_00009.jpg")
    groups = script.groups_of(chain + alone, script.CASIA_NAMES)
    assert [len(group) for group in groups] == [3, 1]


def test_no_photograph_is_in_both_parts_and_no_image_is_lost(script: ModuleType) -> None:
    images = rows(*(f"x_ani_{i:05d}_cha_{i // 3:05d}.jpg" for i in range(60)))
    train, test = script.split(images, script.CASIA_NAMES, 0.3)
    seen = [
        set().union(*(script.photographs(row, script.CASIA_NAMES) for row in part))
        for part in (train, test)
    ]
    assert not seen[0] & seen[1]
    assert sorted(row["file_name"] for row in train + test) == sorted(
        row["file_name"] for row in images
    )
    assert 0.2 < len(test) / len(images) < 0.4


def test_a_name_without_photographs_is_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"holiday\.jpg: no photograph in its name"):
        script.groups_of(rows("holiday.jpg"), script.CASIA_NAMES)


def test_written_manifests_point_to_the_images_and_leave_seen_photographs_out(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"images/a_ani_{i:05d}.jpg" for i in range(10)]
    for folder, listed in (("first", names), ("second", [*names, "images/b_sec_00077.jpg"])):
        (tmp_path / folder).mkdir()
        lines = ["image,mask,label,technique,source", *(f"{name},,0,," for name in listed)]
        (tmp_path / folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    words = ["split", "first/manifest.csv", "--output", "out", "--unseen", "second/manifest.csv"]
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    train = load_dataset(tmp_path / "out" / "train.csv")
    unseen = load_dataset(tmp_path / "out" / "second_unseen.csv")
    assert Path(train[0]["file_name"]).parent.resolve() == tmp_path / "first" / "images"
    assert len(unseen) == 11 - len(train)


def test_nothing_need_be_left_for_testing(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name in (("tested", "a_ani_00001.jpg"), ("train", "b_ani_00001.jpg")):
        (tmp_path / folder).mkdir()
        lines = ["image,mask,label", f"{name},,0", f"{folder}_cha_{len(folder):05d}.jpg,,0"]
        (tmp_path / folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    words = [str(tmp_path / "tested" / "manifest.csv"), "--test-share", "0"]
    words += ["--output", str(tmp_path / "out"), "--unseen", str(tmp_path / "train/manifest.csv")]
    monkeypatch.setattr(sys, "argv", ["split_by_source.py", *words])
    script.main()
    assert len((tmp_path / "out" / "test.csv").read_text().splitlines()) == 1
    unseen = (tmp_path / "out" / "train_unseen.csv").read_text()
    assert "train_cha_00005" in unseen
    assert "ani_00001" not in unseen


def test_masks_survive_the_split_those_of_wholly_forged_images_too(
    script: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "all.csv").write_text(
        "image,mask,label\nani_00001.jpg,*,1\nani_00002.jpg,m.png,1\nani_00003.jpg,,1\n"
    )
    script.main([str(tmp_path / "all.csv"), "--output", str(tmp_path / "out"), "--test-share", "0"])
    whole, masked, unknown = load_dataset(tmp_path / "out/train.csv")
    assert whole["wholly_forged"]
    assert Path(masked["mask_file_name"]).resolve() == tmp_path / "m.png"
    assert (unknown["mask_file_name"], unknown["label"]) == (None, 1)
