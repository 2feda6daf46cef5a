"""Measuring, calibrating and packing for the shipped detector."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from loupe.data.sources.catalog import load_dataset
from loupe.inference.verdict import REFERENCE_PIXELS, VerdictRule
from research.detector import calibrate, controls, gpu, measure, real, sheets, summary, tiles
from research.detector.graft import graft
from tests.scripts import load_script


def write_manifest(path: Path, rows: list[list[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        fields = ["image", "mask", "label", "technique", "source", "camera"]
        csv.writer(file).writerows([fields, *rows])
    return path


def test_images_that_share_a_photograph_are_one_group(tmp_path: Path) -> None:
    rows = [
        ["Sp_ani00010_pla0005.jpg", "m.png", 1, "", "", ""],
        ["Au_pla_00005.jpg", "", 0, "", "", ""],
        ["a.jpg", "m.png", 1, "", "x <- left.jpg + right.jpg", ""],
        ["b.jpg", "", 0, "", "y <- right.jpg", ""],
        ["c_original.jpg", "", 0, "", "", ""],
        ["c.jpg", "m.png", 1, "", "", ""],
    ]
    cases = measure.read_cases(write_manifest(tmp_path / "m.csv", rows))
    groups = [case.group for case in cases]
    assert groups[0] == groups[1]
    assert groups[2] == groups[3]
    assert groups[4] == groups[5]
    assert len(set(groups)) == 3


def test_no_camera_model_gives_more_than_it_may(tmp_path: Path) -> None:
    rows = [[f"{n}.jpg", "", 0, "", "", camera] for n, camera in enumerate("aaabac")]
    cases = measure.read_cases(write_manifest(tmp_path / "m.csv", rows), per_camera=2)
    assert [case.name for case in cases] == ["0.jpg", "1.jpg", "3.jpg", "5.jpg"]


def test_versions_of_a_photograph_have_their_sizes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    made = {name: version(image, None) for name, version in measure.CAMERA_VERSIONS.items()}
    shapes = {name: pair and pair[0].shape[:2] for name, pair in made.items()}
    assert shapes["whole"] == (1200, 1600)
    assert shapes["crop512"] == (512, 512)
    assert shapes["shrunk512"] == (384, 512)
    assert shapes["jpeg75"] == (768, 1024)
    top = (1200 - 512) // 2 // 16 * 16
    left = (1600 - 512) // 2 // 16 * 16
    np.testing.assert_array_equal(made["crop512"][0], image[top : top + 512, left : left + 512])
    # What is hardly larger is not shrunk.
    assert measure.CAMERA_VERSIONS["shrunk512"](image[:500, :600], None) is None
    for name, shape in (
        ("crop160", (160, 160)),
        ("shrunk352", (264, 352)),
        ("whole", (1200, 1600)),
    ):
        assert measure.camera_version(name)(image, None)[0].shape[:2] == shape
    with pytest.raises(ValueError, match="no version shrunk; they are crop224, "):
        measure.camera_version("shrunk")


def synthetic_rows(size_effect: float = 0.0) -> summary.Rows:
    """Scores whose logit is 2 y - 1 + noise, plus a term for the size; y is the label."""
    generator = np.random.default_rng(0)
    n = 4000
    labels = generator.integers(0, 2, n)
    doublings = generator.integers(0, 3, n)
    logits = 2.0 * labels - 1 + generator.logistic(0, 1, n) + size_effect * doublings
    side = np.sqrt(REFERENCE_PIXELS * 2.0**doublings).round().astype(int)
    names = np.where(labels == 1, "forgeries", np.where(np.arange(n) % 2, "cameras", "forgeries"))
    return summary.Rows(
        {
            "set": names,
            "version": np.full(n, "as is"),
            "file": np.array([str(index) for index in range(n)]),
            "group": np.array([str(index) for index in range(n)]),
            "label": labels,
            "score": 1 / (1 + np.exp(-logits)),
            "height": side,
            "width": side,
            **{name: np.full(n, 0.5) for name in ("pixel_auc", "best_f1", "f1", "alarm")},
        }
    )


def test_the_rule_takes_the_size_out_and_keeps_to_its_alarms() -> None:
    rows = synthetic_rows(size_effect=1.5)
    rule = calibrate.fit_rule(rows, alarms=0.05, band=0.2)
    assert rule.slope > 0
    assert rule.size_slope / rule.slope == pytest.approx(-1.5, abs=0.15)
    ruled = summary.with_rule(rows, rule)
    cameras = ruled.text("set") == "cameras"
    score = ruled.number("score")[cameras]
    assert (score >= rule.forged_from).mean() == pytest.approx(0.05, abs=0.005)
    undecided = (score >= rule.authentic_below) & (score < rule.forged_from)
    assert undecided.mean() == pytest.approx(0.2, abs=0.005)
    large = rows.number("height")[cameras] > 600
    assert abs((score[large] >= rule.forged_from).mean() - 0.05) < 0.03


def test_a_negative_slope_is_never_fitted() -> None:
    rows = synthetic_rows()
    turned = summary.Rows(rows.columns | {"score": 1 - rows.number("score")})
    assert calibrate.fit_rule(turned, 0.05, 0.2).slope > 0


def test_thresholds_are_reached_by_no_more_than_asked_and_versions_weigh_alike() -> None:
    values = np.array([0.2] * 90 + [0.9] * 10)
    groups = np.array(["many"] * 90 + ["few"] * 10)
    assert calibrate.lowest_threshold(values, 0.4, groups) == pytest.approx(0.9001)
    assert calibrate.lowest_threshold(values, 0.5, groups) == pytest.approx(0.2001)
    tenths = np.linspace(0.1, 1, 10)
    for part in (0.0, 0.1, 0.3):
        threshold = calibrate.lowest_threshold(tenths, part)
        assert (tenths >= threshold).mean() == pytest.approx(part)


def test_the_band_holds_no_more_of_the_values_than_asked() -> None:
    tenths = np.linspace(0.1, 1, 10)
    for high, part, expected in ((0.75, 0.2, 2), (0.75, 0.29, 2), (0.35, 0.2, 2), (0.15, 0.5, 1)):
        low = calibrate.lower_end(tenths, high, part)
        assert ((tenths >= low) & (tenths < high)).sum() == expected, (high, part)
    # The band is never wider than it has to be to hold that many.
    assert calibrate.lower_end(tenths, 0.75, 0.2) == pytest.approx(0.5001)


def test_no_version_of_the_photographs_is_undecided_more_often_than_asked() -> None:
    rows = synthetic_rows()
    # Every second photograph is a version with higher scores.
    higher = np.arange(4000) % 4 == 1
    logit = np.log(rows.number("score") / (1 - rows.number("score")))
    versions = np.where(higher, "shrunk", "whole")
    rows = summary.Rows(
        rows.columns
        | {"version": versions, "score": 1 / (1 + np.exp(-np.where(higher, logit + 1, logit)))}
    )
    rule = calibrate.fit_rule(rows, 0.05, 0.2)
    ruled = summary.with_rule(rows, rule)
    score, cameras = ruled.number("score"), ruled.text("set") == "cameras"
    undecided = (score >= rule.authentic_below) & (score < rule.forged_from)
    parts = [undecided[cameras & (versions == name)].mean() for name in ("shrunk", "whole")]
    assert parts[0] == pytest.approx(0.2, abs=0.005)
    assert parts[1] < 0.2


def test_ends_of_the_rule_for_windows_are_never_below_those_of_a_single_view() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(40):
        for kind, shift in (("authentic", 0.0), ("splice", 3.0)):
            windows = rng.normal(-4, 0.5, 9)
            windows[0] += shift
            rows.append(
                {
                    "file": str(index),
                    "version": "whole",
                    "kind": kind,
                    "overview": float(rng.normal(-3, 0.5)),
                    "windows": windows.tolist(),
                }
            )
    single = VerdictRule(1, 0, 0, 0.9, 0.7, 96, 0.6, "")
    rule = tiles.fit_rule(rows, 0.05, 0.2, single)
    assert (rule.forged_from, rule.authentic_below) == (0.9, 0.7)
    free = tiles.fit_rule(rows, 0.05, 0.2, single._replace(forged_from=0.0, authentic_below=0.0))
    assert free.authentic_below < free.forged_from < 0.9


def test_the_threshold_of_maps_weighs_sets_alike_and_forged_images_only() -> None:
    names = np.array(["a"] * 3 + ["b", "b"])
    columns = {"set": names, "label": np.array([1, 1, 1, 1, 0]), "f1": np.full(5, 0.4)}
    for threshold in measure.MASK_THRESHOLDS:
        columns[f"f1_from_{threshold}"] = np.full(5, 0.3)
    columns["f1_from_0.2"] = np.array([0.3, 0.3, 0.3, 0.7, np.nan])
    columns["f1_from_0.1"] = np.array([0.42, 0.42, 0.42, 0.42, 1.0])
    assert calibrate.best_mask_threshold(summary.Rows(columns)) == 0.2


def test_the_table_says_how_many_are_called_forged() -> None:
    rows = synthetic_rows()
    lines = summary.table(rows, None)
    cameras = rows.text("set") == "cameras"
    share = (rows.number("score")[cameras] >= 0.5).mean()
    (line,) = [line for line in lines if line.startswith("| as is")]
    assert f"| {cameras.sum()} | {share:.3f} [" in line
    assert any(line.startswith("| forgeries | ") for line in lines)


def test_calibrated_scores_are_not_calibrated_again() -> None:
    rows = synthetic_rows()
    names = ("authentic", "undecided", "forged")
    own = summary.Rows(rows.columns | {"verdict": np.resize(names, len(rows))})
    cameras = own.text("set") == "cameras"
    called = [(own.text("verdict")[cameras] == name).mean() for name in ("forged", "undecided")]
    (line,) = [line for line in summary.table(own, None) if line.startswith("| as is")]
    cells = line.split(" | ")
    assert [float(cell.split()[0]) for cell in cells[2:4]] == pytest.approx(called, abs=5e-4)
    rule = calibrate.fit_rule(rows, 0.05, 0.2)
    with pytest.raises(SystemExit, match="are calibrated"):
        summary.table(own, rule)


def test_grafting_takes_the_parts_and_nothing_else() -> None:
    base = {"backbone.a": torch.zeros(1), "segmenter.a": torch.zeros(1)}
    donor = {"backbone.a": torch.ones(1), "segmenter.a": torch.ones(1, dtype=torch.float16)}
    grafted = graft(base, donor, ["segmenter"])
    assert grafted["backbone.a"] == 0
    assert grafted["segmenter.a"] == 1
    assert grafted["segmenter.a"].dtype == torch.float32
    with pytest.raises(ValueError, match="no part classifier"):
        graft(base, donor, ["classifier"])


def test_the_command_for_a_gpu_has_larger_batches_and_no_missing_list(tmp_path: Path) -> None:
    arguments = gpu.parse_arguments(["--packed", "p", "--output", str(tmp_path)])
    words = gpu.command("pretrain_tiny_views", arguments, 1000, tmp_path / "run")
    sets = words[words.index("DATASETS.TRAIN") + 1]
    sizes = words[words.index("DATALOADER.GROUP_SIZES") + 1]
    shares = words[words.index("DATALOADER.GROUP_SHARES") + 1]
    assert "output/list/" not in sets
    assert f"{tmp_path}/pool/train.csv" in sets
    assert sets.count("synthetic://") == sizes.count(",") + 1 == shares.count(",") + 1
    assert sizes.startswith(f"[{gpu.LARGER * 16},")


def test_packing_keeps_to_its_room_and_takes_each_camera_first(tmp_path: Path) -> None:
    script = load_script("datasets/pack_photographs.py")
    files = {"a1": 500, "a2": 100, "b1": 300, "c1": 5000}
    for name, size in files.items():
        (tmp_path / f"{name}.jpg").write_bytes(bytes(size))
    rows = [[f"{name}.jpg", "", 0, "", f"r@1:{name}", name[0]] for name in files]
    entries = script.read_entries(write_manifest(tmp_path / "originals.csv", rows))
    assert [entry.path.stem for entry in script.choose(entries, 1000)] == ["a2", "b1", "a1"]
    assert [entry.path.stem for entry in script.choose(entries, 450)] == ["a2", "b1"]


def test_lists_of_real_forgeries_are_split_by_photograph_and_balanced(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), pixels)
        label = int(number < 3)
        if label:
            truth = np.zeros((48, 64), np.uint8)
            truth[8:24, 8:40] = 255
            cv2.imwrite(str(tmp_path / f"m{number}.png"), truth)
        # Photographs 0 and 9, 1 and 10, 2 and 11 share a source.
        mask = f"m{number}.png" if label else ""
        rows.append([f"{number}.png", mask, label, "splice", f"x <- s{number % 9}", ""])
    manifest = write_manifest(tmp_path / "all.csv", rows)

    train, test = real.split(measure.read_cases(manifest), 0.5)
    assert len(train) == len(test) == 6
    assert not {case.group for case in train} & {case.group for case in test}

    real.main([str(tmp_path / "out"), "--sets", f"some={manifest}:1"])
    entries = load_dataset(tmp_path / "out" / "train.csv")
    labels = [entry["label"] for entry in entries]
    assert labels.count(1) == 3 * 4
    assert abs(labels.count(0) - labels.count(1)) <= 9
    for entry in entries:
        height, width = cv2.imread(entry["file_name"]).shape[:2]
        if entry["label"]:
            mask = cv2.imread(entry["mask_file_name"], cv2.IMREAD_GRAYSCALE)
            assert mask.shape == (height, width)
            assert 0.1 < (mask > 127).mean() < 0.25


def test_controls_are_authentic_alone_and_differ_from_version_to_version(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("photograph", "authentic", "forged"):
        pixels = cv2.resize(rng.integers(0, 256, (60, 80, 3), np.uint8), (1200, 900))
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
    cv2.imwrite(str(tmp_path / "mask.png"), np.full((900, 1200), 255, np.uint8))
    photographs = write_manifest(tmp_path / "p.csv", [["photograph.png", "", 0, "", "", "a"]])
    rows = [["authentic.png", "", 0, "", "", ""], ["forged.png", "mask.png", 1, "", "", ""]]
    manifest = write_manifest(tmp_path / "set.csv", rows)
    words = [str(tmp_path / "out"), "--photographs", str(photographs), "--sets", str(manifest)]
    controls.main(words)
    entries = load_dataset(str(tmp_path / "out" / "train.csv"))
    assert [entry["label"] for entry in entries] == [0] * (controls.VERSIONS + 2)
    images = [cv2.imread(entry["file_name"]) for entry in entries]
    assert len({image.shape for image in images}) > controls.VERSIONS // 2
    assert max(max(image.shape[:2]) for image in images[: controls.VERSIONS]) <= 800
    # Another run draws the same.
    controls.main(words)
    again = [cv2.imread(entry["file_name"]) for entry in entries]
    assert all(np.array_equal(one, other) for one, other in zip(images, again, strict=True))


def test_a_sheet_shows_the_best_the_median_the_worst_and_false_alarms() -> None:
    f1 = [0.1, 0.9, 0.5, 0.3, 0.7]
    columns = {
        "file": [f"{n}.png" for n in range(7)],
        "label": ["1"] * 5 + ["0"] * 2,
        "f1": [*map(str, f1), "nan", "nan"],
        "score": ["0.5"] * 5 + ["0.2", "0.8"],
    }
    rows = summary.Rows({name: np.array(values) for name, values in columns.items()})
    assert sheets.chosen(rows, 1) == {
        "best": ["1.png"],
        "median": ["2.png"],
        "worst": ["0.png"],
        "false alarms": ["6.png"],
    }
