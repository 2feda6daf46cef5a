"""The index: entries in columns, the file they are kept in, and when that is taken."""

from __future__ import annotations

import logging
import mmap
import multiprocessing
import os
import pickle
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loupe.data.sources import index as index_module
from loupe.data.sources.catalog import load_dataset, load_index
from loupe.data.sources.entries import DatasetError, make_dataset_dict
from loupe.data.sources.index import DatasetIndex, cached_index, index_file, make_index

LOGGER = "loupe.data.sources.index"
TEXT = st.text(max_size=12)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Even the smallest sets are cached, in a folder of the test."""
    monkeypatch.setenv("LOUPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index_module, "SMALLEST_CACHED", 1)
    index_module._warn_once.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path, save):
    """A DDL split of two authentic images and a forged one, an hour old."""
    for name in ("real/a.png", "real/deep/b.png", "fake/c.png", "masks/c.png"):
        save(tmp_path / "tree" / name)
    return age(tmp_path / "tree")


def age(root: Path, seconds: float = 3600) -> Path:
    """Sets the times of a tree back, so that it counts as settled."""
    past = time.time() - seconds
    for path in (root, *root.rglob("*")):
        os.utime(path, (past, past))
    return root


class Lister:
    """Counts how often a data set is listed."""

    def __init__(self, path: Path) -> None:
        self.path, self.times = path, 0

    def __call__(self) -> list:
        self.times += 1
        return load_dataset(str(self.path))


ENTRIES = st.builds(
    make_dataset_dict,
    st.one_of(TEXT, st.builds("{}/{}".format, TEXT, TEXT)),
    TEXT,
    label=st.sampled_from([0, 1, None]),
    mask_file_name=st.one_of(st.none(), TEXT),
    technique=TEXT,
    source=TEXT,
    wholly_forged=st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(ENTRIES, max_size=6))
def test_columns_give_the_dicts_that_they_were_made_of(entries):
    index = make_index(entries)
    assert list(index) == entries
    assert [None if label < 0 else label for label in index.labels] == [
        entry["label"] for entry in entries
    ]


def test_places_are_counted_from_both_ends():
    entries = [make_dataset_dict(f"{n}.png", str(n), label=n % 2) for n in range(5)]
    index = make_index(entries)
    assert (index[4], index[-5]) == (entries[4], entries[0])
    with pytest.raises(IndexError, match="entry 5 of 5"):
        index[5]


def test_names_that_are_no_text_survive():
    name = os.fsdecode(b"\xff\xfe/\xe9.png")
    (entry,) = make_index([make_dataset_dict(name, "lone \ud800 half", label=0)])
    assert (entry["file_name"], entry["image_id"]) == (name, "lone \ud800 half")


@pytest.mark.parametrize(
    "odd", [{"image_id": 5}, {"height": 3}, {"technique": None}, {"source": 7}, {"mask_rule": None}]
)
def test_dicts_of_another_kind_are_no_columns(odd):
    whole = make_dataset_dict("a.png", "a", label=0)
    assert make_index([whole, whole | odd]) is None
    assert make_index([whole, {"file_name": "x.png"}]) is None


def test_a_pickled_index_is_the_name_of_its_file(tmp_path):
    entries = [make_dataset_dict(f"f/{n}.png", str(n), label=n % 2) for n in range(5000)]
    make_index(entries).write(tmp_path / "a.arrow", {})
    content = pickle.dumps(DatasetIndex.open(tmp_path / "a.arrow"))
    assert len(content) < 500
    assert list(pickle.loads(content)) == entries
    assert list(pickle.loads(pickle.dumps(make_index(entries)))) == entries


def test_a_mapped_index_knows_its_own_checksum_and_not_that_of_a_later_file(tmp_path, monkeypatch):
    old, new = tmp_path / "a.arrow", tmp_path / "b.arrow"
    make_index([make_dataset_dict("a", "a", label=0)]).write(old, {})
    make_index([make_dataset_dict("b", "b", label=0)]).write(new, {})
    original = mmap.mmap

    def replaced_meanwhile(*arguments, **options):
        content = original(*arguments, **options)
        os.replace(new, old)
        return content

    monkeypatch.setattr(mmap, "mmap", replaced_meanwhile)
    index = DatasetIndex.open(old)
    monkeypatch.undo()
    assert index[0]["file_name"] == "a"
    with pytest.raises(ValueError, match="has changed"):
        pickle.loads(pickle.dumps(index))


def test_a_pickled_index_whose_file_was_replaced_is_refused(tmp_path):
    make_index([make_dataset_dict("a", "a", label=0)]).write(tmp_path / "a.arrow", {})
    content = pickle.dumps(DatasetIndex.open(tmp_path / "a.arrow"))
    make_index([make_dataset_dict("b", "b", label=0)]).write(tmp_path / "a.arrow", {})
    with pytest.raises(ValueError, match="the data set has changed; start again"):
        pickle.loads(content)


def test_an_index_of_another_set_is_not_taken(tmp_path, save):
    one, two = (age(save(tmp_path / name / f"{name}.png").parent) for name in ("one", "two"))
    for folder in (one, two):
        load_index(str(folder))
    os.replace(index_file(one), index_file(two))
    assert list(load_index(str(two))) == load_dataset(str(two))


def test_small_sets_leave_no_file(tree, cache, monkeypatch):
    monkeypatch.setattr(index_module, "SMALLEST_CACHED", 4)
    assert isinstance(load_index(str(tree)), DatasetIndex)
    assert not cache.exists()


def add_image(root: Path) -> None:
    (root / "real/deep/new.png").touch()


def remove_image(root: Path) -> None:
    (root / "real/a.png").unlink()


def rename_image(root: Path) -> None:
    (root / "real/a.png").rename(root / "real/z.png")


def add_folder(root: Path) -> None:
    (root / "real/other").mkdir()
    (root / "real/other/d.png").touch()


def add_manifest(root: Path) -> None:
    (root / "manifest.csv").write_text("image,label\nreal/a.png,0\n")


@pytest.mark.parametrize(
    "change", [add_image, remove_image, rename_image, add_folder, add_manifest]
)
def test_a_tree_that_changes_is_listed_anew(tree, change):
    load_index(str(tree))
    change(tree)
    assert list(load_index(str(tree))) == load_dataset(str(tree))


def test_a_tree_with_a_table_that_changes_is_listed_anew(tree):
    table = tree / "real/notes.csv"
    table.write_text("a")
    age(tree)
    lister = Lister(tree)
    cached_index(tree, lister)
    # Its folder does not change with it, nor does its size.
    table.write_text("b")
    os.utime(table, (time.time() - 1800,) * 2)
    for _ in range(2):
        cached_index(tree, lister)
    assert lister.times == 2


def test_a_manifest_that_changes_is_read_anew(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for text in ("a.png,0\n", "a.png,1\n", "a.png,1\nb.png,0\n"):
        (folder / "manifest.csv").write_text("image,label\n" + text)
        # The times differ by seconds, the size not always.
        age(folder, 3600 - len(text) - 10 * text.count("1"))
        for place in (folder, folder / "manifest.csv"):
            lister = Lister(place)
            assert list(cached_index(place, lister)) == load_dataset(str(place))
            cached_index(place, lister)
            assert lister.times == 1


def test_a_reader_that_changes_means_a_new_listing(tree, monkeypatch):
    lister = Lister(tree)
    cached_index(tree, lister)
    monkeypatch.setattr(index_module, "_readers_digest", lambda: "of another version")
    cached_index(tree, lister)
    assert lister.times == 2


def test_what_has_just_changed_is_not_kept(tree, cache):
    (tree / "real/new.png").touch()
    lister = Lister(tree)
    cached_index(tree, lister)
    assert not list(cache.rglob("*.arrow"))
    age(tree)
    cached_index(tree, lister)
    assert len(list(cache.rglob("*.arrow"))) == 1


def test_a_set_that_changes_while_it_is_listed_is_not_kept(tree, cache, caplog):
    def lister() -> list:
        entries = load_dataset(str(tree))
        add_image(tree)
        return entries

    with caplog.at_level(logging.WARNING, LOGGER):
        cached_index(tree, lister)
    assert "has changed while it was listed" in caplog.text
    assert not list(cache.rglob("*.arrow"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_index_is_made_anew_with_a_warning(tree, caplog, damage):
    load_index(str(tree))
    file = index_file(tree)
    content = bytearray(file.read_bytes())
    content[700] ^= 0xFF
    file.write_bytes({"flip": content, "cut": content[:700], "empty": b""}[damage])
    with caplog.at_level(logging.WARNING, LOGGER):
        assert list(load_index(str(tree))) == load_dataset(str(tree))
    assert "cannot be used and is made anew" in caplog.text
    caplog.clear()
    assert list(load_index(str(tree))) == load_dataset(str(tree))
    assert caplog.text == ""


def test_a_cache_that_cannot_be_written_is_said_once(tree, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOUPE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, LOGGER):
        for _ in range(2):
            assert list(load_index(str(tree))) == load_dataset(str(tree))
    (record,) = caplog.records
    assert "Indices of data sets cannot be kept in" in record.getMessage()


def test_a_relative_path_means_another_set_in_another_folder(tmp_path, save, monkeypatch):
    for name in ("one", "two"):
        save(tmp_path / name / "set" / f"{name}.png")
        age(tmp_path / name)
    for name in ("one", "two"):
        monkeypatch.chdir(tmp_path / name)
        assert [entry["file_name"] for entry in load_index("set")] == [f"set/{name}.png"]


def test_processes_that_ask_at_once_list_once(tree):
    listed = []

    def lister() -> list:
        listed.append(1)
        time.sleep(0.2)
        return load_dataset(str(tree))

    threads = [threading.Thread(target=cached_index, args=(tree, lister)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(listed) == 1


def _own_megabytes(answer, index) -> None:
    for entry in index:
        assert entry["image_id"]
    inside, own = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            inside = words[-1].endswith(".arrow")
        elif inside and words[0] in ("Private_Clean:", "Private_Dirty:"):
            own += int(words[1])
    answer.put(own)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_a_worker_owns_no_page_of_the_index(tmp_path):
    entries = [make_dataset_dict(f"f/{n}.png", str(n), label=0) for n in range(20_000)]
    make_index(entries).write(tmp_path / "a.arrow", {})
    index = DatasetIndex.open(tmp_path / "a.arrow")
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    worker = context.Process(target=_own_megabytes, args=(answer, index))
    worker.start()
    assert answer.get(timeout=60) == 0
    worker.join()


def test_errors_of_a_set_are_those_of_listing_it(tree):
    (tree / "fake/c.png").unlink()
    with pytest.raises(DatasetError, match="a mask of no image"):
        load_index(str(tree))


def test_json_is_listed_each_time(tmp_path, save, cache):
    save(tmp_path / "a.png")
    (tmp_path / "set.json").write_text('[["a.png", "Negative"]]')
    age(tmp_path)
    assert list(load_index(str(tmp_path / "set.json"))) == load_dataset(str(tmp_path / "set.json"))
    assert not cache.exists()


def test_a_synthetic_set_is_columns_too():
    name = "synthetic://valid?size=64&count=10"
    assert isinstance(load_index(name), DatasetIndex)
    assert list(load_index(name)) == load_dataset(name)
