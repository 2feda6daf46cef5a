"""A run into the folder of an earlier one loses nothing without a word, and mixes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from loupe.commands import predict, report
from loupe.inference.earlier import parts_beside, with_first
from tests.inference.conftest import CONFIG, SMALL


def run(tool, predictor, *words: str) -> int:
    """`words` come last of the options, so that they may name other weights."""
    options = ["--config-file", str(CONFIG), "--weights", str(predictor.cfg.MODEL.WEIGHTS)]
    return tool.main([*options, "--workers", "0", *words, *SMALL])


@pytest.fixture
def place(tmp_path: Path, write_image) -> Path:
    """`many/` has three images, `one/` another."""
    for number in range(3):
        write_image(tmp_path / "many" / f"{number}.png", 20, 24, seed=number)
    write_image(tmp_path / "one" / "9.png", 20, 24, seed=9)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "none.pth"], "none.pth"),
        (["--weights", "bad.pth"], "bad.pth"),
        (["--engine", "onnxruntime", "--graph", "none.onnx"], "none.onnx: there is no such file"),
        (["--engine", "onnxruntime", "--graph", "bad.pth"], "bad.pth: is no graph that onnxr"),
    ],
)
def test_a_wrong_option_removes_nothing(
    words: list[str], message: str, predictor, place: Path, monkeypatch, capsys
):
    if "onnxruntime" in words:
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(place)
    Path("bad.pth").write_bytes(b"no weights, no graph")
    assert run(predict, predictor, "many", "--output", "out") == 0
    before = content(place / "out")
    capsys.readouterr()
    assert run(predict, predictor, "one", "--output", "out", *words) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert message in error
    assert content(place / "out") == before


def test_a_second_prediction_replaces_all_of_the_first_and_says_so(predictor, place: Path, caplog):
    many, one, output = (str(place / name) for name in ("many", "one", "out"))
    assert run(predict, predictor, many, "--output", output) == 0
    assert not caplog.messages
    assert run(predict, predictor, one, "--output", output) == 0
    assert caplog.messages == [f"{output}: the results of an earlier run are replaced"]
    pictures = [name for name in content(place / "out") if name.endswith(".png")]
    assert sorted(pictures) == ["maps/9.png", "masks/9.png", "overlays/9.png"]
    assert many not in (place / "out" / ".loupe.journal.jsonl").read_text()


def test_going_on_says_which_results_it_leaves_out(predictor, place: Path, capsys):
    many, one, output = (str(place / name) for name in ("many", "one", "out"))
    assert run(predict, predictor, many, "--output", output) == 0
    assert run(predict, predictor, one, "--output", output, "--resume") == 0
    assert "3 images of earlier runs are no INPUT" in capsys.readouterr().out
    # As after `loupe adapt`, which keeps no journal.
    (place / "out" / ".loupe.journal.jsonl").unlink()
    before = content(place / "out")
    assert run(predict, predictor, many, "--output", output, "--resume") == 2
    assert "--resume cannot go on with" in capsys.readouterr().err
    assert content(place / "out") == before


def test_a_report_keeps_no_pictures_of_other_images(predictor, place: Path):
    many, one, output = (str(place / name) for name in ("many", "one", "out"))
    assert run(report, predictor, many, "--output", output) == 0
    before = content(place / "out")
    assert run(report, predictor, one, "--output", output, "--weights", "none.pth") == 2
    assert content(place / "out") == before
    # An earlier report that was stopped has pictures and no page.
    for name in ("report.json", "report.csv", "index.html"):
        (place / "out" / name).unlink()
    (place / "out" / "report.unfinished.csv").write_text("file\n")
    (place / "out" / "pictures" / "holiday.jpg").write_text("not of a report")
    assert run(report, predictor, one, "--output", output) == 0
    (image,) = json.loads((place / "out" / "report.json").read_text())["images"]
    names = {"pictures/holiday.jpg", image["picture"], image["map"]}
    names |= {".loupe.lock", "report.json", "report.csv", "index.html"}
    assert content(place / "out").keys() == names


def test_a_report_leaves_the_pictures_of_others_alone(predictor, place: Path, capsys):
    (place / "out" / "pictures").mkdir(parents=True)
    (place / "out" / "pictures" / "000000.jpg").write_text("a camera's")
    words = [str(place / "one"), "--output", str(place / "out")]
    assert run(report, predictor, *words) == 2
    assert "pictures: holds files, but" in capsys.readouterr().err
    assert (place / "out" / "pictures" / "000000.jpg").read_text() == "a camera's"


def test_parts_of_several_processes_count_as_earlier_results(predictor, place: Path):
    part = place / "out" / "part-0001-of-0002"
    assert run(predict, predictor, str(place / "many"), "--output", str(part)) == 0
    other = place / "out" / "part-0001-of-0003"
    other.mkdir()
    assert parts_beside(place / "out", place / "out") == [part, other]
    # A run of two processes clears the parts of runs of three, and each process its own.
    assert parts_beside(place / "out", part) == [place / "out", other]
    assert run(predict, predictor, str(place / "one"), "--output", str(place / "out")) == 0
    assert content(part).keys() == {".loupe.lock"}


def test_the_first_prediction_comes_before_anything_is_removed():
    told = []

    def numbers() -> Iterator[int]:
        for number in range(3):
            told.append(number)
            yield number

    items = with_first(numbers())
    assert told == [0]
    assert list(items) == [0, 1, 2]
    assert list(with_first(iter(()))) == []
