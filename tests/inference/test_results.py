"""The files that predictions are written to."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from loupe.evaluation.predictions import find_predictions
from loupe.inference import FilePrediction, find_images, write_predictions
from loupe.structures import Prediction


def table(output: Path) -> dict[str, dict[str, str]]:
    with (output / "predictions.csv").open(encoding="utf-8", errors="surrogateescape") as file:
        return {os.path.basename(row["file"]): row for row in csv.DictReader(file)}


def predict(predictor, images: Path, output: Path) -> tuple[int, int]:
    names = find_images(images)
    return write_predictions(predictor.predict_many(list(names)), names, output)


def test_unreadable_files_get_a_row_with_the_reason_and_end_nothing(
    predictor, write_image, tmp_path
):
    images = tmp_path / "images"
    write_image(images / "good.png", 40, 30, seed=1)
    write_image(images / "whole.jpg", 64, 64, seed=2)
    whole = (images / "whole.jpg").read_bytes()
    (images / "text.png").write_text("not a picture")
    (images / "empty.jpg").write_bytes(b"")
    (images / "truncated.jpg").write_bytes(whole[:400])
    middle = len(whole) // 2
    (images / "inside.jpg").write_bytes(whole[:middle] + b"\xff\xd3" + whole[middle + 2 :])
    assert predict(predictor, images, tmp_path / "output") == (3, 3)
    rows = table(tmp_path / "output")
    assert list(rows["good.png"])[:4] == ["file", "probability", "error", "warning"]
    failed = {name for name, row in rows.items() if row["error"]}
    assert failed == {"text.png", "empty.jpg", "truncated.jpg"}
    assert all(not rows[name]["probability"] for name in failed)
    assert 0 <= float(rows["good.png"]["probability"]) <= 1
    assert "damaged inside" in rows["inside.jpg"]["warning"]
    assert not rows["whole.jpg"]["warning"]


def test_pictures_have_the_size_of_the_image_and_agree(predictor, write_image, tmp_path):
    write_image(tmp_path / "images" / "a.png", 33, 57, seed=3)
    predict(predictor, tmp_path / "images" / "a.png", tmp_path / "output")
    read = {
        kind: cv2.imread(str(tmp_path / "output" / kind / "a.png"), cv2.IMREAD_UNCHANGED)
        for kind in ("maps", "masks", "overlays")
    }
    assert read["maps"].shape == read["masks"].shape == (33, 57)
    assert read["overlays"].shape == (33, 57, 3)
    np.testing.assert_array_equal(read["masks"], np.where(read["maps"] > 127, 255, 0))


def some(name: str) -> FilePrediction:
    return FilePrediction(name, Prediction(0.5, np.zeros((4, 4), np.float32), None))


def test_names_of_any_bytes_are_written_and_read_again(tmp_path):
    names = {os.fsdecode(b"caf\xe9.png"): "latin", "=1+1.png": "formula", 'a"\n,b.png': "odd"}
    found = map(some, names)
    assert write_predictions(found, names, tmp_path / "out", overlays=False) == (3, 0)
    assert set(table(tmp_path / "out")) == {os.fsdecode(b"caf\xe9.png"), "'=1+1.png", 'a"\n,b.png'}


def test_a_table_has_its_name_only_when_it_is_whole(tmp_path):
    def interrupted():
        yield some("a.png")
        raise KeyboardInterrupt

    names = {"a.png": "a"}
    with pytest.raises(KeyboardInterrupt):
        write_predictions(interrupted(), names, tmp_path, overlays=False)
    assert "a.png" in (tmp_path / "predictions.unfinished.csv").read_text()
    assert not (tmp_path / "predictions.csv").exists()
    write_predictions([some("a.png")], names, tmp_path, overlays=False)
    assert not (tmp_path / "predictions.unfinished.csv").exists()
    assert [entry.probability for entry in find_predictions(tmp_path).entries] == [0.5]


def test_an_image_that_cannot_be_drawn_has_a_row(tmp_path):
    gone = str(tmp_path / "gone.png")
    assert write_predictions([some(gone)], {gone: "gone"}, tmp_path / "out") == (0, 1)
    assert "cannot be drawn" in table(tmp_path / "out")["gone.png"]["error"]


def test_classes_are_in_table_and_regions_where_a_model_tells_them(tmp_path):
    told = {"authentic": 0.125, "generated": 0.25, "tampered": 0.625}
    blank = np.zeros((4, 4), np.float32)
    of_classes = FilePrediction("a.png", Prediction(0.875, blank, None, class_probabilities=told))
    found = [of_classes, some("b.png"), FilePrediction("c.png", None, "c.png: broken")]
    names = {one.file: one.file[0] for one in found}
    assert write_predictions(found, names, tmp_path, overlays=False) == (2, 1)
    rows = table(tmp_path)
    text = "authentic 0.125000; generated 0.250000; tampered 0.625000"
    cells = [(row["class"], row["class_probabilities"]) for row in rows.values()]
    assert cells == [("tampered", text), ("", ""), ("", "")]
    entries = json.loads((tmp_path / "regions.json").read_text())["images"]
    assert (entries[0]["class"], entries[0]["class_probabilities"]) == ("tampered", told)
    assert "class" not in entries[1]
