"""tools/robustness.py: its three ways, and command lines that say too little or too much."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from loupe.commands import robustness
from loupe.commands.command_line import DEFAULT_CONFIG

SMALL = ["INPUT.SIZE", "64", "MODEL.DEVICE", "cpu"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("image0", "image1", "mask1"):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
        cv2.imwrite(
            str(tmp_path / f"{name}.png"), pixels if name[0] == "i" else pixels // 200 * 255
        )
    rows = "image,mask,label\nimage0.png,,0\nimage1.png,mask1.png,1\n"
    (tmp_path / "manifest.csv").write_text(rows)
    return tmp_path


def test_exported_images_are_scored_from_saved_maps(data, capsys):
    words = ["--axes", "shift", "--resamples", "0"]
    assert robustness.main([str(data), "--export", str(data / "out"), *words]) == 0
    assert robustness.main([str(data), "--export", str(data / "out"), "--images", "1", *words]) == 2
    assert "holds images of an earlier export" in capsys.readouterr().err
    for folder in (data / "out").rglob("images"):
        place = data / "saved" / folder.parent.relative_to(data / "out")
        place.mkdir(parents=True)
        for path in folder.iterdir():
            cv2.imwrite(str(place / path.name), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    saved = ["--maps", str(data / "saved"), "--output", str(data / "curves")]
    assert robustness.main([str(data / "out"), *saved, *words]) == 0
    assert "mean over levels" in capsys.readouterr().out
    assert (data / "curves/robustness.csv").is_file()


def test_maps_that_are_not_there_are_one_line(data, capsys):
    words = ["--maps", str(data / "none"), "--output", str(data / "curves"), "--axes", "shift"]
    assert robustness.main([str(data), *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--maps", "a", "--export", "b"], "give only one of --config-file"),
        (["--maps", "a", "--output", "b", "--config-file", "c"], "give only one of --config-file"),
        (["--export", "a", "--config-file", "c"], "give only one of --config-file"),
        (["--maps", "a", "--output", "b", "--weights", "c"], "--weights are of a model"),
        ([], "give --output"),
        (["--maps", "a"], "give --output"),
    ],
)
def test_a_command_line_that_says_too_little_or_too_much_is_refused(words, message, capsys):
    assert robustness.main(["data", *words]) == 2
    assert message in capsys.readouterr().err


def test_without_a_configuration_the_small_model_is_measured(data):
    words = ["--axes", "shift", "--resamples", "0", "--output", str(data / "out")]
    assert robustness.main([str(data / "manifest.csv"), *words, *SMALL]) == 0
    report = json.loads((data / "out/robustness.json").read_text())
    assert report["config"] == str(DEFAULT_CONFIG)
    assert report["weights"].startswith("loupe://loupe_tiny")
    assert report["images"] == 2


def test_a_mask_of_another_size_is_told_once_in_a_run(data, caplog):
    cv2.imwrite(str(data / "mask1.png"), np.full((20, 24), 255, np.uint8))
    words = ["--axes", "shift", "--resamples", "0", "--output", str(data / "out")]
    assert robustness.main([str(data / "manifest.csv"), *words, *SMALL]) == 0
    (said,) = [text for text in caplog.messages if "the mask is 24 x 20 pixels" in text]
    assert ": 1, the first: " in said
