"""What is found below a folder, what is left out and said, and names for results."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loupe.data.sources.catalog import load_dataset, load_index
from loupe.data.sources.files import find_files, list_images, local_path, result_names


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("JPEG", "a.jfif"), ("MPO", "a.mpo"), ("JPEG2000", "a.jp2"), ("AVIF", "a.avif")),
        *(("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp"), ("TIFF", "tiff"), ("GIF", "gif")),
    ],
)
def test_images_of_rare_endings_and_without_one_are_found(tmp_path, kind, name):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name, kind)
    assert list_images(tmp_path) == [name]


def test_what_is_left_out_is_counted_by_ending_and_said(tmp_path, caplog):
    touch(tmp_path, "a.png", "b.psd", "c.psd", "deep/d.TXT", "e", ".hidden.psd")
    (tmp_path / "e").write_text("no image")
    assert list_images(tmp_path) == ["a.png"]
    assert "4 files left out: .psd 2, " in caplog.text
    assert ".txt 1" in caplog.text
    assert "without ending 1" in caplog.text


def test_nothing_is_said_of_images_alone(tmp_path, caplog):
    touch(tmp_path, "a.png", "b/c.jpg")
    assert len(list_images(tmp_path)) == 2
    assert caplog.text == ""


def test_pipes_sockets_devices_and_loops_are_named_and_left_out(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "deep/b.png")
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)  # A socket's path must be short.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "deep/up").symlink_to(tmp_path, target_is_directory=True)
    found = find_files(tmp_path)
    assert found.images == ["a.png", "deep/b.png"]
    assert [name.split(" ")[0] for name in found.special] == [
        *("deep/up", "pipe.png", "self.png", "socket.png", "zero.png")
    ]
    assert "not a file to read: deep/up (a link to a folder above it)" in found.left_out()


def test_links_that_lead_elsewhere_are_followed(tmp_path):
    touch(tmp_path, "elsewhere/a.png", "set/b.png")
    (tmp_path / "set/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "set/gone.png").symlink_to(tmp_path / "nothing.png")
    # Whoever reads the last says that it does not exist.
    assert list_images(tmp_path / "set") == ["b.png", "gone.png", "linked/a.png"]


@pytest.mark.parametrize("table", ["predictions.csv", "predictions.unfinished.csv"])
def test_results_of_an_earlier_run_are_left_out(tmp_path, table):
    touch(tmp_path, "a.png", f"out/{table}", "out/maps/a.png", "out/masks/a.png")
    touch(tmp_path, "out/overlays/a.png", "album/masks/mardi_gras.png")
    found = find_files(tmp_path)
    assert found.images == ["a.png", "album/masks/mardi_gras.png"]
    assert found.results == ["out/maps", "out/masks", "out/overlays"]


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_of_any_bytes_are_listed_and_indexed(tmp_path):
    folder = os.fsencode(tmp_path / "set")
    os.mkdir(folder)
    for name in (b"caf\xe9.png", b"new\nline.png", b"\xff\xfe.jpg"):
        open(os.path.join(folder, name), "wb").close()
    entries = load_dataset(str(tmp_path / "set"))
    assert all(os.path.exists(entry["file_name"]) for entry in entries)
    assert list(load_index(str(tmp_path / "set"))) == entries


PATHS = st.lists(
    st.builds("{}{}".format, st.sampled_from(["a", "b/a", "b"]), st.text(".jp", max_size=6)),
    unique=True,
)


@given(PATHS)
def test_no_two_results_have_one_name(paths):
    names = result_names(paths)
    assert list(names) == paths
    assert len(set(names.values())) == len(paths)


def test_results_are_named_by_their_stem_where_that_is_enough():
    names = result_names(["a.jpg", "a.png", "a.jpg.png", "b/a.png", "c.tar.png"])
    assert list(names.values()) == ["a.jpg", "a.png", "a.jpg.png", "b/a", "c.tar"]


def test_names_that_are_too_long_are_cut_and_stay_apart():
    first, second = result_names([f"b/{'ä' * 123}{end}.png" for end in "xy"]).values()
    assert first != second
    assert all(len(os.fsencode(name.split("/")[1])) <= 240 for name in (first, second))


def test_windows_paths_are_taken_for_ours_unless_a_file_is_called_so(tmp_path):
    assert local_path(tmp_path, r"images\a.png") == "images/a.png"
    touch(tmp_path, r"images\a.png")
    assert local_path(tmp_path, r"images\a.png") == r"images\a.png"
    with pytest.raises(ValueError, match="is on another machine"):
        local_path(tmp_path, r"D:\images\a.png")
