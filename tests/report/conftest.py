"""A report of a few predictions that no model made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loupe.inference import FilePrediction
from loupe.report import write_report
from loupe.report.writer import Model
from loupe.structures import Prediction

MODEL = Model("some.safetensors", "ab" * 32, "0.2.0", "5 of 100 reach .9", {"INPUT.SIZE": 1024})
ODD = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    random = np.random.default_rng(0)
    results = []
    for name, score, verdict in (
        ("authentic.jpg", 0.1, "authentic"),
        (ODD, 0.95, "forged"),
        ("between.png", 0.5, "undecided"),
    ):
        Image.fromarray(random.integers(0, 256, (90, 120, 3), np.uint8)).save(place / name)
        forgery_map = np.zeros((90, 120), np.float32)
        forgery_map[20:60, 30:70] = score
        # One model of a report tells classes, or none does; here one image shows both.
        classes = {"authentic": 1 - score, "tampered": score} if name == ODD else {}
        prediction = Prediction(score, forgery_map, None, verdict, (), (), classes)
        results.append(FilePrediction(str(place / name), prediction))
    (place / "none.jpg").write_bytes(b"no")
    results.append(FilePrediction(str(place / "none.jpg"), None, "none.jpg: <b>no</b> image"))
    gone = Prediction(0.5, np.zeros((8, 8), np.float32), None, "authentic")
    results.append(FilePrediction(str(place / "gone.jpg"), gone))
    assert write_report(results, place / "out", MODEL, title="Case <12>") == (3, 2)
    return place / "out"
