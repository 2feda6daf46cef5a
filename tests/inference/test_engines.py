"""Shares of a folder among processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from loupe.inference.engines import Share, join_tables
from loupe.writing import write_csv


def test_processes_share_all_files_and_none_twice():
    names = {f"{number}.png": str(number) for number in range(11)}
    shares = [Share(rank, 3).names(names) for rank in range(3)]
    assert sorted(file for share in shares for file in share) == sorted(names)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_alone_shares_nothing():
    assert Share.of_environment({}) is None
    assert Share.of_environment({"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert Share.of_environment({"WORLD_SIZE": "4", "RANK": "2"}) == Share(2, 4)


def test_tables_are_joined_in_the_order_of_the_files(tmp_path: Path):
    parts = [tmp_path / "a", tmp_path / "b"]
    header = ("file", "probability")
    write_csv(parts[0] / "predictions.csv", header, [["=1.png", "0.1"], ["3.png", "0.3"]])
    write_csv(parts[1] / "predictions.csv", header, [["2.png", "0.2"]])
    join_tables(parts, tmp_path, {"=1.png": "", "2.png": "", "3.png": ""})
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines == ["file,probability", "'=1.png,0.1", "2.png,0.2", "3.png,0.3"]


def test_a_missing_row_is_no_silent_loss(tmp_path: Path):
    write_csv(tmp_path / "a" / "predictions.csv", ("file",), [["1.png"]])
    with pytest.raises(KeyError):
        join_tables([tmp_path / "a"], tmp_path, {"1.png": "", "2.png": ""})
