"""What one choice is worth: the arms, what each leaves out, and their table."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import pytest

from loupe.checkpoint import load_weights, save_weights
from loupe.config import load_config
from loupe.modeling.building import build_perception_encoder
from loupe.modeling.forensic import patch_embedding
from research.detector import leave_one_out, measure
from research.detector.leave_one_out import ARMS, CONFIG, arm_of, training_settings

SHIPPED = "loupe://loupe_tiny_views.safetensors"


def test_a_name_is_an_arm_and_perhaps_a_seed() -> None:
    assert arm_of("no-steps") == (ARMS["no-steps"], leave_one_out.SEED)
    assert arm_of("no-steps-12") == (ARMS["no-steps"], 12)
    with pytest.raises(ValueError, match="no arm no-hope; they are all, no-steps"):
        arm_of("no-hope-12")


def test_a_mistake_in_a_name_is_told_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leave_one_out, "run_arm", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match="no arm no-hope"):
        leave_one_out.main([str(tmp_path), "--arms", "all", "no-hope"])


@pytest.mark.parametrize("name", ARMS)
def test_each_arm_leaves_out_what_it_says_and_nothing_else(name: str) -> None:
    full = load_config(CONFIG)
    cfg = load_config(CONFIG, training_settings(ARMS[name]))
    assert len(cfg.DATASETS.TRAIN) == len(cfg.DATALOADER.GROUP_SIZES)
    assert len(cfg.DATASETS.TRAIN) == len(cfg.DATALOADER.GROUP_SHARES)
    left_out = set(full.DATASETS.TRAIN) - set(cfg.DATASETS.TRAIN)
    expected = {
        "no-views": {entry for entry in full.DATASETS.TRAIN if "&views=1" in entry},
        "no-real": {"output/real/train.csv"},
        "no-controls": {"output/controls/train.csv"},
    }
    assert left_out == expected.get(name, set())
    shares = dict(zip(full.DATASETS.TRAIN, full.DATALOADER.GROUP_SHARES, strict=True))
    for entry, share in zip(cfg.DATASETS.TRAIN, cfg.DATALOADER.GROUP_SHARES, strict=True):
        assert shares.get(entry, share) == share


@pytest.mark.parametrize(
    ("name", "absent"), [("all", None), ("no-steps", "quantisation"), ("no-copies", "copies")]
)
def test_an_arm_trains_and_is_measured_with_its_own_stem(
    name: str, absent: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(patch_embedding.STEMS)
    seen = []

    def check_encoder() -> None:
        vit = build_perception_encoder(load_config(CONFIG)).vit
        stem = vit.patch_embed.proj
        assert [part for part in ("quantisation", "copies") if getattr(stem, part) is None] == (
            [absent] if absent else []
        )
        start = load_weights(tmp_path / name / "start.safetensors")
        encoder = {key for key in start if key.startswith("backbone.vit.")}
        assert encoder == {f"backbone.vit.{key}" for key in vit.state_dict()}
        assert {key.split(".")[0] for key in start} == {"backbone", "classifier"}

    def train(words: list[str]) -> int:
        check_encoder()
        cfg = load_config(CONFIG, words[2:])
        assert (cfg.SEED, cfg.SOLVER.MAX_ITER) == (leave_one_out.SEED, 7)
        save_weights({}, Path(cfg.OUTPUT_DIR) / "model_final_ema.pth")
        seen.append("train")
        return 0

    def measure_arm(words: list[str]) -> None:
        check_encoder()
        assert measure.parse_arguments(words).sets == ["casia_s=a.csv", "lalonde=b.csv"]
        seen.append("measure")

    monkeypatch.setattr(leave_one_out, "train", train)
    monkeypatch.setattr(leave_one_out, "measure", measure_arm)
    words = [str(tmp_path), "--weights", SHIPPED, "--arms", name, "--steps", "7"]
    words += ["--sets", "casia_s=a.csv", "lalonde=b.csv"]
    leave_one_out.main(words)
    leave_one_out.main(words)  # What is trained is not trained again.
    assert seen == ["train", "measure", "measure"]
    assert before == patch_embedding.STEMS


def test_a_training_that_fails_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(patch_embedding.STEMS)
    monkeypatch.setattr(leave_one_out, "train", lambda words: 2)
    monkeypatch.setattr(leave_one_out, "measure", lambda words: pytest.fail("measured"))
    arguments = argparse.Namespace(output=tmp_path, weights=SHIPPED, steps=7)
    with pytest.raises(SystemExit, match="the training of no-real failed"):
        leave_one_out.run_arm("no-real", arguments)
    assert before == patch_embedding.STEMS


def write_measured(folder: Path, shift: float) -> None:
    """Images whose forged scores are higher by `shift` than authentic ones."""
    generator = np.random.default_rng(0)
    rows = []
    for name, versions in (
        ("cameras", leave_one_out.VERSIONS),
        ("casia_s", ["as is"]),
        ("lalonde", ["as is"]),
    ):
        for index in range(40):
            label = 0 if name == "cameras" else index % 2
            for version in versions:
                row: dict[str, object] = dict.fromkeys(measure.FIELDS, "nan")
                score = 0.3 + 0.3 * generator.random() + shift * label
                row |= {"set": name, "version": version, "file": f"{index}.png", "label": label}
                row |= {"group": index // 4, "score": score, "pixel_auc": 0.7 + shift}
                rows.append(row)
    path = folder / "measured" / "images.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, measure.FIELDS)
        table.writeheader()
        table.writerows(rows)


def test_the_table_has_mean_differences_of_both_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, shift in (("all", 0.2), ("all-12", 0.1), ("no-real", 0.0), ("no-real-12", 0.1)):
        write_measured(tmp_path / name, shift)
    write_measured(tmp_path / "no-steps", 0.2)
    leave_one_out.main([str(tmp_path), "--table"])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0][1:] == [
        "all five",
        "without the sense for quantisation steps",
        "without real forgeries",
    ]
    cells = {row[0]: row[1:] for row in rows[2:]}
    assert cells["casia_s: pixel/AUC-image"] == [
        "0.850 (0.900, 0.800)",
        "+0.000 [+0.000, +0.000] (+0.000)",
        "-0.100 [-0.100, -0.100] (-0.200, +0.000)",
    ]
    assert cells["cameras, whole: above .5"][2].startswith("+0.000 [+0.000, +0.000]")
    lost = cells["lalonde: image/AUC"][2]
    mean, low, high, *_ = (float(word.strip("[](),")) for word in lost.split())
    assert low < mean < high < 0


def test_arms_of_different_images_are_not_compared(tmp_path: Path) -> None:
    write_measured(tmp_path / "all", 0.2)
    write_measured(tmp_path / "no-real", 0.2)
    path = tmp_path / "no-real" / "measured" / "images.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="measured on different images"):
        leave_one_out.table(tmp_path)
