from __future__ import annotations

import os
from pathlib import Path

import pytest

from loupe.data.sources.catalog import list_path, load_dataset
from loupe.data.sources.entries import DatasetError


def touch(root: Path, *names: str) -> Path:
    """Makes empty files: listing must not open any."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def by_id(root: Path) -> dict[str, dict]:
    return {entry["image_id"]: entry for entry in load_dataset(root)}


def mask_stem(entry: dict) -> str | None:
    return None if entry["mask_file_name"] is None else Path(entry["mask_file_name"]).stem


@pytest.mark.parametrize("masks", ["masks", "mask"])
def test_ddl_split_is_read(tmp_path, masks):
    touch(tmp_path, "real/a.png", "fake/b.jpg", f"{masks}/b.png")
    entries = by_id(tmp_path)
    assert entries["real/a.png"]["label"] == 0
    assert entries["real/a.png"]["mask_file_name"] is None
    assert entries["fake/b.jpg"]["label"] == 1
    assert entries["fake/b.jpg"]["mask_file_name"] == str(tmp_path / masks / "b.png")


def test_images_pair_by_stem_even_when_one_mask_is_missing(tmp_path, caplog):
    touch(tmp_path, "real/z.png", *(f"fake/{c}.jpg" for c in "abcd"))
    touch(tmp_path, *(f"masks/{c}.png" for c in "abd"))
    entries = by_id(tmp_path)
    stems = [mask_stem(entries[f"fake/{c}.jpg"]) for c in "abcd"]
    assert stems == ["a", "b", None, "d"]
    assert entries["fake/c.jpg"]["label"] == 1
    assert "1 forged images have no mask" in caplog.text
    assert "c.jpg" in caplog.text


def test_orphan_masks_are_refused_by_name_five_at_most(tmp_path):
    touch(tmp_path, "real/z.png", "fake/a.png", "masks/a.png")
    touch(tmp_path, *(f"masks/orphan{number}.png" for number in range(7)))
    with pytest.raises(DatasetError, match="orphan0.*: a mask of no image in fake") as error:
        load_dataset(tmp_path)
    assert str(error.value).count(".png") == 5
    assert "and 2 more" in str(error.value)


def test_two_files_of_one_stem_are_refused(tmp_path):
    touch(tmp_path, "real/z.png", "fake/a.png", "fake/a.jpg", "masks/a.png")
    with pytest.raises(DatasetError, match=r"fake/a\.jpg = a\.png: files share their stem"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("files", [("fake/a.png", "fake/a.jpg"), ("masks/a.png", "masks/a.bmp")])
def test_files_of_one_stem_are_listed_without_a_mask(tmp_path, files):
    touch(tmp_path, "real/z.png", "fake/a.png", "masks/a.png", *files)
    forged = [entry for entry in list_path(tmp_path).entries if entry["label"] == 1]
    assert {entry["mask_file_name"] for entry in forged} == {None}


@pytest.mark.parametrize("masks", [(), ("mask", "masks")])
def test_no_or_two_folders_of_masks_are_refused(tmp_path, masks):
    touch(tmp_path, "real/z.png", "fake/a.png", *(f"{name}/a.png" for name in masks))
    with pytest.raises(DatasetError, match=f"needs one folder of masks.*there are {len(masks)}"):
        load_dataset(tmp_path)


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="there are no images in it"):
        load_dataset(tmp_path)


def test_missing_path_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="nothing' is neither a data set"):
        load_dataset(tmp_path / "nothing")


def test_folder_of_splits_asks_for_one(tmp_path):
    touch(tmp_path, "train/real/a.png", "valid/real/a.png")
    with pytest.raises(DatasetError, match="holds the splits train, valid; name one"):
        load_dataset(tmp_path)


def test_plain_folder_is_unlabelled_and_searched_in_depth(tmp_path):
    touch(tmp_path, "b.jpg", "deep/er/a.PNG", "notes.txt", ".hidden.png", "b.png")
    entries = by_id(tmp_path)
    assert list(entries) == ["b.jpg", "b.png", "deep/er/a.PNG"]
    assert {entry["label"] for entry in entries.values()} == {None}


def test_manifest_is_read_with_paths_relative_to_it(tmp_path):
    (tmp_path / "m.csv").write_text(
        "image,mask,label,technique,source\n"
        "images/f.png,masks/f.png,1,splice,camera 3\n"
        "images/a.png,,0,,\n"
        "images/u.png,,1,removal,\n"
        "images/n.png,,,,\n"
    )
    forged, authentic, unknown, unlabelled = load_dataset(tmp_path / "m.csv")
    assert forged == {
        "file_name": str(tmp_path / "images/f.png"),
        "mask_file_name": str(tmp_path / "masks/f.png"),
        "label": 1,
        "image_id": "images/f.png",
        "technique": "splice",
        "source": "camera 3",
    }
    assert (authentic["label"], authentic["mask_file_name"]) == (0, None)
    assert (unknown["label"], unknown["mask_file_name"]) == (1, None)
    assert unlabelled["label"] is None


def test_manifest_without_labels_takes_them_from_the_masks(tmp_path):
    (tmp_path / "m.csv").write_text("image,mask\nf.png,f_mask.png\na.png,\n")
    assert [entry["label"] for entry in load_dataset(tmp_path / "m.csv")] == [1, 0]


def test_folder_with_a_manifest_is_read_by_it(tmp_path):
    touch(tmp_path, "images/a.png", "masks/a.png", "images/unlisted.png")
    (tmp_path / "manifest.csv").write_text("image,mask,label\nimages/a.png,masks/a.png,1\n")
    assert [entry["image_id"] for entry in load_dataset(tmp_path)] == ["images/a.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,mask\na.png,\n", "must name the column image"),
        ("image,label\na.png,fake\n", r"line 2: .*label is 'fake'"),
        ("image,label\n,1\n", "line 2: image is ''"),
        ("image,label\na.png,1,more\n", "line 2"),
        ("", "must name the column image"),
        ("image,label\n", "no images"),
        ("image,label\na.png,1\na.png,0\n", r"m\.csv: a\.png: listed more than once; keep one"),
    ],
)
def test_faulty_manifest_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_dataset(tmp_path / "m.csv")


LINES = "image{0}mask{0}label{0}note\nimäges/a.png{0}m.png{0}1{0}x\nb.png{0}{0}0{0}\n"


@pytest.mark.parametrize(
    ("delimiter", "encoding"),
    [
        *((",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-16"), ("|", "utf-8")),
        (",", "latin-1"),
    ],
)
def test_manifests_as_spreadsheets_save_them_are_read(tmp_path, delimiter, encoding, caplog):
    touch(tmp_path, "imäges/a.png")
    text = LINES.format(delimiter).replace("\n", "\r\n")
    (tmp_path / "m.csv").write_bytes(text.encode(encoding))
    forged, authentic = load_dataset(tmp_path / "m.csv")
    assert forged["file_name"] == str(tmp_path / "imäges/a.png")
    assert (forged["label"], forged["mask_file_name"]) == (1, str(tmp_path / "m.png"))
    assert authentic["label"] == 0
    assert "columns that are ignored: note" in caplog.text


def test_a_manifest_of_names_that_are_no_text_is_read(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    touch(tmp_path, name)
    (tmp_path / "m.csv").write_bytes(b"image\ncaf\xe9.png\n")
    (entry,) = load_dataset(tmp_path / "m.csv")
    assert entry["file_name"] == str(tmp_path / name)


def test_windows_paths_of_a_manifest_are_read(tmp_path):
    (tmp_path / "m.csv").write_text("image,mask\nimages\\a.png,masks\\a.png\n")
    (entry,) = load_dataset(tmp_path / "m.csv")
    assert entry["file_name"] == str(tmp_path / "images/a.png")
    assert entry["mask_file_name"] == str(tmp_path / "masks/a.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image\na.png\ncaf\xe9.png\n", "line 3: it is not UTF-8, and read as Latin-1"),
        (b"image\na.png\nC:\\x\\b.png\n", r"line 3: C:.x.b\.png is on another machine"),
        ("image\na.png\n".encode("utf-16-le"), "line 1 is no text in UTF-8"),
        (b"image\na.png\nb\0.png\n", "line 1 is no text|line 3: image is"),
        (b"image\n" + b"a.png\n" * 2000 + b"b\0.png\n", r"line 2002(: image is| is no CSV)"),
        (b"image\n" + b"x" * 200_000, "line 2 is no CSV .*field larger"),
    ],
)
def test_a_line_that_cannot_be_told_is_named(tmp_path, content, message):
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=rf"m\.csv: .*{message}|m\.csv: {message}"):
        list_path(tmp_path / "m.csv").strict(tmp_path / "m.csv")


def test_unknown_list_file_is_refused(tmp_path):
    touch(tmp_path, "list.xlsx")
    with pytest.raises(DatasetError, match=r"must be \.csv"):
        load_dataset(tmp_path / "list.xlsx")


def test_tp_gt_au_is_read_with_plain_and_gt_stems(tmp_path):
    touch(tmp_path, "Tp/a.jpg", "Tp/b.tif", "Gt/a.png", "Gt/b_gt.png", "Au/c.jpg")
    entries = by_id(tmp_path)
    assert mask_stem(entries["Tp/a.jpg"]) == "a"
    assert mask_stem(entries["Tp/b.tif"]) == "b_gt"
    assert entries["Au/c.jpg"]["label"] == 0


def test_sid_split_has_wholly_forged_images(tmp_path):
    touch(tmp_path, "real/r.jpg", "full_synthetic/s.jpg", "tampered/t.jpg", "masks/t_mask.png")
    entries = by_id(tmp_path)
    assert entries["full_synthetic/s.jpg"]["wholly_forged"] is True
    assert mask_stem(entries["tampered/t.jpg"]) == "t_mask"
    assert [entries[name]["label"] for name in sorted(entries)] == [1, 0, 1]


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("image", "mask")])
def test_images_without_a_mask_beside_masked_ones_are_authentic(tmp_path, images, masks):
    touch(tmp_path, f"{images}/a.png", f"{images}/b.png", f"{masks}/b.png")
    assert [entry["label"] for entry in load_dataset(tmp_path)] == [0, 1]


def test_benco_json_is_read(tmp_path):
    (tmp_path / "set.json").write_text('[["a.png", "Negative"], ["b.png", "m/b.png"]]')
    authentic, forged = load_dataset(tmp_path / "set.json")
    assert (authentic["label"], authentic["mask_file_name"]) == (0, None)
    assert (forged["label"], forged["mask_file_name"]) == (1, str(tmp_path / "m/b.png"))


def test_forensichub_json_is_read(tmp_path):
    (tmp_path / "set.json").write_text(
        '[{"path": "a.png", "mask": "Negative", "label": 1}, {"path": "/b.png", "mask": "m.png"}]'
    )
    unknown, forged = load_dataset(tmp_path / "set.json")
    assert (unknown["label"], unknown["mask_file_name"]) == (1, None)
    assert forged["file_name"] == "/b.png"


def test_mvss_text_is_read(tmp_path):
    (tmp_path / "set.txt").write_text("with space.png m.png 1\nb.png None 0\n\n")
    forged, authentic = load_dataset(tmp_path / "set.txt")
    assert forged["image_id"] == "with space.png"
    assert (authentic["label"], authentic["mask_file_name"]) == (0, None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "not JSON"),
        ("a.json", '"text"', "must be a list"),
        ("a.json", "[3]", "entry 0: it is '3'"),
        ("a.json", '[["a.png", 3]]', "entry 0: image is 'a.png' and mask is 3"),
        ("a.json", '[["a.png", ""], {"path": 3}]', "entry 1: image is 3"),
        ("a.json", '[["", ""]]', "entry 0: image is ''"),
        ("a.json", '[{"path": "a.png", "label": 2}]', "entry 0: the label is 2"),
        ("a.json", '[{"path": "a.png", "label": -1}]', "entry 0: the label is -1"),
        ("a.json", '[{"path": "a.png", "label": "fake"}]', "entry 0: the label is 'fake'"),
        ("a.json", '[{"path": "a.png", "label": [1]}]', "entry 0: the label is"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.json", r'[["a\u0000.png", ""]]', r"entry 0: image is 'a\\x00\.png'"),
        ("a.json", r'[["a.png", "m\u0000.png"]]', "entry 0: image is 'a.png'"),
        ("a.txt", "only two\n", "line 1: it is 'only two'"),
        ("a.txt", "a.png None 2\n", "line 1: the label is '2'"),
        ("a.txt", "a\0.png None 0\n", "line 1: image is"),
    ],
)
def test_faulty_list_is_refused_with_its_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_dataset(tmp_path / name)


def test_fakeshield_folders_are_read(tmp_path):
    touch(tmp_path, "casia_Tp/image/a.jpg", "casia_Tp/mask/a.png", "casia_Au/image/b.jpg")
    entries = by_id(tmp_path)
    assert mask_stem(entries["casia_Tp/image/a.jpg"]) == "a"
    assert entries["casia_Au/image/b.jpg"]["label"] == 0
    assert {entry["source"] for entry in entries.values()} == {"casia"}


def test_benco_list_of_sets_joins_them(tmp_path):
    touch(tmp_path, "casia/Tp/a.jpg", "casia/Gt/a.png")
    (tmp_path / "more.json").write_text('[["b.png", "Negative"]]')
    (tmp_path / "balanced.json").write_text(
        '[["ManiDataset", "casia"], ["JsonDataset", "more.json"]]'
    )
    forged, authentic = load_dataset(tmp_path / "balanced.json")
    assert (forged["image_id"], forged["source"]) == ("casia/Tp/a.jpg", "casia")
    assert (authentic["image_id"], authentic["label"]) == ("more/b.png", 0)


def test_benco_test_list_names_its_sets(tmp_path):
    touch(tmp_path, "c/Tp/a.jpg", "c/Gt/a.png")
    (tmp_path / "test.json").write_text('{"CASIA": "c"}')
    (entry,) = load_dataset(tmp_path / "test.json")
    assert (entry["image_id"], entry["source"]) == ("CASIA/Tp/a.jpg", "CASIA")


def test_manifest_can_say_that_all_is_forged(tmp_path):
    (tmp_path / "m.csv").write_text("image,mask,label\na.png,*,1\n")
    (entry,) = load_dataset(tmp_path / "m.csv")
    assert entry["wholly_forged"] is True
    assert entry["mask_file_name"] is None
