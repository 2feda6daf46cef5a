"""COCO JSON in and out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image
from pycocotools import mask as run_lengths

from datasets.prepare_coco import main
from loupe.data.images.masks import read_mask
from loupe.data.sources.catalog import load_dataset
from loupe.data.sources.entries import DatasetError, make_dataset_dict
from loupe.data.sources.formats.coco import decode_regions, encode_regions, make_coco, write_coco

HEIGHT, WIDTH = 30, 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Masks are cached here, not at home."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LOUPE_CACHE", str(folder))
    return folder


@pytest.fixture
def forged() -> np.ndarray:
    """(H, W) bool: two regions, one of them a ring, and a pixel that touches at its corner."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[2:12, 3:20] = True
    mask[5:8, 6:10] = False
    mask[12, 20] = True
    mask[20:25, 30:36] = True
    return mask


@pytest.fixture
def entries(tmp_path, save, forged) -> list[dict]:
    """Forged with mask, authentic, wholly forged, forged without mask, unlabelled."""
    folder = tmp_path / "set"
    pixels = np.full((HEIGHT, WIDTH, 3), 80, np.uint8)
    images = [save(folder / f"images/{name}.png", pixels) for name in "abcde"]
    mask = save(folder / "masks/a.png", forged.astype(np.uint8) * 255)
    return [
        make_dataset_dict(
            images[0], "a", label=1, mask_file_name=mask, technique="splice", source="s"
        ),
        make_dataset_dict(images[1], "b", label=0),
        make_dataset_dict(images[2], "c", label=1, wholly_forged=True),
        make_dataset_dict(images[3], "d", label=1),
        make_dataset_dict(images[4], "e", label=None),
    ]


@pytest.fixture
def write(tmp_path):
    """Writes a COCO JSON of one image of the given annotations."""

    def write(*segmentations: object, **image: object) -> Path:
        path = tmp_path / "coco.json"
        image = {"id": 7, "file_name": "x.png", "height": HEIGHT, "width": WIDTH} | image
        image = {key: value for key, value in image.items() if value is not None}
        annotations = [
            {"id": number, "image_id": 7, "category_id": 3, "segmentation": segmentation}
            for number, segmentation in enumerate(segmentations)
        ]
        content = {"images": [image], "annotations": annotations, "categories": []}
        path.write_text(json.dumps(content))
        return path

    return write


def read_one(path: Path) -> np.ndarray:
    (entry,) = load_dataset(path)
    assert entry["label"] == 1
    return read_mask(entry["mask_file_name"]) >= 0.5


def test_what_is_written_is_read_back(entries, tmp_path, forged):
    path = tmp_path / "set/instances.json"
    write_coco(entries, path)
    read = load_dataset(path)
    assert [entry["label"] for entry in read] == [1, 0, 1, 1, None]
    assert [entry["mask_file_name"] is None for entry in read] == [False, True, False, True, True]
    assert [Path(entry["file_name"]).resolve() for entry in read] == [
        Path(entry["file_name"]).resolve() for entry in entries
    ]
    assert (read[0]["technique"], read[0]["source"]) == ("splice", "s")
    assert ((read_mask(read[0]["mask_file_name"]) >= 0.5) == forged).all()
    assert read_mask(read[2]["mask_file_name"]).min() == 1


def test_detectron2_reads_forged_regions_as_instances(entries, tmp_path, forged):
    path = tmp_path / "set/instances.json"
    write_coco(entries, path)
    records = load_coco_json(str(path), str(path.parent), "forged_regions_of_a_test")
    assert MetadataCatalog.get("forged_regions_of_a_test").thing_classes == ["forged"]
    MetadataCatalog.remove("forged_regions_of_a_test")
    assert len(records) == len(entries)
    instances = records[0]["annotations"]
    assert [instance["category_id"] for instance in instances] == [0, 0]
    union = sum(run_lengths.decode(instance["segmentation"]) for instance in instances)
    assert (union.astype(bool) == forged).all()
    assert records[1]["annotations"] == []


def test_each_connected_region_is_an_instance_with_its_box_the_largest_first(forged):
    large, small = encode_regions(forged)
    assert large["area"] == 10 * 17 - 12 + 1  # the pixel at the corner belongs to it
    assert large["bbox"] == [3, 2, 18, 11]
    assert small["area"] == 30
    assert small["bbox"] == [30, 20, 6, 5]
    assert large["area"] == run_lengths.area(large["segmentation"])
    assert small["bbox"] == run_lengths.toBbox(small["segmentation"]).tolist()


def test_a_mask_without_forged_pixels_has_no_regions():
    assert encode_regions(np.zeros((4, 5), bool)) == []


def test_polygons_are_read(write):
    mask = read_one(write([[4, 3, 14, 3, 14, 9, 4, 9]]))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[3:9, 4:14] = True
    assert (mask == expected).all()


def test_run_lengths_of_both_kinds_are_read(write, forged):
    compressed = run_lengths.encode(np.asfortranarray(forged, np.uint8))
    compressed["counts"] = compressed["counts"].decode()
    changes = np.flatnonzero(np.diff(forged.ravel("F"), prepend=False))
    counts = np.diff([0, *changes, forged.size]).tolist()
    plain = {"size": [HEIGHT, WIDTH], "counts": counts}
    for code in (compressed, plain):
        assert (read_one(write(code)) == forged).all()


def test_the_forged_pixels_of_an_image_are_the_union_of_its_annotations(write):
    polygons = [[[0, 0, 10, 0, 10, 10, 0, 10]], [[5, 5, 20, 5, 20, 20, 5, 20]]]
    assert read_one(write(*polygons)).sum() == 100 + 225 - 25


def test_an_image_without_annotations_is_authentic(write):
    (entry,) = load_dataset(write())
    assert (entry["label"], entry["mask_file_name"]) == (0, None)


def test_masks_are_drawn_once_and_the_set_is_not_written_to(write, cache):
    path = write([[4, 3, 14, 3, 14, 9, 4, 9]])
    before = sorted(path.parent.iterdir())
    (file,) = [Path(entry["mask_file_name"]) for entry in load_dataset(path)]
    assert cache in file.parents
    time = file.stat().st_mtime_ns
    load_dataset(path)
    assert file.stat().st_mtime_ns == time
    assert sorted(p for p in path.parent.iterdir() if p != cache) == before


def test_another_content_has_other_masks(write):
    first = read_one(write([[4, 3, 14, 3, 14, 9, 4, 9]]))
    second = read_one(write([[4, 3, 15, 3, 15, 9, 4, 9]]))
    assert (first != second).any()


@pytest.mark.parametrize(
    ("segmentations", "image", "message"),
    [
        ([[[1, 2, 3, 4]]], {}, "image 7: a polygon has fewer than three points"),
        ([{"size": [2, 3], "counts": [6]}], {}, "run lengths of 2 x 3 pixels"),
        (["text"], {}, "a segmentation is 'text'"),
        ([[[0, 0, 9, 0, 9, 9]]], {"height": None}, "image 7 has no 'height'"),
        ([], {"file_name": None}, "image 7 has no 'file_name'"),
        ([[[0, 0, 9, 0, 9, 9]]], {"label": 0}, "label 0 and 1 annotations"),
        ([[[0, 0, 9e9, 0, 9e9, 9e9]]], {}, "a polygon reaches far outside"),
        ([[[0, 0, 9, 0, 9, 9]]], {"height": 10**6, "width": 10**6}, "more than 178956970 pixels"),
        ([[[0, 0, 9, 0, 9, 9]]], {"height": "30"}, "its size is"),
        ([{"size": [HEIGHT, WIDTH], "counts": [5, 10**9]}], {}, "image 7: "),
        ([], {"label": "fake"}, "image 7: the label is 'fake'"),
        ([], {"id": [7]}, "an image has no 'id'"),
        ([[[0, 0, 9, 0, 9, 9]]], {"id": 8}, "name 1 images that are not listed"),
    ],
)
def test_faults_are_refused_by_name(write, segmentations, image, message):
    path = write(*segmentations, **image)
    with pytest.raises(DatasetError, match=message) as error:
        load_dataset(path)
    assert str(error.value).startswith(str(path))


def test_images_of_one_id_are_refused(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": name} for name in "ab"]}))
    with pytest.raises(DatasetError, match="share the id 1"):
        load_dataset(path)


def test_paths_are_relative_to_the_file(entries, tmp_path):
    content = make_coco(entries, tmp_path / "elsewhere")
    assert content["images"][0]["file_name"] == "../set/images/a.png"


def test_decoding_nothing_gives_an_empty_mask():
    assert not decode_regions([], 3, 4).any()


def test_the_tool_writes_a_set_and_overwrites_none(tmp_path, save, capsys):
    save(tmp_path / "images/a.png", np.zeros((6, 8, 3), np.uint8))
    save(tmp_path / "masks/a.png", np.full((6, 8), 255, np.uint8))
    words = [str(tmp_path), "--output", str(tmp_path / "coco.json")]
    main(words)
    assert "1 images" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="exists"):
        main(words)


def test_numbers_of_a_written_file_are_plain(entries, tmp_path):
    path = tmp_path / "set/instances.json"
    write_coco(entries, path)
    shape = Image.open(entries[0]["file_name"]).size
    image = json.loads(path.read_text())["images"][0]
    assert (image["width"], image["height"]) == shape
