"""The doctor on sets with faults planted by hand: each is found, and nothing else is."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from loupe.commands.doctor import main

COUNT = 8


def photograph(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(H, W, 3) uint8 scene: another seed looks quite different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def region(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(H, W) uint8 mask of one rectangle inside, 0 and 255."""
    top, left = np.random.default_rng(seed).integers(2, 16, 2)
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + 15, left : left + 20] = 255
    return mask


class Planted:
    """A data set in the DDL tree that is clean until a test plants a fault."""

    def __init__(self, root: Path, first_seed: int = 0, count: int = COUNT) -> None:
        self.root = root
        for number in range(count):
            self.save(f"real/r{number}.png", photograph(first_seed + number))
            self.save(f"fake/f{number}.png", photograph(first_seed + 100 + number))
            self.save(f"masks/f{number}.png", region(number))

    def save(self, name: str, pixels: np.ndarray, **options: object) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)
        return path

    def manifest(self, rows: list[tuple[str, str, object]]) -> Path:
        """Writes a manifest of image, mask, label, which then is what the set is."""
        path = self.root / "manifest.csv"
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([("image", "mask", "label"), *rows])
        return path

    def rows(self) -> list[tuple[str, str, object]]:
        real = [(f"real/r{number}.png", "", 0) for number in range(COUNT)]
        return real + [(f"fake/f{n}.png", f"masks/f{n}.png", 1) for n in range(COUNT)]


@pytest.fixture
def clean(tmp_path) -> Planted:
    return Planted(tmp_path / "set")


@pytest.fixture
def doctor(tmp_path) -> Callable[..., tuple[int, dict[str, list[str]]]]:
    """Runs the tool; returns its exit code and the items of each check."""

    def run(*words: object) -> tuple[int, dict[str, list[str]]]:
        output = tmp_path / "report"
        code = main([*map(str, words), "--output", str(output), "--processes", "1"])
        if code == 2:
            return code, {}
        findings = json.loads((output / "doctor.json").read_text())["findings"]
        found: dict[str, list[str]] = {}
        for finding in findings:
            found.setdefault(finding["check"], []).extend(finding["items"])
        return code, found

    return run


def invert(planted: Planted, number: int) -> None:
    planted.save(f"masks/f{number}.png", 255 - region(number))


def soft(planted: Planted) -> None:
    planted.save("masks/f0.png", cv2.GaussianBlur(region(0), (9, 9), 3))


def cut(planted: Planted, name: str) -> None:
    path = planted.root / name
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def outside_of_range(planted: Planted) -> None:
    grey = photograph(60).astype(np.float32).mean(axis=2) / 128
    planted.save("real/z.tif", grey)


def text_in(planted: Planted, name: str) -> None:
    (planted.root / name).write_text("no image")


# Check, severity 1 = error, how it is planted, the image or file that must be named.
SINGLE_FAULTS = {
    "truncated image": ("unreadable-image", 1, lambda p: cut(p, "real/r0.png"), "real/r0.png"),
    "values above white": ("image-warning", 0, outside_of_range, "real/z.tif: values outside"),
    "image is text": ("unreadable-image", 1, lambda p: text_in(p, "real/r1.png"), "real/r1.png"),
    "empty image file": (
        "unreadable-image",
        1,
        lambda p: (p.root / "fake/f2.png").write_bytes(b""),
        "fake/f2.png",
    ),
    "truncated mask": ("unreadable-mask", 1, lambda p: cut(p, "masks/f0.png"), "fake/f0.png"),
    "small mask": (
        "mask-size",
        1,
        lambda p: p.save("masks/f3.png", region(3, 40, 60)),
        "fake/f3.png: mask 60 x 40, image 64 x 48",
    ),
    "turned mask": ("mask-size", 1, lambda p: p.save("masks/f3.png", region(3).T), "fake/f3.png"),
    "empty mask": (
        "empty-mask",
        1,
        lambda p: p.save("masks/f4.png", np.zeros((48, 64), np.uint8)),
        "fake/f4.png",
    ),
    "mask of 0 and 38": (
        "faint-mask",
        1,
        lambda p: p.save("masks/f4.png", region(4) // 255 * 38),
        "fake/f4.png",
    ),
    "full mask": (
        "full-mask",
        0,
        lambda p: p.save("masks/f5.png", np.full((48, 64), 255, np.uint8)),
        "fake/f5.png",
    ),
    "one inverted mask": ("inverted-mask", 0, lambda p: invert(p, 6), "fake/f6.png"),
    "soft mask": ("grey-mask", 0, soft, "fake/f0.png"),
    "mask is a photograph": (
        "grey-mask",
        0,
        lambda p: p.save("masks/f1.png", photograph(101)),
        "fake/f1.png",
    ),
    "no mask": ("mask-missing", 0, lambda p: (p.root / "masks/f7.png").unlink(), "fake/f7.png"),
    "orphan mask": ("pairs", 1, lambda p: p.save("masks/x.png", region(1)), "masks/x.png"),
    "copied file": (
        "twins",
        0,
        lambda p: shutil.copy(p.root / "real/r0.png", p.root / "real/z.png"),
        "real/r0.png = real/z.png",
    ),
    "same pixels in another file": (
        "equal-pixels",
        0,
        lambda p: p.save("real/z.png", photograph(0), compress_level=0),
        "real/r0.png = real/z.png",
    ),
    "forged and authentic at once": (
        "twins-differ",
        1,
        lambda p: shutil.copy(p.root / "fake/f0.png", p.root / "real/z.png"),
        "real/z.png = fake/f0.png",
    ),
    "compressed copy": (
        "near-twins",
        0,
        lambda p: p.save("real/z.jpg", photograph(0), quality=80),
        "real/r0.png ~ real/z.jpg (authentic and authentic)",
    ),
    "wrong suffix": (
        "suffix",
        0,
        lambda p: p.save("real/z.png", photograph(50), format="JPEG"),
        "real/z.png: is JPEG",
    ),
}


def test_a_clean_set_has_no_findings(clean, doctor):
    assert doctor(clean.root) == (0, {})


@pytest.mark.parametrize("fault", SINGLE_FAULTS)
def test_a_planted_fault_is_found_alone_and_by_name(clean, doctor, fault):
    check, expected_code, plant, name = SINGLE_FAULTS[fault]
    plant(clean)
    code, found = doctor(clean.root)
    assert code == expected_code
    assert list(found) == [check]
    assert len(found[check]) == 1
    assert found[check][0].startswith(name)


def test_a_set_of_inverted_masks_is_one_finding(clean, doctor):
    for number in range(COUNT):
        invert(clean, number)
    code, found = doctor(clean.root)
    assert code == 1
    assert list(found) == ["inverted-masks"]
    assert len(found["inverted-masks"]) == COUNT


def test_a_rule_that_turns_the_masks_makes_them_right(clean, doctor, tmp_path, monkeypatch):
    # DSO-1 is published with inverted masks, which its layout says.
    root = tmp_path / "root" / "tifs-database"
    for number in range(COUNT):
        invert(clean, number)
        for old, new in (("real/r", "DSO-1/normal-"), ("fake/f", "DSO-1/splicing-")):
            (root / "DSO-1").mkdir(parents=True, exist_ok=True)
            shutil.copy(clean.root / f"{old}{number}.png", root / f"{new}{number}.png")
        (root / "DSO-1-Fake-Images-Masks").mkdir(exist_ok=True)
        shutil.copy(
            clean.root / f"masks/f{number}.png",
            root / f"DSO-1-Fake-Images-Masks/splicing-{number}.png",
        )
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    assert doctor("dso1") == (0, {})


def test_a_forged_mask_of_an_authentic_image_is_a_contradiction(clean, doctor):
    rows = [(image, mask, 0 if "f3" in image else label) for image, mask, label in clean.rows()]
    code, found = doctor(clean.manifest(rows))
    assert code == 1
    assert list(found) == ["label-against-mask"]
    assert found["label-against-mask"][0].startswith("fake/f3.png: ")


def test_an_empty_mask_of_an_authentic_image_is_right(clean, doctor):
    clean.save("masks/zeros.png", np.zeros((48, 64), np.uint8))
    rows = [("real/r0.png", "masks/zeros.png", 0), *clean.rows()[1:]]
    assert doctor(clean.manifest(rows)) == (0, {})


def test_a_wholly_forged_image_needs_no_mask(clean, doctor):
    clean.save("fake/generated.png", photograph(77))
    assert doctor(clean.manifest([*clean.rows(), ("fake/generated.png", "*", 1)])) == (0, {})


def test_a_missing_file_is_unreadable(clean, doctor):
    code, found = doctor(clean.manifest([*clean.rows(), ("real/lost.png", "", 0)]))
    assert code == 1
    assert found == {"unreadable-image": [found["unreadable-image"][0]]}
    assert "real/lost.png: the file does not exist" in found["unreadable-image"][0]


def test_an_image_listed_twice_is_found_and_the_rest_is_examined(clean, doctor):
    cut(clean, "real/r2.png")
    code, found = doctor(clean.manifest([*clean.rows(), ("real/r1.png", "", 0)]))
    assert code == 1
    assert found["pairs"] == ["real/r1.png: listed more than once"]
    assert list(found) == ["pairs", "unreadable-image"]


def test_two_masks_of_one_stem_are_found(clean, doctor):
    clean.save("masks/f0.bmp", region(0))
    code, found = doctor(clean.root)
    assert code == 1
    assert [item.split(":")[0] for item in found["pairs"]] == ["masks/f0.bmp = f0.png"]


def test_a_mask_of_two_images_is_noted(clean, doctor):
    rows = clean.rows()
    rows[-1] = (rows[-1][0], rows[-2][1], 1)
    code, found = doctor(clean.manifest(rows))
    assert (code, found) == (0, {"shared-mask": ["fake/f6.png, fake/f7.png"]})


def test_equal_images_with_different_masks_contradict(clean, doctor):
    shutil.copy(clean.root / "fake/f0.png", clean.root / "fake/z.png")
    clean.save("masks/z.png", np.roll(region(0), 5, axis=1))
    code, found = doctor(clean.root)
    assert (code, found) == (1, {"twins-differ": ["fake/f0.png = fake/z.png"]})


def test_a_forgery_beside_its_original_is_noted(clean, doctor):
    forged = photograph(0)
    forged[10:25, 10:30] = photograph(60)[10:25, 10:30]
    clean.save("fake/f0.png", forged)
    code, found = doctor(clean.root)
    assert code == 0
    assert found == {"near-twins": ["real/r0.png ~ fake/f0.png (authentic and forged)"]}


@pytest.mark.parametrize("depth", ["equal", "compressed", "forged"])
def test_leakage_between_splits_of_one_folder_is_found(tmp_path, doctor, depth):
    train, test = Planted(tmp_path / "set/train"), Planted(tmp_path / "set/test", 1000)
    leaked = photograph(3)
    if depth == "equal":
        test.save("real/leaked.png", leaked)
    elif depth == "compressed":
        test.save("real/leaked.jpg", cv2.resize(leaked, (50, 40)), quality=75)
    else:
        leaked[10:25, 10:30] = 0
        test.save("fake/leaked.png", leaked)
        test.save("masks/leaked.png", region(1))
    code, found = doctor(train.root.parent)
    check = "leak" if depth == "equal" else "near-leak"
    assert code == 1
    assert list(found) == [check]
    assert len(found[check]) == 1
    assert "real/r3.png" in found[check][0]
    assert "/leaked." in found[check][0]


def test_sets_that_share_nothing_are_clean_together(tmp_path, doctor):
    first, second = Planted(tmp_path / "a"), Planted(tmp_path / "b", 1000)
    assert doctor(first.root, second.root) == (0, {})


def test_a_format_for_each_class_is_found(tmp_path, doctor):
    planted = Planted(tmp_path / "set", count=20)
    for path in sorted(planted.root.glob("real/*.png")):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    code, found = doctor(planted.root)
    assert code == 0
    assert list(found) == ["format-tells"]
    assert "balanced accuracy 1.00" in found["format-tells"][0]


def test_imbalance_and_a_single_class_are_found(tmp_path, doctor):
    planted = Planted(tmp_path / "set", count=40)
    rows = [(f"real/r{number}.png", "", 0) for number in range(40)]
    code, found = doctor(planted.manifest([*rows, ("fake/f0.png", "masks/f0.png", 1)]))
    assert (code, found) == (0, {"unbalanced": ["1 forged, 40 authentic"]})
    code, found = doctor(planted.manifest(rows))
    assert (code, found) == (0, {"one-class": ["0 forged, 40 authentic"]})


def test_an_unlabelled_folder_is_examined_without_labels(tmp_path, doctor):
    planted = Planted(tmp_path / "set")
    cut(planted, "real/r0.png")
    code, found = doctor(planted.root / "real")
    assert code == 1
    assert list(found) == ["unreadable-image"]


def test_the_alphas_are_the_shares_of_the_authentic_class(tmp_path):
    planted = Planted(tmp_path / "set", count=4)
    shutil.rmtree(planted.root / "real")
    planted.save("real/r0.png", photograph(0))
    for number in range(4):
        mask = np.zeros((48, 64), np.uint8)
        mask[:24, : 16 * number] = 255  # fractions 0, 1/8, 2/8, 3/8; the first is a fault, left out
        planted.save(f"masks/f{number}.png", mask)
    words = [str(planted.root), "--output", str(tmp_path / "report"), "--processes", "1"]
    main([*words, "--size", "32", "--patch-size", "8"])
    report = json.loads((tmp_path / "report/doctor.json").read_text())
    alphas = report["datasets"]["set"]["alphas"]
    assert alphas["image"] == pytest.approx(1 / 5)
    assert alphas["patch"] == pytest.approx(0.75)
    assert alphas["patch_hard"] == pytest.approx(0.75)
    assert alphas["pixel"] == pytest.approx(0.75)
    assert alphas["forged_images_measured"] == 3


def test_the_report_is_readable_and_names_five_examples(clean, doctor, tmp_path):
    for number in range(7):
        clean.save(f"masks/f{number}.png", region(number, 40, 60))
    doctor(clean.root)
    text = (tmp_path / "report/doctor.md").read_text()
    assert "1 errors, 0 warnings, 0 notes." in text
    assert "| error | mask-size | set | 7 of 8 |" in text
    assert text.count("mask 60 x 40, image 64 x 48") == 5
    assert "and 2 more, in the JSON report" in text


def test_names_of_files_are_text_in_the_report(clean, doctor, tmp_path):
    shutil.copy(clean.root / "real/r0.png", clean.root / "real/<script>a|b.png")
    doctor(clean.root)
    text = (tmp_path / "report/doctor.md").read_text()
    assert "&lt;script&gt;a\\|b.png" in text
    assert "<script>" not in text


def test_lines_that_cannot_be_used_are_named_and_the_rest_is_examined(clean, doctor):
    cut(clean, "real/r2.png")
    code, found = doctor(clean.manifest([*clean.rows(), ("real/r1.png", "", "fake")]))
    assert code == 1
    assert found["pairs"] == ["line 18: the label is 'fake'"]
    assert [item.split(":")[0] for item in found["unreadable-image"]] == ["real/r2.png"]


def test_an_ignored_check_does_not_fail(clean, doctor):
    cut(clean, "real/r0.png")
    assert doctor(clean.root, "--ignore", "unreadable-image") == (0, {})


@pytest.mark.parametrize("name", ["nowhere", "synthetic://train?size=32&seed=0&count=4"])
def test_what_cannot_be_examined_exits_with_2(doctor, capsys, name):
    assert doctor(name)[0] == 2
    assert name in capsys.readouterr().err


def test_a_set_given_twice_exits_with_2(clean, doctor):
    assert doctor(clean.root, clean.root)[0] == 2
