"""One style for all commands: quick help, one shape of error, KEY VALUE last."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from loupe.__main__ import COMMANDS, main
from loupe.commands import predict, publish
from loupe.commands.command_line import parse, run_command, split_options

ROOT = Path(__file__).parents[2]
TOOLS = sorted(set((ROOT / "tools").glob("[!_]*.py")) - {ROOT / "tools" / "install_detectron2.py"})

PRINT_ALL_HELP = """
import sys
from loupe.__main__ import COMMANDS, main
for words in ([], *([name, "--help"] for name in COMMANDS)):
    try:
        main(words)
    except SystemExit as done:
        assert not done.code
print(sorted({"torch", "numpy", "cv2", "detectron2", "PIL"} & sys.modules.keys()))
"""


def test_help_imports_nothing_that_takes_time():
    printed = subprocess.run(
        [sys.executable, "-c", PRINT_ALL_HELP], capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines()[-1] == "[]"
    for name in COMMANDS:
        assert f"usage: loupe {name} " in printed


def test_every_command_is_listed_and_has_one_shape():
    modules = {path.stem for path in (ROOT / "projects/loupe/commands").glob("*.py")}
    assert modules - {"__init__", "command_line"} == set(COMMANDS)
    for name in COMMANDS:
        module = import_module(f"loupe.commands.{name}")
        assert {"add_arguments", "run", "main"} <= vars(module).keys()
        assert f"loupe {name}" in module.__doc__


def test_tools_are_doors_of_a_few_lines():
    for path in TOOLS:
        text = path.read_text()
        (name,) = re.findall(r"from loupe\.commands\.(\w+) import main", text)
        assert name in COMMANDS
        assert len(text.splitlines()) < 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predikt", "a.jpg"], "there is no command 'predikt'; did you mean predict?"),
        (["predict", "a.jpg"], "give --output DIR or --json"),
        (["predict", "--output", "o", "SEED", "1"], "there is no INPUT before KEY VALUE"),
        (["predict", "no.jpg", "--output", "o"], "no.jpg: there is no such file or folder"),
        (["predict", "*.nothing", "--output", "o"], "no file fits the pattern"),
        (["predict", "\x1b]2;x\x07.jpg", "--output", "o"], r"error: \x1b]2;x\x07.jpg: there is no"),
        (
            ["predict", "a.jpg", "--output", "o", "MODEL.DEVISE", "cpu"],
            "MODEL.DEVISE. Did you mean MODEL.DEVICE?",
        ),
        (["predict", "a.jpg", "--output", "o", "SEED"], "each KEY needs a VALUE"),
        (["train", "--num-gpus", "many"], "--num-gpus: 'many' is no whole number from 1 on"),
        (["train", "--num-gpus", "0"], "--num-gpus: '0' is no whole number from 1 on"),
        (["evaluate", "a", "--output", "b", "--num-machines", "-1"], "argument --num-machines"),
        (["train", "--dist-url", "tcp://here"], "'tcp://here' is neither tcp://ADDRESS:PORT nor"),
        (["train", "--dist-url", "tcp://here:x"], "'tcp://here:x' is neither"),
        (
            ["train", "--dist-url", "file:///no/such/store"],
            "nor file:///PATH of a file in a folder",
        ),
        (["train", "--dist-url", "auto"], "'auto' is neither"),
        (
            ["train", "--machine-rank", "2", "--num-machines", "2", "MODEL.DEVICE", "cpu"],
            "--machine-rank 2: of 2 machines (--num-machines) the ranks are 0 to 1",
        ),
        (["train", "--config-file", "none.yaml"], "none.yaml"),
        (["robustness", "data", "--axes", "rain"], "'rain' is unknown; choose from "),
        (["visualize", "data", "--output", "o", "--images", "0"], "no whole number from 1 on"),
        (["serve", "--port", "99999"], "--port: '99999' is no whole number from 0 to 65535"),
        (["predict", "a.jpg", "--threads", "-3"], "--threads: '-3' is no whole number from 0 to"),
        (["report", "a.jpg", "--output", "o", "--workers", "-1"], "--workers: '-1' is no whole"),
        (
            ["predict", "--json", "--files-from", "no.txt"],
            "--files-from no.txt: cannot be read (No",
        ),
        (["score", "a", "b", "--output", "o", "--resamples", "-1"], "--resamples: '-1' is no wh"),
        (["robustness", "a", "--seed", "-1"], "--seed: '-1' is no whole number from 0 on"),
        (
            ["score", "a", "b", "--output", "o", "--temperature", "x"],
            "'x' is no number, and no cal",
        ),
        (
            ["publish", "a", "b.safetensors", "--verdict", "no.json"],
            "--verdict no.json: is no rule",
        ),
        # An address that documents use, and no machine has.
        (["serve", "--host", "192.0.2.1", "--store", "o"], "give another --host"),
        (["doctor", "a", "--max-distance", "65"], "'65' is no whole number from 0 to 64"),
        (["predict", "--", "-a.jpg", "--output", "o"], "--output stands behind --, where all"),
        (["predict", "--output", "o", "--", "-none.jpg"], "error: -none.jpg: there is no such"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words: list[str], message: str, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_names_from_a_closed_stdin_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    assert main(["predict", "--files-from", "-", "--json"]) == 2
    assert capsys.readouterr().err == "error: stdin is closed; give --files-from a file\n"


@pytest.mark.parametrize(
    ("device", "count", "message"),
    [
        ("cuda", 0, "finds no CUDA device here; give MODEL.DEVICE cpu"),
        ("cuda:2", 2, "cuda:2, but PyTorch finds 2 CUDA devices here; count from 0"),
        ("banana", 0, "banana, which PyTorch does not know"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "serve"])
def test_a_device_that_is_not_there_is_one_line_before_anything_is_loaded(
    command: str, device: str, count: int, message: str, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("loupe.service.server.run_server", lambda *_: pytest.fail("it serves"))
    words = {"predict": ["a.jpg", "--output", str(tmp_path / "o")], "serve": ["--port", "0"]}
    assert main([command, *words[command], "--device", device]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: MODEL.DEVICE is ")
    assert message in error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["doctor", "score", "explain", "export"])
def test_a_place_that_cannot_be_written_to_is_said_before_anything_is_done(
    name: str, tmp_path: Path, capsys
):
    file = tmp_path / "file.png"
    Image.new("RGB", (8, 8)).save(file)
    (tmp_path / "predictions").mkdir()
    inputs = {
        "doctor": [str(tmp_path)],
        "score": [str(tmp_path / "predictions"), str(tmp_path)],
        "explain": [str(file)],
        "export": [],
    }[name]
    assert main([name, *inputs, "--output", str(file / "out")]) == 2
    out, error = capsys.readouterr()
    assert error.splitlines()[-1].startswith(f"error: {file}/out: cannot be written to")
    assert out == ""


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("sheet", "sheet: this ending is no picture's"),
        ("file.png/y.png", "file.png: cannot be wri"),
    ],
)
def test_a_sheet_that_cannot_be_written_is_told_before_it_is_drawn(
    output: str, said: str, monkeypatch, tmp_path: Path, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("file.png").touch()
    monkeypatch.setattr("loupe.data.training.sheet.draw_sheet", lambda *_: pytest.fail("drawn"))
    assert main(["visualize", "synthetic://train?size=64", "--output", output]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert "give " in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "8"], "--size is 8; it must be at least 32"),
        (["--difficulty", "300"], "argument --difficulty: '300' is no whole number from 0 to 100"),
    ],
)
def test_synthetic_images_that_cannot_be_made_are_told_at_once(words, said, tmp_path, capsys):
    assert main(["synthesize", "--output", str(tmp_path / "out"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_with_what_to_do(capsys):
    def write(_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert run_command("x", "", lambda parser: None, write, []) == 2
    assert "No space left on device; free space and run" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback():
    def run(arguments) -> int:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        run_command("predict", "", lambda parser: None, run, [])


@pytest.mark.parametrize("before", [["--output", "o"], ["b.jpg", "--output", "o"], []])
def test_words_behind_two_dashes_are_names(before: list[str], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("--odd.jpg").touch()
    words = [*before, "--", "-dash.png", "--odd.jpg", "c.jpg", "SOLVER.BASE_LR", "-1"]
    found = parse("predict", "", predict.add_arguments, words)
    assert found.inputs == [*before[:-2], "-dash.png", "--odd.jpg", "c.jpg"]
    assert found.opts == ["SOLVER.BASE_LR", "-1"]
    assert found.output == ("o" if before else None)
    found = parse("publish", "", publish.add_arguments, ["--", "-a.pth", "x"])
    assert (found.source, found.name) == (Path("-a.pth"), "x")


@pytest.mark.parametrize(
    ("words", "inputs"),
    [
        (["a.jpg", "b", "TEST.IMS_PER_BATCH", "1"], 2),
        (["DSC_0001.JPG", "IMG.PNG", "SEED", "3"], 2),
        (["a.jpg", "OUTPUT_DIR", "A.B"], 1),
        (["SCANS.OLD"], 0),
        (["Solver.Rate", "x"], 2),
    ],
)
def test_keys_are_told_from_files(words: list[str], inputs: int):
    assert split_options(words) == (words[:inputs], words[inputs:])


def test_a_file_that_looks_like_a_key_is_a_file(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("TEST.IMAGE").touch()
    assert split_options(["TEST.IMAGE"]) == (["TEST.IMAGE"], [])
