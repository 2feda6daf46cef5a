"""Every kind of saved predictions is recognised, read and matched; faults are named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from loupe.evaluation.map_files import PredictionError, read_map
from loupe.evaluation.matching import match_predictions
from loupe.evaluation.predictions import find_predictions, split_name, without_suffix
from loupe.writing import write_csv

MAP = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


def save_png(path: Path, pixels: np.ndarray = MAP) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def encode(mask: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def by_stem(folder: Path) -> dict:
    return {without_suffix(entry.name)[-1]: entry for entry in find_predictions(folder).entries}


def test_what_predict_writes_is_read(tmp_path):
    save_png(tmp_path / "maps" / "a.png")
    save_png(tmp_path / "overlays" / "a.png")
    (tmp_path / "predictions.csv").write_text(
        "file,probability,error\n/data/in/a.jpg,0.25,\n/data/in/b.jpg,,truncated\n"
    )
    assert find_predictions(tmp_path).kind == "loupe"
    entries = by_stem(tmp_path)
    assert entries["a"].probability == 0.25
    assert (read_map(entries["a"].source).forgery_map == MAP).all()
    assert entries["b"].error == "truncated"


def test_names_of_any_bytes_in_what_predict_writes_are_matched(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    save_png(tmp_path / "maps" / "map.png")
    (tmp_path / "maps" / "map.png").rename(tmp_path / "maps" / name)  # OpenCV takes UTF-8 alone.
    write_csv(tmp_path / "predictions.csv", ["file", "probability"], [["/in/" + name, 0.25]])
    (found,), _ = match_predictions(["/data/" + name], find_predictions(tmp_path))
    assert found.probability == 0.25
    assert (read_map(found.source).forgery_map == MAP).all()


def test_maps_in_folders_belong_to_images_in_the_same_folders(tmp_path):
    for folder, value in (("x", 10), ("y", 200)):
        save_png(tmp_path / "maps" / folder / "a.png", np.full((2, 2), value, np.uint8))
    (tmp_path / "predictions.csv").write_text(
        "file,probability,error\n/in/x/a.jpg,0.1,\n/in/y/a.jpg,0.9,\n"
    )
    found, _ = match_predictions(["/data/y/a.jpg", "/data/x/a.jpg"], find_predictions(tmp_path))
    assert [entry.probability for entry in found] == [0.9, 0.1]
    assert [int(read_map(entry.source).forgery_map[0, 0]) for entry in found] == [200, 10]


def test_a_challenge_folder_is_read(tmp_path):
    save_png(tmp_path / "masks" / "a.png", (MAP > 50).astype(np.uint8) * 255)
    (tmp_path / "predictions.txt").write_text("a.png,0.1234\nb.png,0.9000\n")
    assert find_predictions(tmp_path).kind == "ddl2025"
    entries = by_stem(tmp_path)
    assert entries["a"].probability == 0.1234
    assert entries["b"].source is None


def test_imdl_benco_output_is_read(tmp_path):
    save_png(tmp_path / "pred" / "a.png")
    (tmp_path / "pred_label_rank0.json").write_text('{"a.jpg": 0.1}')
    (tmp_path / "pred_label_combined.json").write_text('{"a.jpg": 0.75}')
    assert find_predictions(tmp_path).kind == "benco"
    assert by_stem(tmp_path)["a"].probability == 0.75


def test_trufor_output_is_read(tmp_path):
    values = (MAP / 255).astype(np.float32)
    np.savez(tmp_path / "a.jpg.npz", map=values, conf=values, score=0.625, imgsize=(4, 6))
    assert find_predictions(tmp_path).kind == "trufor"
    saved = read_map(by_stem(tmp_path)["a"].source)
    assert (saved.forgery_map == values).all()
    assert saved.probability == 0.625


def test_numpy_files_with_a_table_of_scores_are_read(tmp_path):
    np.save(tmp_path / "a.npy", (MAP / 255).astype(np.float32)[None])
    (tmp_path / "scores.csv").write_text("image,score\na.png,0.5\n")
    assert find_predictions(tmp_path).kind == "npy"
    entry = by_stem(tmp_path)["a"]
    assert entry.probability == 0.5
    assert read_map(entry.source).forgery_map.shape == (4, 6)


def test_plain_pictures_have_no_scores(tmp_path):
    save_png(tmp_path / "a.png")
    assert find_predictions(tmp_path).kind == "png"
    assert by_stem(tmp_path)["a"].probability is None


@pytest.mark.parametrize("as_results", [True, False])
def test_coco_regions_become_a_map_of_the_highest_scores(tmp_path, as_results):
    left, all_over = np.zeros((4, 6), bool), np.ones((4, 6), bool)
    left[:, :2] = True
    regions = [(left, 0.9), (all_over, 0.4)]
    content = [
        {"image_id": "a.jpg" if as_results else 7, "segmentation": encode(mask), "score": score}
        for mask, score in regions
    ]
    if not as_results:
        images = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}]
        content = {"images": images, "annotations": content}
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert find_predictions(tmp_path).kind == "coco"
    entries = by_stem(tmp_path)
    assert entries["a"].probability == 0.9
    expected = np.where(left, np.float32(0.9), np.float32(0.4))
    assert (read_map(entries["a"].source).forgery_map == expected).all()
    if not as_results:
        assert entries["b"].source == []
        assert entries["b"].probability == 0


FAULTY = {
    "empty": ({}, "no known kind"),
    "unknown kind": ({"notes.txt": b"x"}, r"no known kind .*\.txt"),
    "no columns": (
        {"maps/a.txt": b"", "predictions.csv": b"a,b\n1,2\n"},
        r"predictions\.csv: the columns are \['a', 'b'\]",
    ),
    "no number": ({"predictions.txt": b"a.png,high\n"}, "the score of a.png is 'high'"),
    "no comma": ({"predictions.txt": b"a.png 0.5\n"}, r"predictions\.txt:1: 'a\.png 0\.5'"),
    "no name": ({"predictions.txt": b"/,0.5\n"}, "names no file"),
    "twice": ({"predictions.txt": b"a.png,0.5\na.png,0.6\n"}, "two predictions are named a.png"),
    "Latin-1": ({"predictions.txt": b"\xe9.png,0.5\n"}, r"predictions\.txt: not UTF-8"),
    "long cell": (
        {"maps/a.txt": b"", "predictions.csv": b"file,probability\n" + b"a" * 200_000},
        r"predictions\.csv:\d: field larger",
    ),
    "no JSON": ({"a.json": b"{"}, r"a\.json: not JSON"),
    "deep JSON": ({"a.json": b"[" * 100_000}, r"a\.json: not JSON"),
    "a number": ({"a.json": b"3"}, r"a\.json: holds a int"),
    "no COCO": ({"a.json": b'{"images": [{"id": 3}]}'}, r"a\.json: not COCO"),
    "numbered images": (
        {"a.json": b'[{"image_id": 3, "segmentation": {}, "score": 1}]'},
        "image_id 3 names no file",
    ),
}


@pytest.mark.parametrize("kind", FAULTY)
def test_a_fault_of_a_folder_is_named(tmp_path, kind):
    files, message = FAULTY[kind]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PredictionError, match=message):
        find_predictions(tmp_path)


def test_a_list_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("loupe.evaluation.predictions.MAX_LIST_BYTES", 10)
    (tmp_path / "predictions.txt").write_text("a.png,0.1234\n")
    with pytest.raises(PredictionError, match=r"predictions\.txt: larger than"):
        find_predictions(tmp_path)


def test_names_that_were_guarded_against_spreadsheets_are_read_back(tmp_path):
    save_png(tmp_path / "maps" / "=1.png")
    (tmp_path / "predictions.csv").write_text("file,probability,error\n'=1.jpg,0.25,\n")
    (entry,) = find_predictions(tmp_path).entries
    assert entry.name == ("=1.jpg",)
    assert entry.source == tmp_path / "maps" / "=1.png"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(PredictionError, match="nowhere: no such folder"):
        find_predictions(tmp_path / "nowhere")


def test_a_prediction_that_fits_two_images_is_refused(tmp_path):
    save_png(tmp_path / "a.png")
    with pytest.raises(PredictionError, match=r"fits two images: x/a\.jpg and y/a\.jpg"):
        match_predictions(["x/a.jpg", "y/a.jpg"], find_predictions(tmp_path))


def test_two_predictions_that_fit_one_image_are_refused(tmp_path):
    save_png(tmp_path / "x" / "a.png")
    save_png(tmp_path / "y" / "a.png")
    with pytest.raises(PredictionError, match=r"z/a\.jpg: .*'x/a', 'y/a'"):
        match_predictions(["z/a.jpg"], find_predictions(tmp_path))


def test_predictions_that_no_image_has_are_returned(tmp_path):
    for name in ("a", "b"):
        save_png(tmp_path / f"{name}.png")
    found, unused = match_predictions(["c.jpg", "a.tif"], find_predictions(tmp_path))
    assert found[0] is None
    assert unused == ["b"]


def test_images_that_differ_in_their_suffix_have_maps_named_after_the_whole_file(tmp_path):
    for name, value in (("a.jpg", 10), ("a.png", 200)):
        save_png(tmp_path / "maps" / f"{name}.png", np.full((2, 2), value, np.uint8))
    (tmp_path / "predictions.csv").write_text(
        "file,probability,error\n/in/a.jpg,0.1,\n/in/a.png,0.9,\n"
    )
    found, unused = match_predictions(["/in/a.png", "/in/a.jpg"], find_predictions(tmp_path))
    assert [entry.probability for entry in found] == [0.9, 0.1]
    assert [int(read_map(entry.source).forgery_map[0, 0]) for entry in found] == [200, 10]
    assert unused == []


def test_a_map_that_fits_two_rows_is_refused(tmp_path):
    save_png(tmp_path / "maps" / "a.png")
    (tmp_path / "predictions.csv").write_text("file,probability\nx/a.jpg,0.1\ny/a.jpg,0.9\n")
    with pytest.raises(PredictionError, match=r"the map a fits x/a\.jpg and y/a\.jpg"):
        find_predictions(tmp_path)


@pytest.mark.parametrize(
    ("name", "parts", "bare"),
    [
        ("a.jpg", ("a.jpg",), ("a",)),
        ("/x/y/a.jpg", ("x", "y", "a.jpg"), ("x", "y", "a")),
        ("./x/a.b.png", ("x", "a.b.png"), ("x", "a.b")),
        ("x\\a.png", ("x", "a.png"), ("x", "a")),
        ("0001", ("0001",), ("0001",)),
        ("v1.5", ("v1.5",), ("v1.5",)),
    ],
)
def test_a_name_is_folders_and_file(name, parts, bare):
    assert split_name(name) == parts
    assert without_suffix(parts) == bare
