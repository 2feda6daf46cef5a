"""Names of the files that an evaluation leaves."""

from __future__ import annotations

import pytest

from loupe.trainer.evaluation import file_stem


def test_a_plain_name_stays():
    assert file_stem("ddl_valid-2.0") == "ddl_valid-2.0"


def test_names_that_differ_in_what_no_file_name_holds_do_not_collide():
    names = ["a/b", "a_b", "a?b", "a&b"]
    assert len({file_stem(name) for name in names}) == len(names)


@pytest.mark.parametrize("letter", ["a", "é", "図"])
def test_a_long_name_fits_a_file_system(letter: str):
    names = [letter * 300 + end for end in "12"]
    stems = [file_stem(name) for name in names]
    assert stems[0] != stems[1]
    assert all(len(f"model_adapted_{stem}.pth.part".encode()) <= 255 for stem in stems)


def test_a_name_has_the_same_file_each_time():
    assert file_stem("synthetic://test?size=128") == file_stem("synthetic://test?size=128")
    assert file_stem("synthetic://test?size=128").startswith("synthetic___test_size_128-")
