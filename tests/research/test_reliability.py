"""The fuzzer and the bombs count what must never happen, and find nothing in a short run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loupe.data.images.errors import UnreadableImageError
from research.reliability import fuzz_images
from research.reliability.bomb_files import BOMBS
from research.reliability.bombs import MOST_MEGABYTES, MOST_SECONDS, measure


def test_a_short_run_of_the_fuzzer_finds_nothing():
    counts, faults = fuzz_images.run(200, seed=7, patience=60)
    assert faults == []
    assert sum(counts.values()) == 200
    assert min(counts["refused"], counts["same"]) > 20


def test_whole_files_are_the_same_or_not_compared():
    outcomes = {fuzz_images.judge(content)[0] for content in fuzz_images.seed_files()}
    assert outcomes == {"same", "alone"}


def test_the_fuzzer_sees_wrong_pixels_and_escaped_exceptions(monkeypatch):
    content = fuzz_images.seed_files()[0]
    picture = fuzz_images.read_picture(content)
    wrong = picture._replace(pixels=np.zeros_like(picture.pixels))
    monkeypatch.setattr(fuzz_images, "read_picture", lambda content: wrong)
    assert fuzz_images.judge(content)[0] == "wrong"
    monkeypatch.setattr(fuzz_images, "strict_pixels", lambda content: None)
    assert fuzz_images.judge(content)[0] == "wrong"

    def fail(content):
        raise TypeError("escaped")

    monkeypatch.setattr(fuzz_images, "read_picture", fail)
    assert fuzz_images.judge(content) == ("escaped", "TypeError: escaped")

    def refuse(content):
        raise UnreadableImageError("a", "b", "c")

    monkeypatch.setattr(fuzz_images, "read_picture", refuse)
    assert fuzz_images.judge(content)[0] == "refused"


@pytest.mark.parametrize(
    "name", ["png_more_pixels_than_announced", "tiff_announced", "webp_announced", "gif_announced"]
)
def test_bombs_are_refused_at_once_and_cost_nothing(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(BOMBS[name]())
    for kind in ("image", "mask"):
        outcome, megabytes, seconds = measure(tmp_path / name, kind)
        assert outcome.startswith("refused")
        assert megabytes < MOST_MEGABYTES / 3
        assert seconds < MOST_SECONDS / 3
