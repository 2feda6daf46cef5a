"""Every kind of saved predictions is recognised, read and matched; faults are named."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from loupe.evaluation.map_files import read_map
from loupe.evaluation.predictions import (
    PredictionError,
    find_predictions,
    match_predictions,
    split_name,
    without_suffix,
)

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
    assert entries["a"].score == 0.25
    assert (read_map(entries["a"].source).forgery_map == MAP).all()
    assert entries["b"].error == "truncated"


def test_maps_in_folders_belong_to_images_in_the_same_folders(tmp_path):
    for folder, value in (("x", 10), ("y", 200)):
        save_png(tmp_path / "maps" / folder / "a.png", np.full((2, 2), value, np.uint8))
    (tmp_path / "predictions.csv").write_text(
        "file,probability,error\nx/a.jpg,0.1,\ny/a.jpg,0.9,\n"
    )
    found, _ = match_predictions(["/data/y/a.jpg", "/data/x/a.jpg"], find_predictions(tmp_path))
    assert [entry.score for entry in found] == [0.9, 0.1]
    assert [int(read_map(entry.source).forgery_map[0, 0]) for entry in found] == [200, 10]


def test_a_challenge_folder_is_read(tmp_path):
    save_png(tmp_path / "masks" / "a.png", (MAP > 50).astype(np.uint8) * 255)
    (tmp_path / "predictions.txt").write_text("a.png,0.1234\nb.png,0.9000\n")
    assert find_predictions(tmp_path).kind == "ddl2025"
    entries = by_stem(tmp_path)
    assert entries["a"].score == 0.1234
    assert entries["b"].source is None


def test_imdl_benco_output_is_read(tmp_path):
    save_png(tmp_path / "pred" / "a.png")
    (tmp_path / "pred_label_rank0.json").write_text('{"a.jpg": 0.1}')
    (tmp_path / "pred_label_combined.json").write_text('{"a.jpg": 0.75}')
    assert find_predictions(tmp_path).kind == "benco"
    assert by_stem(tmp_path)["a"].score == 0.75


def test_trufor_output_is_read(tmp_path):
    values = (MAP / 255).astype(np.float32)
    np.savez(tmp_path / "a.jpg.npz", map=values, conf=values, score=0.625, imgsize=(4, 6))
    assert find_predictions(tmp_path).kind == "trufor"
    saved = read_map(by_stem(tmp_path)["a"].source)
    assert (saved.forgery_map == values).all()
    assert saved.score == 0.625


def test_numpy_files_with_a_table_of_scores_are_read(tmp_path):
    np.save(tmp_path / "a.npy", (MAP / 255).astype(np.float32)[None])
    (tmp_path / "scores.csv").write_text("image,score\na.png,0.5\n")
    assert find_predictions(tmp_path).kind == "npy"
    entry = by_stem(tmp_path)["a"]
    assert entry.score == 0.5
    assert read_map(entry.source).forgery_map.shape == (4, 6)


def test_plain_pictures_have_no_scores(tmp_path):
    save_png(tmp_path / "a.png")
    assert find_predictions(tmp_path).kind == "png"
    assert by_stem(tmp_path)["a"].score is None


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
    assert entries["a"].score == 0.9
    expected = np.where(left, np.float32(0.9), np.float32(0.4))
    assert (read_map(entries["a"].source).forgery_map == expected).all()
    if not as_results:
        assert entries["b"].source == []
        assert entries["b"].score == 0


def test_uncompressed_run_lengths_are_read():
    region = {"segmentation": {"size": [2, 2], "counts": [1, 2, 1]}, "score": 1.0}
    assert read_map([region]).forgery_map.tolist() == [[0, 1], [1, 0]]


def test_grey_in_colour_channels_is_grey_and_sixteen_bits_are_kept(tmp_path):
    save_png(tmp_path / "a.png", np.repeat(MAP[:, :, None], 3, axis=2))
    save_png(tmp_path / "b.png", MAP.astype(np.uint16) * 257)
    assert (read_map(tmp_path / "a.png").forgery_map == MAP).all()
    assert read_map(tmp_path / "b.png").forgery_map.dtype == np.uint16


def faulty(folder: Path, kind: str) -> None:
    """Makes a folder with one fault."""
    if kind == "empty" or kind == "missing":
        pass
    elif kind == "unknown kind":
        (folder / "notes.txt").write_text("x")
    elif kind == "no columns":
        (folder / "maps").mkdir()
        (folder / "predictions.csv").write_text("a,b\n1,2\n")
    elif kind == "no number":
        (folder / "predictions.txt").write_text("a.png,high\n")
    elif kind == "no comma":
        (folder / "predictions.txt").write_text("a.png 0.5\n")
    elif kind == "twice":
        (folder / "predictions.txt").write_text("a.png,0.5\na.png,0.6\n")
    elif kind == "numbered images":
        content = [{"image_id": 3, "segmentation": {}, "score": 1}]
        (folder / "results.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "no known kind"),
        ("unknown kind", r"no known kind .*\.txt"),
        ("no columns", r"predictions\.csv: the columns are \['a', 'b'\]"),
        ("no number", r"predictions\.txt: the score of a\.png is 'high'"),
        ("no comma", r"predictions\.txt:1: 'a\.png 0\.5'"),
        ("twice", "two predictions are named a.png"),
        ("numbered images", "image_id 3 names no file"),
    ],
)
def test_a_fault_of_a_folder_is_named(tmp_path, kind, message):
    faulty(tmp_path, kind)
    with pytest.raises(PredictionError, match=message):
        find_predictions(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(PredictionError, match="nowhere: no such folder"):
        find_predictions(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.png", "not a readable PNG"),
        ("empty.png", "not a readable PNG"),
        ("text.npy", "not a readable array"),
        ("text.npz", "not a readable TruFor result"),
        ("colour.png", "coloured picture"),
        ("other.npz", "not `map`"),
        ("pickle.npy", "not a readable array"),
    ],
)
def test_a_fault_of_a_file_is_named(tmp_path, name, message):
    path = tmp_path / name
    if name == "colour.png":
        save_png(path, np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8))
    elif name == "other.npz":
        np.savez(path, heat=MAP)
    elif name == "pickle.npy":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        path.write_text("" if "empty" in name else "this is text")
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        read_map(path)


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
    assert [entry.score for entry in found] == [0.9, 0.1]
    assert [int(read_map(entry.source).forgery_map[0, 0]) for entry in found] == [200, 10]
    assert unused == []


def test_maps_of_folders_are_found_from_absolute_names(tmp_path):
    for folder, value in (("x", 10), ("y", 200)):
        save_png(tmp_path / "maps" / folder / "a.png", np.full((2, 2), value, np.uint8))
    (tmp_path / "predictions.csv").write_text(
        "file,probability,error\n/in/x/a.jpg,0.1,\n/in/y/a.jpg,0.9,\n"
    )
    found, _ = match_predictions(["/in/y/a.jpg", "/in/x/a.jpg"], find_predictions(tmp_path))
    assert [int(read_map(entry.source).forgery_map[0, 0]) for entry in found] == [200, 10]


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
