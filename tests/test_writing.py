"""Files are whole or absent, JSON is JSON, tables hold no formulas."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import logging
import os
import signal
import stat
import subprocess
import sys
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch

from loupe.writing import (
    LOCK,
    UNFINISHED,
    OutputError,
    guard_cell,
    keep_logs_printable,
    locked_folder,
    markdown_table,
    markdown_text,
    plain,
    read_cell,
    replacing,
    write_csv,
    write_json,
    write_text,
)


def test_a_file_keeps_its_old_content_until_the_new_one_is_whole(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path, text=True) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
        # Beside it, so that a rename is enough, under a name that no pattern takes for a result.
        assert sorted(name[:12] for name in os.listdir(tmp_path)) == [".unfinished-", "a.txt"]
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as file:
        fail_after_writing(file, error)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_said_with_the_file(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "fsync", partial(fail_with, errno.ENOSPC))
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.txt'"):
        write_text(tmp_path / "a.txt", "new")
    with pytest.raises(OSError, match="^only text$"), replacing(tmp_path / "a.txt"):
        raise OSError("only text")
    assert os.listdir(tmp_path) == []


def fail_after_writing(file: IO[bytes], error: type[BaseException]) -> None:
    file.write(b"new")
    raise error


def test_content_is_on_the_disk_before_its_name_and_the_name_after(tmp_path: Path, monkeypatch):
    done: list[object] = []
    rename = os.replace

    def note_sync(handle: int) -> None:
        about = os.fstat(handle)
        done.append("folder" if stat.S_ISDIR(about.st_mode) else about.st_size)

    def note_name(old: str, new: Path) -> None:
        done.append(new.name)
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_name)
    write_text(tmp_path / "a.txt", "four")
    assert done == [4, "a.txt", "folder"]


def test_a_new_file_has_the_rights_that_an_ordinary_one_has(tmp_path: Path):
    write_text(tmp_path / "ours", "")
    (tmp_path / "ordinary").touch()
    ours, ordinary = (stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("ours", "ordinary"))
    assert ours == ordinary


def test_folders_are_made(tmp_path: Path):
    write_text(tmp_path / "a/b/c.txt", "x")
    assert (tmp_path / "a/b/c.txt").read_text() == "x"


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path: Path):
    content = {"a": float("nan"), "b": np.float32(np.inf), "c": np.arange(2), "d": torch.ones(1)}
    write_json(tmp_path / "a.json", content)
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert read == {"a": None, "b": None, "c": [0, 1], "d": [1.0]}


def test_what_is_plain_stays(tmp_path: Path):
    assert plain({"a": [1, 0.5, None, True, "x"]}) == {"a": [1, 0.5, None, True, "x"]}


@pytest.mark.parametrize(
    "name", ["=1+1", "@x", "-a", "+a", "\tx", "'=x", "''@x", "'x", "a", "-1e-3"]
)
def test_every_cell_is_read_as_it_was_written(tmp_path: Path, name: str):
    write_csv(tmp_path / "a.csv", ["name"], [[name]])
    with (tmp_path / "a.csv").open(newline="") as file:
        (_, (cell,)) = csv.reader(file)
    assert read_cell(cell) == name


@pytest.mark.parametrize("name", ["=1+1", "@x", "-a", "+a", "\tx", "\rx", "'=x"])
def test_no_cell_begins_as_a_formula(name: str):
    assert str(guard_cell(name)).startswith("'")


@pytest.mark.parametrize("text", ["-0.5", "+1e3"])
def test_a_number_as_text_stays_a_number(text: str):
    assert guard_cell(text) == text


def test_markdown_escapes_what_is_markup_or_ends_a_cell():
    assert markdown_text("<script>|\n&") == "&lt;script&gt;\\| &amp;"
    # A terminal that shows a report obeys what begins with these.
    assert markdown_text("a\x1b[2J\x9b1m\x7f") == r"a\\x1b[2J\\x9b1m\\x7f"


def test_a_markdown_table_has_a_line_for_each_row():
    assert markdown_table(["a", "b|"], [[1, None]]) == "| a | b\\| |\n|---|---:|\n| 1 |  |\n"


def test_names_of_any_bytes_survive_in_tables_and_json(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9.png")
    write_csv(tmp_path / "a.csv", ["file"], [[name]])
    write_json(tmp_path / "a.json", {"file": name})
    assert (tmp_path / "a.csv").read_bytes() == b"file\ncaf\xe9.png\n"
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"file": name}


# A run with a worker that it forked, as loaders do; the worker outlives it.
HOLD = """
import os, sys, time
from loupe.writing import locked_folder
with locked_folder(sys.argv[1], "--output"):
    # The worker speaks: by then it has let go of the lock that it was born with.
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_killed_run_holds_no_lock_though_its_workers_live(tmp_path: Path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        worker = int(run.stdout.readline())
        with (
            pytest.raises(OutputError, match="another run is writing there"),
            locked_folder(tmp_path, "--output"),
        ):
            pass
        run.kill()
        run.wait()
        os.kill(worker, 0)  # It still lives.
        with locked_folder(tmp_path, "--output"):
            os.kill(worker, signal.SIGKILL)


def test_a_folder_is_free_again_after_a_run_and_after_its_failure(tmp_path: Path):
    for error in (None, ValueError):
        with suppress(ValueError), locked_folder(tmp_path, "--output"):
            if error is not None:
                raise error
    with locked_folder(tmp_path, "--output"):
        pass


def test_what_a_killed_run_was_writing_is_gone_but_not_what_others_write(tmp_path: Path):
    left = [UNFINISHED + "a", "maps/" + UNFINISHED + "b"]
    others = ["maps/a.png", "other/" + LOCK, "other/" + UNFINISHED + "c", UNFINISHED[1:]]
    for name in (*left, *others):
        write_text(tmp_path / name, "")
    elsewhere = tmp_path / "other" / "elsewhere" / (UNFINISHED + "d")
    write_text(elsewhere, "")
    (tmp_path / "link").symlink_to(elsewhere.parent)
    with locked_folder(tmp_path, "--output"):
        assert not any((tmp_path / name).exists() for name in left)
        assert all((tmp_path / name).exists() for name in others)
        assert elsewhere.exists()


def test_a_file_system_without_locks_serves_and_other_errors_show(tmp_path: Path, monkeypatch):
    for number in (errno.ENOLCK, errno.EIO):
        monkeypatch.setattr(fcntl, "flock", partial(fail_with, number))
        refused = number == errno.EIO
        with (
            pytest.raises(OSError, match="Input/output error") if refused else nullcontext(),
            locked_folder(tmp_path, "--output"),
        ):
            pass


def fail_with(number: int, *arguments: object) -> None:
    raise OSError(number, os.strerror(number))


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError), locked_folder(tmp_path / "out", "--output"):
        pass


@pytest.fixture
def log(monkeypatch):
    """What a handler of `loupe`'s log writes, as in a program of ours."""
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    for name in ("loupe", "another"):
        logging.getLogger(name).addHandler(handler)
    keep_logs_printable()
    keep_logs_printable()
    yield stream
    for name in ("loupe", "another"):
        logging.getLogger(name).removeHandler(handler)


def test_the_log_shows_control_characters_of_names_and_of_errors(log):
    logger = logging.getLogger("loupe.data.any")
    logger.warning("%s: 100%% of %d\nsecond line", Path("clear\x1b[2J.png"), 3)
    try:
        raise ValueError("bell\a.png")
    except ValueError:
        logger.exception("failed")
    assert "\x1b" not in log.getvalue()
    assert "\a" not in log.getvalue()
    assert "clear\\x1b[2J.png: 100% of 3\nsecond line\n" in log.getvalue()
    assert "ValueError: bell\\x07.png" in log.getvalue()


def test_the_log_of_others_stays_as_it_is(log):
    logging.getLogger("another").warning("\x1b[1mbold\x1b[0m")
    assert log.getvalue() == "\x1b[1mbold\x1b[0m\n"
