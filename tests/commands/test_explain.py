"""`loupe explain`: plain sentences for a person, the same facts as JSON for a program."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loupe.__main__ import main


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.png"
    Image.fromarray(rng.integers(60, 190, (128, 160, 3), dtype=np.uint8)).save(path)
    return path


def test_sentences_are_printed_and_facts_written(picture: Path, tmp_path: Path, capsys):
    mask = np.zeros((128, 160), np.uint8)
    mask[80:120, 10:50] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = [str(picture), "--mask", str(tmp_path / "mask.png"), "--output", str(tmp_path / "out")]
    assert main(["explain", *words]) == 0
    printed = capsys.readouterr().out
    assert "Region 1 lies in the image's lower left, from (10, 80) to (50, 120)." in printed
    written = json.loads((tmp_path / "out" / "explanations.json").read_text())
    facts = {fact["name"]: fact for fact in written[str(picture)]["facts"]}
    assert facts["cell"]["value"] == "lower left"
    assert facts["noise"]["unit"] == "grey levels"
    assert all(fact["sentence"] in printed for fact in facts.values())


def test_a_map_of_another_size_is_refused(picture: Path, tmp_path: Path, capsys):
    Image.new("L", (20, 20)).save(tmp_path / "mask.png")
    assert main(["explain", str(picture), "--mask", str(tmp_path / "mask.png")]) == 2
    assert "give a map of the image's size" in capsys.readouterr().err
