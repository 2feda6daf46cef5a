"""`loupe evaluate`: data sets and a model in, every metric out, whatever the files are."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from loupe.commands import evaluate
from loupe.modeling.loupe import Loupe

SMALL = ["MODEL.DEVICE", "cpu", "TEST.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Three images, one of them a line of pixels, and a file that is none."""
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name, size in {"a": (40, 60), "b": (48, 32), "line": (1, 300)}.items():
        image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "in" / f"{name}.png"), image)
    (tmp_path / "in" / "bad.png").write_text("no image")
    rows = ["image,mask,label", "in/a.png,,0", "in/b.png,*,1", "in/line.png,,0", "in/bad.png,,0"]
    path = tmp_path / "list.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def run(listed: Path, output: Path) -> tuple[int, dict]:
    status = evaluate.main([str(listed), "--output", str(output), *SMALL])
    (path,) = (output / "inference").glob("*.json")
    return status, json.loads(path.read_text())


def test_all_images_are_measured_but_the_one_that_is_none(listed: Path, tmp_path: Path):
    status, report = run(listed, tmp_path / "out")
    assert (status, report["counts"]["images"], report["counts"]["unreadable"]) == (1, 3, 1)
    assert "bad.png" in next(iter(report["unreadable"]))


def test_an_image_that_the_model_fails_on_is_counted(listed: Path, tmp_path: Path, monkeypatch):
    real = Loupe.forward

    def failing(self, batch):
        if any(item.get("height") == 48 for item in batch):
            raise MemoryError("too much")
        return real(self, batch)

    monkeypatch.setattr(Loupe, "forward", failing)
    _, report = run(listed, tmp_path / "out")
    assert (report["counts"]["images"], report["counts"]["unreadable"]) == (2, 2)


def test_results_do_not_go_where_images_are_read(listed: Path, capsys):
    folder = listed.parent / "in"
    assert evaluate.main([str(folder), "--output", str(folder / "out")]) == 2
    assert "give an --output outside" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            ["image,label", "in/a.png,", "in/b.png,"],
            "no image has a label; an evaluation needs truth",
        ),
        (["image,label", "in/bad.png,0"], "no image with a label could be read (1 unreadable)"),
        (["image,label", "in/a.png,0", "in/b.png,maybe"], "maybe"),
    ],
)
def test_a_list_that_nothing_can_be_measured_on_is_one_line(listed: Path, rows, said, capsys):
    listed.write_text("\n".join(rows) + "\n")
    capsys.readouterr()
    assert evaluate.main([str(listed), "--output", str(listed.parent / "out"), *SMALL]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert len(printed.err.splitlines()) == 1
    # What can be seen in the list alone is told before a model is built and logged.
    assert ("Configuration:" in printed.out) == ("could be read" in said)


def test_the_files_of_an_explainer_are_counted_too():
    assert evaluate.left_out([{"image_id": "a"}]) == 0
    assert evaluate.left_out({"dataset": "x", "images": 3, "errors": {"a": "gone"}}) == 1
