"""tools/adapt.py: a folder of unlabelled images in; predictions, adapted weights, a summary out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from loupe.checkpoint import save_weights
from loupe.commands import adapt, predict
from loupe.config import load_config
from loupe.data.sources.synthetic import make_sample
from loupe.inference import LoupePredictor
from loupe.modeling.loupe import Loupe

CONFIG = Path(__file__).parents[2] / "configs" / "quick" / "loupe_adapt.yaml"
SMALL = [
    *("MODEL.PERCEPTION_ENCODER.DEPTH", "1", "MODEL.DEVICE", "cpu", "INPUT.SIZE", "64"),
    *("TEST.IMS_PER_BATCH", "2", "ADAPTATION.IMS_PER_BATCH", "4"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images/` with a subfolder and a file that is no image; `base.pth`."""
    root = tmp_path_factory.mktemp("adapt")
    (root / "images" / "deep").mkdir(parents=True)
    for index in range(6):
        image = make_sample("test", 0, index, 64, 0).image
        name = f"deep/{index}.png" if index % 3 == 0 else f"{index}.png"
        cv2.imwrite(str(root / "images" / name), image[..., ::-1])
    (root / "images" / "3.png").write_bytes(b"no image at all")
    turned = Image.open(root / "images" / "2.png").crop((0, 0, 40, 64))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(root / "images" / "2.png", exif=exif)
    torch.manual_seed(0)
    weights = build_model(load_config(CONFIG, SMALL)).state_dict()
    save_weights(weights, root / "base.pth")
    return root


def run(folder: Path, output: Path, *options: str, tool: object = adapt) -> int:
    words = [str(folder / "images"), "--output", str(output), "--workers", "0"]
    words += ["--config-file", str(CONFIG), "--weights", str(folder / "base.pth")]
    flags = [option for option in options if option in ("--weights", "none.pth")]
    return tool.main([*words, *flags, *SMALL, *(one for one in options if one not in flags)])


def table(output: Path) -> list[dict[str, str]]:
    with (output / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def pictures(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(output.rglob("*.png"))}


@pytest.mark.parametrize("mode", ["offline", "online", "episodic"])
def test_every_image_is_answered_and_a_bad_one_ends_nothing(
    mode: str, folder: Path, tmp_path: Path
):
    assert run(folder, tmp_path, "ADAPTATION.MODE", mode) == 1
    rows = table(tmp_path)
    assert len(rows) == 7
    assert [Path(row["file"]).name for row in rows if row["error"]] == ["3.png"]
    assert len(pictures(tmp_path)) == 3 * 6
    summary = json.loads((tmp_path / "adaptation.json").read_text())
    assert (summary["mode"], summary["images"], summary["steps"]) == (mode, 6, 2)
    assert (tmp_path / "model_adapted.pth").exists() == (mode != "episodic")
    # Stored as 40 x 64, looked at as 64 x 40.
    assert cv2.imread(str(tmp_path / "maps" / "2.png")).shape == (40, 64, 3)


def test_without_learning_it_writes_what_predict_writes(folder: Path, tmp_path: Path):
    still = ("ADAPTATION.BASE_LR", "0.0")
    run(folder, tmp_path / "adapted", *still)
    run(folder, tmp_path / "plain", tool=predict)
    assert table(tmp_path / "adapted") == table(tmp_path / "plain")
    assert pictures(tmp_path / "adapted") == pictures(tmp_path / "plain")


def test_the_saved_weights_predict_what_the_tool_predicted(folder: Path, tmp_path: Path):
    run(folder, tmp_path, "ADAPTATION.BASE_LR", "0.01")
    predictor = LoupePredictor(load_config(CONFIG, SMALL), tmp_path / "model_adapted.pth")
    prediction = predictor(folder / "images" / "1.png")
    written = cv2.imread(str(tmp_path / "maps" / "1.png"), cv2.IMREAD_GRAYSCALE)
    assert abs(prediction.forgery_map * 255 - written).max() <= 0.51


def test_the_same_command_gives_the_same_files(folder: Path, tmp_path: Path):
    for name in ("one", "two"):
        run(folder, tmp_path / name, "ADAPTATION.BASE_LR", "0.01")
    assert pictures(tmp_path / "one") == pictures(tmp_path / "two")


def test_the_checkpoint_is_only_read(folder: Path, tmp_path: Path, capsys):
    before = (folder / "base.pth").read_bytes()
    run(folder, tmp_path)
    assert (folder / "base.pth").read_bytes() == before
    (tmp_path / "model_adapted.pth").unlink()
    (tmp_path / "model_adapted.pth").hardlink_to(folder / "base.pth")
    assert run(folder, tmp_path) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert (folder / "base.pth").read_bytes() == before


def test_a_second_adaptation_replaces_all_of_the_first(folder: Path, tmp_path: Path):
    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    run(folder, tmp_path)
    before = content()
    assert run(folder, tmp_path, "--weights", "none.pth") == 2
    assert content() == before
    assert run(folder, tmp_path, "ADAPTATION.MODE", "episodic") == 1
    assert str(tmp_path / "model_adapted.pth") not in content()


def test_a_mode_is_asked_for(folder: Path, tmp_path: Path, capsys):
    assert run(folder, tmp_path, "ADAPTATION.MODE", "none") == 2
    assert "ADAPTATION.MODE is none: add" in capsys.readouterr().err


def test_an_image_that_the_model_fails_on_is_lost_alone(folder: Path, tmp_path: Path, monkeypatch):
    real = Loupe.classify

    def failing(self, batch):
        if any(item["file_name"].endswith("4.png") for item in batch if "image" in item):
            raise MemoryError("too much")
        return real(self, batch)

    monkeypatch.setattr(Loupe, "classify", failing)
    assert run(folder, tmp_path) == 1
    errors = {Path(row["file"]).name: row["error"] for row in table(tmp_path) if row["error"]}
    assert errors.keys() == {"3.png", "4.png"}
    assert "the model failed on it (MemoryError: too much)" in errors["4.png"]
