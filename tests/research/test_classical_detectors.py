"""The detectors without training that the model is held against."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from research.benchmarks import classical_detectors
from tests.pictures import as_jpeg, in_colour, textured

# Where a region was put, y x, and its side.
PLACE, SIDE = (96, 128), 64
# No side is a multiple of a patch.
PICTURES = [in_colour(textured(200, 248, seed=seed)) for seed in (0, 1)]


def put(image: np.ndarray, content: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[PLACE[0] : PLACE[0] + SIDE, PLACE[1] : PLACE[1] + SIDE] = content[:SIDE, :SIDE]
    return image


FORGERIES = {
    "ela": put(as_jpeg(PICTURES[0], 60), PICTURES[1]),
    "noise": put(cv2.GaussianBlur(PICTURES[0], (0, 0), 1.5), PICTURES[1]),
    "steps": put(as_jpeg(PICTURES[0], 60), PICTURES[1]),
    "copies": put(PICTURES[0], PICTURES[0][8:, 16:]),
}


@pytest.mark.parametrize("name", sorted(classical_detectors.DETECTORS))
def test_a_detector_finds_the_forgery_that_it_is_made_for(name: str):
    draw, judge = classical_detectors.DETECTORS[name]
    levels = draw(FORGERIES[name])
    assert levels.shape == (200, 248)
    assert 0 <= levels.min() <= levels.max() <= 1
    inside = levels[PLACE[0] + 12 : PLACE[0] + SIDE - 12, PLACE[1] + 12 : PLACE[1] + SIDE - 12]
    assert inside.mean() > 2 * np.median(levels)
    untouched = as_jpeg(PICTURES[0], 60) if name in ("ela", "steps") else PICTURES[0]
    assert judge(levels) > judge(draw(untouched))


def test_predictions_are_written_as_the_scoring_tool_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cv2.imwrite(str(tmp_path / "a.png"), FORGERIES["copies"])
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("image,mask,label\na.png,,0\n")
    output = tmp_path / "output"
    words = ["detectors", "copies", str(manifest), "--output", str(output)]
    monkeypatch.setattr("sys.argv", words)
    assert classical_detectors.main() == 0
    (row,) = csv.DictReader((output / "predictions.csv").open())
    assert row["file"] == "a.png"
    assert 0 < float(row["probability"]) < 1
    assert cv2.imread(str(output / "maps" / "a.png"), 0).shape == (200, 248)
