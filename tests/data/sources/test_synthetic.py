"""The stream: names, options, photographs of one's own."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from loupe.data.sources.entries import DatasetError
from loupe.data.sources.photographs import PHOTOGRAPHS, SPLITS, gather_photographs, load_photographs
from loupe.data.sources.synthetic import list_synthetic, make_sample, render, technique_of
from loupe.synthesis import AUTHENTIC, DEFAULT_TECHNIQUES


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        photograph = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), photograph)
    return tmp_path


def test_splits_share_no_photograph():
    names = [entry for split in SPLITS for entry in PHOTOGRAPHS[split]]
    assert len(names) == len(set(names)) == 18
    motorcycles = [s for s in SPLITS for _, name in PHOTOGRAPHS[s] if name.startswith("motor")]
    assert motorcycles == ["train", "train"]


@pytest.mark.parametrize("split", SPLITS)
def test_photographs_ship_with_the_dependencies(split):
    for photograph in load_photographs(split):
        assert photograph.ndim == 3
        assert photograph.shape[2] == 3
        assert min(photograph.shape[:2]) >= 300
        assert not photograph.flags.writeable


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="the split is 'dev'"):
        load_photographs("dev")


def test_stream_gives_an_image_by_its_name_alone():
    name = "synthetic://test?size=48&seed=3&index=7"
    image, mask = render(name)
    again, _ = render(name)
    np.testing.assert_array_equal(image, again)
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {0.0, 1.0}


def test_streams_of_splits_and_seeds_differ():
    images = [make_sample(*key, 48).image for key in (("test", 0, 1), ("test", 1, 1))]
    images.append(make_sample("valid", 0, 1, 48).image)
    assert len({image.tobytes() for image in images}) == 3


def test_stream_takes_the_techniques_in_turn():
    count = 2 * len(DEFAULT_TECHNIQUES)
    samples = [make_sample("test", 0, index, 48) for index in range(count)]
    assert [sample.label for sample in samples] == [0, 1] * len(DEFAULT_TECHNIQUES)
    assert [sample.technique for sample in samples[1::2]] == list(DEFAULT_TECHNIQUES)


def test_difficulty_is_a_part_of_the_streams_name():
    easy, hard = (render(f"synthetic://test?size=48&index=1&difficulty={d}")[0] for d in (0, 100))
    assert (easy != hard).any()


@pytest.mark.parametrize("option", ["uncropped", "reshared"])
def test_histories_are_a_part_of_the_streams_name_and_ordinary_by_default(option: str):
    name = "synthetic://test?size=48&index=0"
    images = [render(name + words)[0] for words in ("", f"&{option}=0", f"&{option}=100")]
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[0] != images[2]).any()
    listed = list_synthetic(f"synthetic://test?size=48&count=1&{option}=100")[0]["file_name"]
    np.testing.assert_array_equal(render(listed)[0], images[2])


def test_clones_are_made_only_where_they_are_asked_for():
    asked = list_synthetic("synthetic://test?size=48&count=4&techniques=clone")
    assert [entry["technique"] for entry in asked] == [AUTHENTIC, "clone"] * 2
    assert "clone" not in {technique_of(index) for index in range(40)}


def test_listed_names_render_what_the_listing_says(folder):
    options = f"size=48&seed=2&count=8&difficulty=50&without=removal+generated&photographs={folder}"
    for entry in list_synthetic(f"synthetic://test?{options}"):
        _, mask = render(entry["file_name"])
        assert mask.any() == entry["label"]


def test_chosen_techniques_are_taken_in_turn_as_often_as_named():
    entries = list_synthetic("synthetic://test?count=8&techniques=splice+splice+copy-move")
    assert [entry["technique"] for entry in entries[1::2]] == [
        "splice",
        "splice",
        "copy-move",
        "splice",
    ]
    assert all("techniques=splice+splice+copy-move&" in entry["file_name"] for entry in entries)


def test_a_technique_can_be_left_out():
    entries = list_synthetic("synthetic://test?count=40&without=removal")
    assert {entry["technique"] for entry in entries[1::2]} == set(DEFAULT_TECHNIQUES) - {"removal"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("techniques=magic", "unknown: magic"),
        ("without=magic", "unknown: magic"),
        ("techniques=splice&without=splice", "left: 0"),
        ("techniques=", "left: 0"),
        ("photograph=here", "whole numbers"),
        ("size=8", "size is 8; it must be at least 32"),
        ("difficulty=300", "difficulty is 300; it must be from 0 to 100"),
        ("uncropped=101", "uncropped is 101; it must be from 0 to 100"),
    ],
)
def test_wrong_options_are_refused(option, message):
    with pytest.raises(DatasetError, match=message):
        list_synthetic(f"synthetic://test?{option}")


def test_photographs_of_a_folder_join_those_of_the_split(folder):
    photographs = gather_photographs("test", str(folder))
    shipped = len(load_photographs("test"))
    assert len(photographs) == shipped + 3
    assert photographs[shipped].shape == (90, 120, 3)
    assert photographs[shipped] is photographs[shipped]
    assert not photographs[shipped].flags.writeable


def test_of_a_manifest_only_authentic_rows_count_relative_to_it(folder):
    manifest = folder / "list.csv"
    manifest.write_text("image,mask,label\n0.png,,0\n1.png,1.png,1\n2.png,,\n")
    photographs = gather_photographs("test", str(manifest))
    assert len(photographs) == len(load_photographs("test")) + 1
    expected = cv2.imread(str(folder / "0.png"))[:, :, ::-1]
    np.testing.assert_array_equal(photographs[len(photographs) - 1], expected)


def test_missing_photographs_are_named_when_the_stream_is_listed(tmp_path):
    with pytest.raises(DatasetError, match="nowhere"):
        list_synthetic(f"synthetic://test?photographs={tmp_path}/nowhere")


def test_folder_without_photographs_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="no authentic image"):
        list_synthetic(f"synthetic://test?photographs={tmp_path}")


@pytest.mark.parametrize("content", ["no image", "small"])
def test_unreadable_photograph_is_named(folder, content):
    path = folder / "9.png"
    if content == "small":
        cv2.imwrite(str(path), np.zeros((20, 200, 3), np.uint8))
    else:
        path.write_text(content)
    with pytest.raises(DatasetError, match=r"9\.png"):
        list_synthetic(f"synthetic://test?photographs={folder}")


def test_a_photograph_damaged_behind_its_header_is_named_when_it_is_read(folder):
    path = folder / "9.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:600])
    photographs = gather_photographs("test", str(folder))
    with pytest.raises(DatasetError, match=r"9\.png"):
        photographs[len(photographs) - 1]


def test_a_path_with_special_characters_survives_the_name(folder):
    odd = folder / "a b+c#d"
    odd.mkdir()
    (folder / "0.png").rename(odd / "0.png")
    name = f"synthetic://test?size=48&count=2&photographs={folder}/a b%2Bc%23d"
    assert [render(entry["file_name"])[0].shape for entry in list_synthetic(name)] == [
        (48, 48, 3)
    ] * 2


def test_views_are_a_stream_of_twins_and_leave_other_names_alone():
    plain, views = (
        [entry["file_name"] for entry in list_synthetic(f"synthetic://train?size=64&count=4{end}")]
        for end in ("", "&views=1")
    )
    assert not any("views" in name for name in plain)
    assert all("&views=1&" in name for name in views)
    (authentic, nothing), (forged, mask) = (render(name) for name in views[:2])
    assert not nothing.any()
    assert mask.any()
    assert (authentic == forged).all(axis=2)[mask == 0].mean() > 0.1
    assert (authentic != forged).any(axis=2)[mask == 1].mean() > 0.3


def test_of_three_classes_one_is_generated_as_a_whole_and_names_without_it_stay():
    entries = list_synthetic("synthetic://test?size=48&count=7&classes=3")
    kinds = [(entry["label"], entry.get("wholly_forged", False)) for entry in entries]
    assert kinds == [*2 * [(0, False), (1, True), (1, False)], (0, False)]
    assert "classes=3&index=1" in entries[1]["file_name"]
    image, mask = render(entries[1]["file_name"])
    assert mask.all()
    assert np.array_equal(image, render(entries[1]["file_name"])[0])
    forged = render(entries[2]["file_name"])[1]
    assert 0 < forged.mean() < 1
    assert "classes" not in list_synthetic("synthetic://test?size=48&count=1")[0]["file_name"]
    for wrong in ("classes=4", "classes=3&views=1"):
        with pytest.raises(DatasetError, match="classes must be 2, or 3"):
            list_synthetic(f"synthetic://test?{wrong}")
