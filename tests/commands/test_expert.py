"""The commands take an expert as they take a Loupe."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from loupe.checkpoint import save_weights
from loupe.commands import convert, diagnose, evaluate, predict, score
from loupe.config import load_config
from loupe.modeling import ForgeryExpert
from tests.trainer.toy import write_dataset

CONFIG = """
MODEL:
  META_ARCHITECTURE: ForgeryExpert
  DEVICE: cpu
  PERCEPTION_ENCODER: {NAME: vit_pe_core_tiny_patch16_384, DEPTH: 1, EMBED_DIM: 32, NUM_HEADS: 2}
  EXPERT:
    {SEGMENTATION: backbone, VERDICT_DIM: 16, NUM_HEADS: 2, DECODER_DIM: 32, DECODER_HEADS: 2,
     DECODER_LAYERS: 1, DECODER_MLP_DIM: 32}
INPUT: {SIZE: 64, RESIZE: pad}
DATALOADER: {NUM_WORKERS: 0}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, `expert.yaml` and `expert.safetensors`."""
    folder = tmp_path_factory.mktemp("expert")
    write_dataset(folder, count=4)
    (folder / "expert.yaml").write_text(CONFIG)
    torch.manual_seed(0)
    model = build_model(load_config(folder / "expert.yaml"))
    assert isinstance(model, ForgeryExpert)
    save_weights(model.state_dict(), folder / "expert.safetensors")
    return folder


def model_options(place: Path) -> list[str]:
    return ["--config-file", str(place / "expert.yaml"), "--weights", f"{place}/expert.safetensors"]


def test_evaluate_reports_classes_beside_everything_else(place: Path, tmp_path: Path):
    data, output = str(place / "manifest.csv"), str(tmp_path / "out")
    assert evaluate.main([data, "--output", output, *model_options(place)]) == 0
    (path,) = (tmp_path / "out" / "inference").glob("*.json")
    report = json.loads(path.read_text())
    assert report["counts"]["images"] == 4
    for name in ("image/AUC", "pixel/F1-pooled", "image/class-accuracy", "ifdl/gIoU"):
        assert report[name]["value"] is not None, name


def test_predict_writes_maps_that_score_reads(place: Path, tmp_path: Path):
    images = [str(path) for path in sorted(place.glob("image*.png"))]
    output = tmp_path / "out"
    assert predict.main([*images, "--output", str(output), *model_options(place)]) == 0
    rows = list(csv.DictReader((output / "predictions.csv").open(newline="")))
    assert len(rows) == 4
    assert all(0 <= float(row["probability"]) <= 1 for row in rows)
    for row in rows:
        parts = dict(part.split(" ") for part in row["class_probabilities"].split("; "))
        assert list(parts) == ["authentic", "generated", "tampered"]
        assert row["class"] == max(parts, key=lambda name: float(parts[name]))
        forged = float(parts["generated"]) + float(parts["tampered"])
        assert forged == pytest.approx(float(row["probability"]), abs=2e-6)
    assert len(list((output / "maps").iterdir())) == 4
    data = [str(output), str(place / "manifest.csv"), "--output", str(tmp_path / "scored")]
    assert score.main(data) == 0


def test_what_asks_for_loupes_own_parts_says_so(place: Path, tmp_path: Path, capsys):
    data, output = str(place / "manifest.csv"), str(tmp_path / "out")
    assert diagnose.main([data, "--output", output, *model_options(place)]) == 2
    assert "ForgeryExpert" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"ADAPTATION\.MODE"):
        load_config(place / "expert.yaml", ["ADAPTATION.MODE", "offline"])


def test_another_tower_than_clip_cannot_become_a_released_checkpoint(place: Path, tmp_path, capsys):
    words = ["--to-released", str(place / "expert.safetensors"), str(tmp_path / "released.pt")]
    assert convert.main(words) == 2
    assert "no place in the released stage 1" in capsys.readouterr().err
