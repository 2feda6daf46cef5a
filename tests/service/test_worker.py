"""Results of a worker are those of the predictor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from loupe.inference import LoupePredictor
from loupe.service.description import describe
from loupe.service.store import UPLOAD
from loupe.service.worker import Made, predict_jobs
from tests.inference.conftest import predictor, write_image

__all__ = ["predictor", "write_image"]


def test_results_are_those_of_the_predictor(
    predictor: LoupePredictor, write_image: Callable[..., np.ndarray], tmp_path: Path
):
    jobs = []
    for name, size in (("a", (40, 64)), ("b", (64, 40)), ("c", (31, 17))):
        write_image(tmp_path / name / "image.png", *size)
        (tmp_path / name / "image.png").rename(tmp_path / name / UPLOAD)
        jobs.append((name, f"{name}.png", tmp_path / name))
    made = Made(predictor, describe, {})
    ends = {end.id: end for end in predict_jobs(made, jobs)}
    for name, _, folder in jobs:
        expected = predictor(folder / UPLOAD)
        assert ends[name].result["probability"] == pytest.approx(expected.score, abs=1e-6)
        assert ends[name].result["verdict"] == expected.verdict
        stored = cv2.imread(str(folder / "map.png"), cv2.IMREAD_UNCHANGED)
        assert np.abs(stored / 255 - expected.forgery_map).max() <= 0.5 / 255 + 1e-5
