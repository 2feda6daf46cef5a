"""The detectors without training that the model is held against."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import classical_detectors

# Where a region was put, y x, and its side.
PLACE, SIDE = (96, 128), 64


def textured(seed: int = 0) -> np.ndarray:
    """(200, 248, 3) uint8 of all scales: no multiple of a patch."""
    rng = np.random.default_rng(seed)
    noise = sum(
        side * cv2.resize(rng.standard_normal((200 // side, 248 // side)), (248, 200))
        for side in (1, 2, 4, 8)
    )
    grey = np.clip(128 + 25 * noise / noise.std(), 20, 235).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


def put(image: np.ndarray, content: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[PLACE[0] : PLACE[0] + SIDE, PLACE[1] : PLACE[1] + SIDE] = content[:SIDE, :SIDE]
    return image


FORGERIES = {
    "ela": put(as_jpeg(textured(), 60), textured(1)),
    "noise": put(cv2.GaussianBlur(textured(), (0, 0), 1.5), textured(1)),
    "steps": put(as_jpeg(textured(), 60), textured(1)),
    "copies": put(textured(), textured()[8:, 16:]),
}


@pytest.mark.parametrize("name", sorted(classical_detectors.DETECTORS))
def test_a_detector_finds_the_forgery_that_it_is_made_for(name: str):
    draw, judge = classical_detectors.DETECTORS[name]
    levels = draw(FORGERIES[name])
    assert levels.shape == (200, 248)
    assert 0 <= levels.min() <= levels.max() <= 1
    inside = levels[PLACE[0] + 12 : PLACE[0] + SIDE - 12, PLACE[1] + 12 : PLACE[1] + SIDE - 12]
    assert inside.mean() > 2 * np.median(levels)
    untouched = as_jpeg(textured(), 60) if name in ("ela", "steps") else textured()
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
