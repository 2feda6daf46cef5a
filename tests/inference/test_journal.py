"""Going on after a stop."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from loupe.commands.predict import main
from tests.inference.conftest import CONFIG, SMALL


@pytest.fixture(scope="module")
def options(predictor) -> list[str]:
    """Those of the small predictor, with what depends on the machine left out."""
    weights = str(predictor.cfg.MODEL.WEIGHTS)
    return ["--config-file", str(CONFIG), "--weights", weights, "--workers", "0"]


def run(options: list[str], *words: str) -> int:
    return main([*options, *words, *SMALL])


@pytest.fixture
def place(tmp_path: Path, write_image) -> Path:
    for number in range(4):
        write_image(tmp_path / "in" / f"{number}.png", 20, 24, seed=number)
    (tmp_path / "in" / "bad.png").write_text("no picture")
    return tmp_path


def rows(output: Path) -> list[str]:
    return (output / "predictions.csv").read_text().splitlines()


def test_a_run_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(options, place, capsys):
    folder, whole, stopped = (str(place / name) for name in ("in", "whole", "stopped"))
    assert run(options, folder, "--output", whole) == 1
    assert run(options, folder, "--output", stopped) == 1
    journal = Path(stopped) / ".loupe.journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    # Stopped in the third image: its line is half written, and the table is not finished.
    journal.write_text("".join(lines[:3]) + lines[3][:20])
    (Path(stopped) / "predictions.csv").rename(Path(stopped) / "predictions.unfinished.csv")
    pictures = [Path(stopped) / "maps" / f"{number}.png" for number in range(4)]
    before = [picture.stat().st_mtime_ns for picture in pictures]
    capsys.readouterr()
    assert run(options, folder, "--output", stopped, "--resume") == 1
    assert "2 of them before" in capsys.readouterr().out
    after = [picture.stat().st_mtime_ns for picture in pictures]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, True, False, False]
    for name in ("predictions.csv", "regions.json", "regions.coco.json"):
        assert (Path(stopped) / name).read_text() == (Path(whole) / name).read_text()


def test_what_changed_or_is_not_whole_is_done_again(options, place, write_image, capsys):
    folder, output = str(place / "in"), place / "out"
    assert run(options, folder, "--output", str(output)) == 1
    write_image(place / "in" / "0.png", 30, 24, seed=9)
    (output / "maps" / "1.png").unlink()
    (place / "in" / "2.png").unlink()
    write_image(place / "in" / "bad.png", 20, 20)
    capsys.readouterr()
    assert run(options, folder, "--output", str(output), "--resume") == 0
    assert "1 of them before" in capsys.readouterr().out
    assert len(rows(output)) == 5
    assert (output / "maps" / "1.png").is_file()


def test_results_of_other_settings_are_not_taken_over(options, place, capsys):
    output = str(place / "out")
    run(options, str(place / "in"), "--output", output)
    assert run(options, str(place / "in"), "--output", output, "--resume", "--no-maps") == 2
    assert "other weights, settings or options" in capsys.readouterr().err


def test_lines_of_json_and_names_from_a_file(options, place, capsysbinary):
    names = place / "names.txt"
    odd = os.fsencode(place / "in" / "1.png").replace(b"1.png", b"caf\xe9.png")
    os.rename(place / "in" / "1.png", odd)
    names.write_bytes(os.fsencode(place / "in" / "0.png") + b"\r\n" + odd + b"\n")
    assert run(options, "--files-from", str(names), "--json", "--quiet") == 0
    out, err = capsysbinary.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert (first["width"], first["height"], first["error"]) == (24, 20, None)
    assert 0 <= first["probability"] <= 1
    assert os.fsencode(second["file"]) == odd
    assert err == b""


def test_a_place_for_results_is_asked_for(options, place, capsys):
    assert run(options, str(place / "in")) == 2
    assert run(options, "--json") == 2
    assert "give --output DIR or --json" in capsys.readouterr().err


def test_no_pictures_where_none_are_wanted(options, place):
    output = place / "out"
    assert run(options, str(place / "in" / "0.png"), "--output", str(output), "--no-maps") == 0
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == []
    assert "views" in rows(output)[0]
