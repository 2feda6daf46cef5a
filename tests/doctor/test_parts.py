"""The doctor's parts: the search for close hashes, the cache, what is measured of a mask."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from loupe.data.sources.entries import DatasetDict, DatasetError, make_dataset_dict
from loupe.doctor.duplicates import candidate_pairs, look_alike, near_duplicates
from loupe.doctor.examination import examine_all
from loupe.doctor.facts import Grid, ImageFacts, measure_image, measure_mask, take_fingerprints
from loupe.doctor.listing import list_datasets

GRID = Grid(32, 8)


@pytest.fixture
def entries(tmp_path) -> list[DatasetDict]:
    """Forty small images, every other with a mask."""
    random = np.random.default_rng(0)
    made = []
    for number in range(40):
        image, mask = tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png"
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(image)
        Image.fromarray(random.random((20, 24)) < 0.3).save(mask)
        has_mask = number % 2 == 1
        made.append(
            make_dataset_dict(
                image,
                image.name,
                label=int(has_mask),
                mask_file_name=mask if has_mask else None,
            )
        )
    return made


def near_hashes(count: int) -> np.ndarray:
    """Random hashes, and copies of some with 0 to 9 bits flipped."""
    random = np.random.default_rng(1)
    hashes = random.integers(0, 2**64, count, np.uint64)
    for number in range(count // 2):
        flips = random.choice(64, number % 10, replace=False).astype(np.uint64)
        flipped = np.bitwise_or.reduce(np.uint64(1) << flips) if len(flips) else np.uint64(0)
        hashes[count // 2 + number] = hashes[number] ^ flipped
    return hashes


@pytest.mark.parametrize("distance", [0, 3, 6, 7])
def test_the_band_index_finds_what_comparing_all_pairs_finds(distance):
    hashes = near_hashes(400)
    first, second = np.triu_indices(len(hashes), 1)
    close = np.bitwise_count(hashes[first] ^ hashes[second]) <= distance
    expected = set(zip(first[close].tolist(), second[close].tolist(), strict=True))
    found = set()
    for left, right in candidate_pairs(hashes, distance):
        found |= set(zip(left.tolist(), right.tolist(), strict=True))
    assert len(expected) > 10
    assert found == expected


def test_many_equal_hashes_are_compared_with_the_first_only():
    pairs = list(candidate_pairs(np.zeros(5000, np.uint64), 6))
    assert sum(len(first) for first, _ in pairs) == 4999


def test_thumbnails_look_alike_whatever_their_contrast_or_what_was_pasted():
    random = np.random.default_rng(2)
    thumbnail = random.integers(0, 200, (1, 256))
    pasted, other = thumbnail.copy(), random.integers(0, 200, (1, 256))
    pasted[:, :100] = other[:, :100]
    assert look_alike(thumbnail, thumbnail // 2 + 40).all()
    assert look_alike(thumbnail, pasted).all()
    assert not look_alike(thumbnail, other).any()


@pytest.mark.parametrize("corner", range(4))
def test_a_forgery_in_one_quarter_leaves_the_hashes_of_the_others(corner):
    random = np.random.default_rng(3)
    image = np.kron(random.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    forged = image.copy()
    top, left = divmod(corner, 2)
    forged[32 * top : 32 * top + 32, 32 * left : 32 * left + 32] = random.integers(
        0, 256, (32, 32, 1)
    )
    before, after = (take_fingerprints(pixels)[1].split(",") for pixels in (image, forged))
    assert all(before)
    equal = [a == b for a, b in zip(before, after, strict=True)]
    assert equal == [False, *(part != corner for part in range(4))]


def test_flat_and_unreadable_images_have_no_partners(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"]
    for path, value in zip(paths[:2], (100, 101), strict=True):
        Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(path)
    facts = [measure_image(str(path), None, "", GRID) for path in paths]
    assert facts[2].image_error
    assert near_duplicates([*facts, ImageFacts()], 6) == []


def test_facts_are_equal_in_one_process_and_in_several(entries):
    assert examine_all(entries, GRID) == examine_all(entries, GRID, processes=2)


def killed_by_number_7(chunk: list, grid: Grid) -> list:
    """Measures a chunk of images, unless number 7 is in it."""
    if any(job[0].endswith("/7.png") for _, job in chunk):
        os.kill(os.getpid(), signal.SIGKILL)
    return [(key, measure_image(*job, grid)) for key, job in chunk]


def test_an_image_that_kills_its_process_is_named_and_the_rest_is_examined(entries, monkeypatch):
    whole = examine_all(entries[:10], GRID)
    monkeypatch.setattr("loupe.doctor.examination._examine_chunk", killed_by_number_7)
    monkeypatch.setattr("loupe.doctor.examination._CHUNK", 2)
    found = examine_all(entries[:10], GRID, processes=2)
    assert [bool(facts.image_error) for facts in found] == [n == 7 for n in range(10)]
    assert "is lost" in found[7].image_error
    assert found[:7] + found[8:] == whole[:7] + whole[8:]


def test_an_interrupted_run_goes_on_where_it_stopped(entries, tmp_path, monkeypatch):
    cache = tmp_path / "facts.jsonl"
    whole = examine_all(entries, GRID)
    examine_all(entries[:16], GRID, cache=cache)
    with open(cache, "a") as file:
        file.write('{"key": "[1, 32')  # killed while it wrote
    examined = []

    def count(image: str, *rest: object) -> ImageFacts:
        examined.append(image)
        return measure_image(image, *rest)

    monkeypatch.setattr("loupe.doctor.examination.measure_image", count)
    assert examine_all(entries, GRID, cache=cache) == whole
    assert examined == [entry["file_name"] for entry in entries[16:]]
    examined.clear()
    assert examine_all(entries, GRID, cache=cache) == whole
    assert examined == []


def test_a_changed_file_is_examined_again(entries, tmp_path):
    cache = tmp_path / "facts.jsonl"
    before = examine_all(entries, GRID, cache=cache)
    Image.fromarray(np.full((30, 10, 3), 7, np.uint8)).save(entries[0]["file_name"])
    after = examine_all(entries, GRID, cache=cache)
    assert (after[0].width, after[0].height) == (10, 30)
    assert after[1:] == before[1:]


def test_another_grid_is_examined_anew(entries, tmp_path):
    cache = tmp_path / "facts.jsonl"
    examine_all(entries[:2], GRID, cache=cache)
    examine_all(entries[:2], Grid(64, 8), cache=cache)
    assert len(cache.read_text().splitlines()) == 4


def test_a_file_that_is_no_cache_is_not_written_to(entries, tmp_path):
    cache = tmp_path / "notes.txt"
    cache.write_text("my notes\n")
    with pytest.raises(ValueError, match=r"notes\.txt: is no cache"):
        examine_all(entries, GRID, cache=cache)
    assert cache.read_text() == "my notes\n"


def test_progress_reaches_the_number_of_images(entries):
    done = []
    examine_all(entries, GRID, report=done.append)
    assert done[0] == 0
    assert done == sorted(done)
    assert done[-1] == len(entries)


def test_a_mask_is_measured_at_its_own_size_and_on_the_grid():
    mask = np.zeros((64, 64), np.float32)
    mask[:16, :24] = 1  # on a grid of 32: 8 x 12 pixels, one and a half patches of 8
    facts = measure_mask(mask, GRID)
    assert facts.forged == pytest.approx(16 * 24 / 64**2)
    assert facts.pixels == pytest.approx(8 * 12 / 32**2)
    assert facts.patches == pytest.approx(1.5 / 16)
    assert facts.full_patches == pytest.approx(2 / 16)
    assert facts.border == pytest.approx((24 + 15) / (4 * 63))


def test_a_mask_drawn_on_stored_pixels_is_turned_with_its_photograph(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image, mask = tmp_path / "a.jpg", tmp_path / "a.png"
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(image, exif=exif)
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(mask)
    facts = measure_image(str(image), str(mask), "", GRID)
    assert (facts.width, facts.height) == (20, 30)
    assert (facts.mask.width, facts.mask.height) == (20, 30)


def test_a_deep_tiff_is_examined(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "deep.tif"), pixels)
    facts = measure_image(str(tmp_path / "deep.tif"), None, "", GRID)
    assert (facts.image_error, facts.format, facts.width) == ("", "TIFF", 30)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_the_smallest_images_are_examined(tmp_path, shape):
    Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full(shape, 255, np.uint8)).save(tmp_path / "mask.png")
    facts = measure_image(str(tmp_path / "a.png"), str(tmp_path / "mask.png"), "", GRID)
    assert (facts.height, facts.width) == shape
    assert facts.mask.forged == facts.mask.border == facts.mask.pixels == 1


def test_sets_are_named_by_as_much_of_their_path_as_tells_them_apart(tmp_path):
    for folder in ("a/test", "b/test"):
        path = tmp_path / folder / "x.png"
        path.parent.mkdir(parents=True)
        path.touch()
    listings = list_datasets([str(tmp_path / "a/test"), str(tmp_path / "b/test")])
    assert [listing.name for listing in listings] == ["a/test", "b/test"]


def test_orphans_of_a_named_set_are_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in ("real/a.png", "fake/b.png", "masks/b.png", "masks/orphan.png"):
        path = tmp_path / "ddl/train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (listing,) = list_datasets(["ddl_train"])
    assert [entry["image_id"] for entry in listing.entries] == ["real/a.png", "fake/b.png"]
    assert listing.problems == ["masks/orphan.png: a mask of no image in fake/"]


def test_a_list_with_a_wrong_line_cannot_be_examined(tmp_path):
    manifest = Path(tmp_path / "manifest.csv")
    manifest.write_text("image,label\na.png,perhaps\n")
    with pytest.raises(DatasetError, match="line 2"):
        list_datasets([str(manifest)])
