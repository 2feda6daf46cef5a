"""Inputs of a command, and the folder of its results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loupe.inference import OutputError, find_images, output_folder
from loupe.inference.earlier import PREDICTED, has_earlier, remove_earlier


@pytest.fixture
def images(tmp_path: Path, write_image) -> Path:
    folder = tmp_path / "in"
    for name in ("a.png", "a.jpg", "deep/a.png", "b.png", "-b c.png"):
        write_image(folder / name)
    return folder


def test_several_inputs_are_named_below_the_folder_of_all(images: Path, tmp_path: Path):
    assert find_images(images / "b.png") == {str(images / "b.png"): "b"}
    inputs = [images / "b.png", images / "deep", images / "deep" / "a.png"]
    assert sorted(find_images(inputs).values()) == ["b", "deep/a"]
    assert sorted(find_images([str(images / "*.png")]).values()) == ["-b c", "a", "b"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.png").hardlink_to(images / "b.png")
    found = find_images([images / "b.png", tmp_path / "other" / "b.png"])
    assert sorted(found.values()) == ["in/b", "other/b"]


def test_inputs_without_images_are_errors_that_name_them(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=f"{tmp_path}: there are no image files"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match=r"none\.png: there is no such file"):
        find_images([tmp_path / "none.png"])
    with pytest.raises(ValueError, match="no file fits the pattern"):
        find_images([str(tmp_path / "*.png")])


def planted(output: Path, images: Path) -> None:
    (output / "maps").symlink_to(images)


def linked(output: Path, images: Path) -> None:
    output.rmdir()
    output.symlink_to(images)


def foreign(output: Path, images: Path) -> None:
    (output / "maps").mkdir()
    (output / "maps" / "mine.png").write_bytes(b"not Loupe's")


def is_file(output: Path, images: Path) -> None:
    output.rmdir()
    output.write_text("a file")


CASES = {
    "planted link": (planted, "is a link to"),
    "link in its place": (linked, "is a link to"),
    "pictures of another": (foreign, "has no predictions.csv of an earlier run"),
    "a file in its place": (is_file, "cannot be written to"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_folder_that_is_not_for_results_is_refused(name: str, images: Path, tmp_path: Path):
    prepare, message = CASES[name]
    output = tmp_path / "out"
    output.mkdir()
    prepare(output, images)
    before = sorted(images.rglob("*"))
    with (
        pytest.raises(OutputError, match=message),
        output_folder(output, [images], results=PREDICTED),
    ):
        pass
    assert sorted(images.rglob("*")) == before


@pytest.mark.parametrize("place", ["in", "in/out", "in/deep/../out", "link/out"])
def test_results_do_not_go_where_images_are_read(place: str, images: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(images)
    with (
        pytest.raises(OutputError, match="give an --output outside"),
        output_folder(tmp_path / place, [images]),
    ):
        pass
    with output_folder(images / "out", [images / "b.png"]):  # Single files are read: no harm.
        pass


def test_a_place_that_cannot_be_written_to_is_refused(images: Path):
    with pytest.raises(OutputError, match="cannot be written to"), output_folder("/proc/out"):
        pass


HOLD = """
import sys, time
from loupe.inference.folders import output_folder
with output_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(20)
"""


def test_two_runs_do_not_write_into_one_folder_and_a_killed_one_holds_nothing(tmp_path: Path):
    command = [sys.executable, "-W", "ignore", "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(OutputError, match="another run is writing there"),
            output_folder(tmp_path / "out"),
        ):
            pass
        other.kill()
    with output_folder(tmp_path / "out"):
        pass


def test_only_results_of_an_earlier_run_are_removed(tmp_path: Path):
    output = tmp_path / "out"
    old = ("maps/deep/old.png", "maps/deep/.unfinished-old", "masks/old.png", "predictions.csv")
    for name in (*old, "notes.txt", "maps/deep/notes.txt"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("old")
    with output_folder(output, results=PREDICTED):
        assert all((output / name).exists() for name in old)
        remove_earlier(output, PREDICTED)
        found = [str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()]
    assert sorted(found) == [".loupe.lock", "maps/deep/notes.txt", "notes.txt"]


def test_a_table_without_rows_is_nothing_to_replace(tmp_path: Path):
    (tmp_path / "predictions.unfinished.csv").write_text("file,probability\n")
    assert not has_earlier(tmp_path, PREDICTED)
    (tmp_path / "predictions.unfinished.csv").write_text("file,probability\na.png,0.5\n")
    assert has_earlier(tmp_path, PREDICTED)
