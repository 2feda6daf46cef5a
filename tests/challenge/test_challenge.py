"""What is written for a challenge is valid; each planted fault is found by its own name, alone."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from loupe.challenge.checks import FAULTS, Fault, image_sizes, validate
from loupe.challenge.writers import (
    ChallengePrediction,
    find_boxes,
    traces_of,
    write_ddl2025,
    write_ddlx2026,
)
from loupe.commands import submit
from loupe.commands import validate as validate_command
from tests.data.images.files import png as make_png

ROOT = Path(__file__).parents[2]
STEMS = ("a", "b", "c.d")
SIZE = (24, 36)
MASK = "masks/a.png"
JSON = "json/a.json"


def make_predictions() -> list[ChallengePrediction]:
    forgery_map = np.zeros(SIZE, np.float32)
    forgery_map[6:12, 9:18] = 0.9
    return [ChallengePrediction(stem, 0.2 + 0.3 * i, forgery_map) for i, stem in enumerate(STEMS)][
        ::-1
    ]


@pytest.fixture
def sizes() -> dict[str, tuple[int, int]]:
    return dict.fromkeys(STEMS, SIZE)


@pytest.fixture
def ddl2025(tmp_path: Path) -> Path:
    write_ddl2025(make_predictions(), tmp_path / "ddl2025")
    return tmp_path / "ddl2025"


@pytest.fixture
def ddlx2026(tmp_path: Path) -> Path:
    write_ddlx2026(
        [one._replace(probability=0.9) for one in make_predictions()], tmp_path / "ddlx2026"
    )
    return tmp_path / "ddlx2026"


def png(values: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG", **options)
    return stream.getvalue()


def palette_png() -> bytes:
    stream = io.BytesIO()
    Image.new("P", SIZE[::-1]).save(stream, "PNG")
    return stream.getvalue()


Plant = Callable[[Path], object]


def line(text: str) -> Plant:
    """Replaces the line of image a."""

    def plant(folder: Path) -> None:
        path = folder / "predictions.txt"
        path.write_text(path.read_text().replace("a.png,0.2000\n", text))

    return plant


def put(name: str, data: bytes) -> Plant:
    def plant(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return plant


def mask(values: np.ndarray) -> Plant:
    return put(MASK, png(values))


def change(**values: object) -> Plant:
    """Sets keys of a.json by their first word; None takes one away."""
    names = {"Class": "Classification result", "Boxes": "Bounding boxes"}
    names["Traces"] = "Visible forgery traces"

    def plant(folder: Path) -> None:
        content = json.loads((folder / JSON).read_text())
        for word, value in values.items():
            content[names.get(word, word)] = value
            if value is None:
                del content[names[word]]
        (folder / JSON).write_text(json.dumps(content))

    return plant


def nest(folder: Path) -> None:
    inner = folder / "mine"
    shutil.copytree(folder, inner, ignore=shutil.ignore_patterns("mine"))
    for path in list(folder.iterdir()):
        if path != inner:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty_png(height: int, width: int) -> bytes:
    """A PNG whose checksums are right, and which holds no row of its pixels."""
    return make_png(height, width, zlib.compress(b""), colour=0)


GREY = np.zeros(SIZE, np.uint8)
WHOLE = png(np.random.default_rng(0).choice([0, 255], SIZE).astype(np.uint8))

FAULTY_2025: list[tuple[str, Plant]] = [
    ("nested-folder", nest),
    ("unexpected-file", put("masks/.DS_Store", b"")),
    ("unexpected-file", put("masks/deep/a.png", png(GREY))),
    ("predictions-missing", lambda folder: (folder / "predictions.txt").unlink()),
    ("bad-line", line("a.png 0.2000\na.png,0.2000\n")),
    ("bad-line", line("a.png,0.2000 \na.png,0.2000\n")),
    ("bad-line", line("a.png,0,2000\na.png,0.2000\n")),
    ("name-has-folder", line("test/a.png,0.2000\n")),
    ("name-not-png", line("a.jpg,0.2000\n")),
    ("duplicate-line", line("a.png,0.2000\na.png,0.2000\n")),
    ("number-format", line("a.png,0.2\n")),
    ("not-a-number", line("a.png,nan\n")),
    ("probability-out-of-range", line("a.png,1.2000\n")),
    ("missing-image", line("")),
    ("extra-image", line("a.png,0.2000\nz.png,0.2000\n")),
    ("missing-mask", lambda folder: (folder / MASK).unlink()),
    ("file-too-large", put(MASK, bytes(2_000_000))),
    ("file-too-large", line("a.png,0.2000" + " " * 200_000 + "\n")),
    ("unsafe-file", lambda folder: (folder / "masks/more.png").symlink_to("/dev/zero")),
    ("unsafe-file", lambda folder: os.mkfifo(folder / "masks/pipe.png")),
    ("extra-mask", put("masks/z.png", png(GREY))),
    ("mask-name", lambda folder: (folder / MASK).rename(folder / "masks/a.jpg")),
    ("mask-not-png", put(MASK, cv2.imencode(".jpg", GREY)[1].tobytes())),
    ("mask-damaged", put(MASK, WHOLE[: len(WHOLE) // 2])),
    ("mask-damaged", put(MASK, WHOLE[:20])),
    ("mask-damaged", put(MASK, WHOLE.replace(b"IDAT", b"IDAS"))),
    ("mask-size", put(MASK, empty_png(2000, 900))),
    ("mask-damaged", put(MASK, empty_png(*SIZE))),
    ("mask-not-8-bit", mask(GREY.astype(np.uint16))),
    ("mask-not-8-bit", mask(GREY.astype(bool))),
    ("mask-not-grey", mask(np.zeros((*SIZE, 3), np.uint8))),
    ("mask-not-grey", put(MASK, palette_png())),
    ("mask-not-grey", put(MASK, png(GREY, transparency=0))),
    ("mask-size", mask(GREY.T.copy())),
    ("mask-values", mask(GREY + np.uint8(1))),
]

BOX = [10, 20, 30, 40]
FAULTY_2026: list[tuple[str, Plant]] = [
    ("nested-folder", nest),
    ("unexpected-file", put("json/a.txt", b"")),
    ("missing-image", lambda folder: (folder / JSON).unlink()),
    ("extra-image", lambda folder: shutil.copy(folder / JSON, folder / "json/z.json")),
    ("invalid-json", put(JSON, b"{'Classification result': 'fake'}")),
    ("invalid-json", put(JSON, b'{"Bounding boxes": NaN}')),
    ("invalid-json", put(JSON, b"[" * 100_000)),
    ("file-too-large", put(JSON, b"[" * 2_000_000)),
    ("not-an-object", put(JSON, b"[]")),
    ("missing-key", change(Class=None)),
    ("unknown-key", change(score=0.9)),
    ("class-string", change(Class="Fake")),
    ("class-string", change(Class=["fake"])),
    ("boxes-not-a-list", change(Boxes=BOX)),
    ("box-length", change(Boxes=[BOX, [1, 2, 3]])),
    ("box-not-a-number", change(Boxes=[[1, 2, True, 4]])),
    ("box-not-a-number", change(Boxes=[[1, 2, [3], 4]])),
    ("box-out-of-range", change(Boxes=[[0, 0, 1001, 4]])),
    ("box-out-of-range", change(Boxes=[[0, 0, 10**400, 4]])),
    ("box-order", change(Boxes=[[30, 20, 10, 40]])),
    ("duplicate-box", change(Boxes=[BOX, BOX])),
    ("boxes-on-real", change(Class="real", Boxes=[BOX])),
    ("traces-not-text", change(Traces=["blur"])),
    ("traces-empty", change(Traces=" ")),
]


def rewrite(name: str, new: Callable[[bytes], bytes]) -> Plant:
    return lambda folder: (folder / name).write_bytes(new((folder / name).read_bytes()))


FAULTY_2025 += [
    ("bad-encoding", rewrite("predictions.txt", lambda data: b"\xef\xbb\xbf" + data)),
]
FAULTY_2026 += [
    ("bad-encoding", rewrite(JSON, lambda data: data.replace(b"found", b"fo\xe9und"))),
    ("duplicate-key", rewrite(JSON, lambda data: data.replace(b"{", b'{"Bounding boxes": [],'))),
    ("box-not-a-number", rewrite(JSON, lambda data: data.replace(b"[[", b"[[1e999, 0, 0, 0], ["))),
]


def names(faults: list[Fault]) -> set[str]:
    return {fault.name for fault in faults}


def ids(cases: list[tuple[str, Plant]]) -> list[str]:
    return [f"{index}-{name}" for index, (name, _) in enumerate(cases)]


@pytest.mark.parametrize(("name", "plant"), FAULTY_2025, ids=ids(FAULTY_2025))
def test_a_fault_of_ddl2025_is_found_by_its_name_and_no_other(name, plant, ddl2025, sizes):
    plant(ddl2025)
    assert names(validate(ddl2025, "ddl2025", sizes)) == {name}


@pytest.mark.parametrize(("name", "plant"), FAULTY_2026, ids=ids(FAULTY_2026))
def test_a_fault_of_ddlx2026_is_found_by_its_name_and_no_other(name, plant, ddlx2026, sizes):
    plant(ddlx2026)
    assert names(validate(ddlx2026, "ddlx2026", sizes)) == {name}


def test_every_fault_is_planted_somewhere():
    planted = {name for name, _ in FAULTY_2025 + FAULTY_2026}
    assert planted | {"bad-archive", "duplicate-file"} == FAULTS.keys()


def test_every_fault_is_in_the_document_and_none_else():
    rows = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs/challenges.md").read_text(), re.M)
    assert sorted(rows) == sorted(FAULTS)


def test_many_faults_are_found_at_once(ddl2025, sizes):
    line("a.png,1.5\n")(ddl2025)
    mask(np.full((3, 3), 7, np.uint8))(ddl2025)
    put("masks/z.png", b"")(ddl2025)
    (ddl2025 / "masks/b.png").unlink()
    texts = [str(fault) for fault in validate(ddl2025, "ddl2025", sizes)]
    place = "predictions.txt:1: a probability is below 0 or above 1: 1.5"
    assert f"probability-out-of-range: {place}" in texts
    expected = {"probability-out-of-range", "mask-size", "mask-values", "extra-mask"}
    assert names(validate(ddl2025, "ddl2025", sizes)) == expected | {"missing-mask"}


def zip_of(path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def test_a_damaged_zip_is_a_fault(tmp_path, sizes):
    write_ddl2025(make_predictions(), tmp_path / "a.zip")
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(data[: len(data) // 2])
    assert names(validate(tmp_path / "half.zip", "ddl2025", sizes)) == {"bad-archive"}
    spoilt = bytearray(data)
    spoilt[len("masks/a.png") + 32] ^= 0xFF
    (tmp_path / "spoilt.zip").write_bytes(bytes(spoilt))
    assert names(validate(tmp_path / "spoilt.zip", "ddl2025", sizes)) == {"bad-archive"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_is_no_honest_one_is_refused_by_declared_size_and_names(
    tmp_path, ddl2025, sizes
):
    members = [(str(p.relative_to(ddl2025)), p.read_bytes()) for p in ddl2025.rglob("*.*")]
    twice = zip_of(tmp_path / "twice.zip", [*members, members[-1]])
    assert names(validate(twice, "ddl2025", sizes)) == {"duplicate-file"}
    link = zipfile.ZipInfo("masks/link.png")
    link.external_attr = 0o120777 << 16
    strange = [(link, b"/etc/passwd"), ("../out.png", b""), ("/out.png", b"")]
    faults = validate(zip_of(tmp_path / "strange.zip", [*members, *strange]), "ddl2025", sizes)
    assert [fault.name for fault in faults] == ["unsafe-file"] * 3
    others = [member for member in members if member[0] != MASK]
    bomb = zip_of(tmp_path / "bomb.zip", [*others, (MASK, bytes(300_000_000))])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert names(validate(bomb, "ddl2025", sizes)) == {"file-too-large"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_an_empty_folder_lacks_everything(tmp_path, sizes):
    (tmp_path / "empty").mkdir()
    faults = validate(tmp_path / "empty", "ddl2025", sizes)
    assert names(faults) == {"predictions-missing", "missing-mask"}
    assert len(validate(tmp_path / "empty", "ddlx2026", sizes)) == len(STEMS)


def test_lines_hold_four_decimals_and_masks_0_and_255_above_the_threshold(tmp_path):
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    write_ddl2025([ChallengePrediction("x", 0.123456, ramp)], tmp_path / "out")
    assert (tmp_path / "out/predictions.txt").read_text() == "x.png,0.1235\n"
    written = np.array(Image.open(tmp_path / "out/masks/x.png"))
    np.testing.assert_array_equal(written, np.where(ramp > 0.5, 255, 0))


def test_eight_bit_maps_give_the_answers_of_their_fractions(tmp_path):
    eight_bit = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for name, values in (("a", eight_bit), ("b", eight_bit / np.float32(255))):
        write_ddl2025([ChallengePrediction("x", 0.9, values)], tmp_path / f"{name}5")
        write_ddlx2026([ChallengePrediction("x", 0.9, values)], tmp_path / f"{name}6")
    for one in ("5/masks/x.png", "6/json/x.json"):
        assert (tmp_path / f"a{one}").read_bytes() == (tmp_path / f"b{one}").read_bytes()


def test_boxes_are_round_regions_of_eight_pixels_touching_at_corners():
    values = np.zeros((50, 100), np.float32)
    values[10:14, 20:22] = 0.4  # exactly the threshold and exactly eight pixels
    values[30, 40:47] = 0.9  # seven pixels: dropped
    for index in range(9):  # joined by corners only
        values[35 + index, 60 + index] = 0.9
    values[40, 5:20] = 0.39
    assert find_boxes(values) == [[600, 700, 680, 860], [200, 200, 210, 260]]
    assert find_boxes(np.ones((10, 20), bool)) == [[0, 0, 950, 900]]
    assert find_boxes(np.zeros((10, 20), np.uint8)) == []


def test_an_image_called_real_has_no_boxes_whatever_its_map_says(tmp_path):
    write_ddlx2026(make_predictions(), tmp_path / "out")
    low = json.loads((tmp_path / "out/json/a.json").read_text())
    high = json.loads((tmp_path / "out/json/c.d.json").read_text())
    assert (low["Classification result"], low["Bounding boxes"]) == ("real", [])
    assert high["Classification result"] == "fake"
    assert high["Bounding boxes"] == [[250, 250, 472, 458]]


def test_thresholds_and_the_smallest_region_are_those_asked_for(tmp_path):
    forgery_map = np.zeros((100, 100), np.float32)
    forgery_map[10:20, 10:20] = 0.4
    forgery_map[50:52, 50:52] = 0.9
    answer = ChallengePrediction("x", 0.5, forgery_map)
    options = {
        "plain": {},
        "fake": {"threshold": 0.4},
        "sure": {"threshold": 0.4, "box_threshold": 0.41},
        "tiny": {"threshold": 0.4, "smallest_region": 4},
    }
    boxes = {}
    for name, option in options.items():
        write_ddlx2026([answer], tmp_path / name, **option)
        boxes[name] = json.loads((tmp_path / name / "json/x.json").read_text())["Bounding boxes"]
    large, small = [100, 100, 190, 190], [500, 500, 510, 510]
    assert boxes == {"plain": [], "fake": [large], "sure": [], "tiny": [large, small]}


def test_the_description_says_what_was_measured():
    text = traces_of(True, [[700, 0, 900, 200], [0, 0, 10, 10]], 0.0625)
    assert text.startswith("2 forged regions were found, covering 6.2% of the image; the largest")
    assert "at the top right" in text
    assert traces_of(False, [], 0.0).startswith("The image was found authentic.")
    assert "no region stands out" in traces_of(True, [], 0.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"probability": float("nan")}, "x: the probability is nan"),
        ({"stem": "a,b"}, "'a,b': not a name"),
        ({"stem": "a\nb"}, "not a name"),
        ({"forgery_map": np.zeros((2, 2, 3))}, r"x: the map has shape \(2, 2, 3\)"),
        ({"forgery_map": np.full((2, 2), np.nan)}, r"x: the map leaves \[0, 1\]"),
        ({"forgery_map": np.zeros((2, 2), np.int64)}, "x: the map is int64"),
    ],
)
def test_an_answer_that_cannot_be_written_is_refused_by_name(values, words, tmp_path):
    answer = ChallengePrediction("x", 0.5, np.zeros((2, 2), bool))._replace(**values)
    with pytest.raises(ValueError, match=words):
        write_ddl2025([answer], tmp_path / "out.zip")
    assert not list(tmp_path.iterdir())


def test_two_images_of_one_stem_and_what_exists_are_refused(tmp_path, ddl2025):
    with pytest.raises(ValueError, match="a: two images have this name"):
        write_ddlx2026([make_predictions()[-1]] * 2, tmp_path / "out")
    with pytest.raises(FileExistsError, match="remove it or choose another"):
        write_ddl2025(make_predictions(), ddl2025)


def test_sizes_are_those_that_a_viewer_shows(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(tmp_path / "plain.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert image_sizes(tmp_path) == {"turned": (30, 20), "plain": (20, 30)}


def test_images_of_one_stem_or_unreadable_ones_are_refused_by_name(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.png: another image has this stem"):
        image_sizes(tmp_path)
    (tmp_path / "a.jpg").write_text("no")
    with pytest.raises(ValueError, match=r"a\.jpg"):
        image_sizes(tmp_path)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Images and predictions as tools/predict.py writes them."""
    (tmp_path / "images").mkdir()
    (tmp_path / "saved/maps").mkdir(parents=True)
    rows = [["file", "probability", "error"]]
    for one in make_predictions():
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / f"{one.stem}.jpg")
        values = (one.forgery_map * 255).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / "saved/maps" / f"{one.stem}.png")
        rows.append([f"images/{one.stem}.jpg", f"{one.probability:.6f}", ""])
    with (tmp_path / "saved/predictions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return tmp_path


@pytest.mark.parametrize("form", ["ddl2025", "ddlx2026"])
def test_the_tools_write_a_submission_and_find_it_valid(form, saved, capsys):
    common = ["--format", form, "--images", str(saved / "images")]
    output = str(saved / "out.zip")
    assert submit.main([str(saved / "saved"), *common, "--output", output]) == 0
    assert validate_command.main([output, *common]) == 0
    assert "3 images written, valid" in capsys.readouterr().out


def test_the_validating_tool_counts_prints_and_reports_faults(ddl2025, saved, capsys):
    line("a.png,1.2000\n")(ddl2025)
    words = [str(ddl2025), "--format", "ddl2025", "--images", str(saved / "images")]
    report = saved / "faults.json"
    assert validate_command.main([*words, "--report", str(report)]) == 1
    assert "1 faults: 1 probability-out-of-range" in capsys.readouterr().out
    assert json.loads(report.read_text())["faults"][0]["place"] == "predictions.txt:1"


def test_an_image_without_prediction_is_an_error_or_filled(saved, capsys):
    Image.new("RGB", (7, 5)).save(saved / "images/new.png")
    words = [str(saved / "saved"), "--format", "ddl2025", "--images", str(saved / "images")]
    assert submit.main([*words, "--output", str(saved / "out.zip")]) == 2
    assert "new: there is no prediction; predict it, or give --fill" in capsys.readouterr().err
    assert submit.main([*words, "--output", str(saved / "out"), "--fill", "0.5"]) == 0
    assert "new.png,0.5000\n" in (saved / "out/predictions.txt").read_text()
    assert Image.open(saved / "out/masks/new.png").size == (7, 5)
