"""tools/diagnose.py: a labelled data set and a model in, a report out."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from loupe.checkpoint import save_weights
from loupe.commands import diagnose
from loupe.config import load_config
from loupe.data.sources.synthetic import make_sample

CONFIG = Path(__file__).parents[2] / "configs" / "quick" / "loupe_stage2.yaml"
SMALL = [
    *("MODEL.PERCEPTION_ENCODER.DEPTH", "1", "MODEL.DEVICE", "cpu", "INPUT.SIZE", "64"),
    *("TEST.IMS_PER_BATCH", "3", "DATALOADER.NUM_WORKERS", "0"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of six readable images, 64 x 40 pixels, and one that is none; `base.pth`."""
    root = tmp_path_factory.mktemp("diagnose")
    lines = ["image,mask,label,technique,source"]
    for index in range(6):
        sample = make_sample("test", 0, index, 64, 0)
        cv2.imwrite(str(root / f"{index}.png"), sample.image[:, :40, ::-1])
        if index % 2:
            mask = np.zeros((64, 40), np.uint8)
            mask[10:40, 8 : 20 + index] = 255
            cv2.imwrite(str(root / f"m{index}.png"), mask)
        lines.append(f"{index}.png,{f'm{index}.png' if index % 2 else ''},{index % 2},copy-move,")
    (root / "bad.png").write_bytes(b"no image")
    lines.append("bad.png,,0,,")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    weights = build_model(load_config(CONFIG, SMALL)).state_dict()
    # Faint masks: those of random weights are 1 everywhere, whatever the condition.
    weights["segmenter.mask_decoder.class_head.bias"].copy_(torch.tensor([-2.0, 0.0]))
    save_weights(weights, root / "base.pth")
    return root


def run(folder: Path, output: Path, *options: str) -> dict:
    words = [str(folder / "list.csv"), "--config-file", str(CONFIG), "--output", str(output)]
    words += ["--weights", str(folder / "base.pth"), *SMALL, *options]
    assert diagnose.main(words) == 1
    return json.loads((output / "diagnosis.json").read_text())


@pytest.mark.parametrize("resize", ["squash", "pad", "crop", "native"])
def test_a_report_is_written_and_a_bad_image_is_named(resize: str, folder: Path, tmp_path: Path):
    content = run(folder, tmp_path, "INPUT.RESIZE", resize)
    facts, counts = content["facts"], content["facts"]["counts"]
    assert (counts["forged"], counts["authentic"], counts["unreadable"]) == (3, 3, 1)
    assert "bad.png" in next(iter(content["left_out"]))
    assert facts["views"]["patch map"]["pixel/AUC-image"] > 0
    assert facts["condition"]["told apart"] > 0
    assert facts["views"]["centre prior"]["pixel/AUC-image"] > 0.5
    report = (tmp_path / "diagnosis.md").read_text()
    assert report.startswith("# Diagnosis of ")
    assert all(finding["remedy"][1:] in report for finding in content["findings"])


def test_a_model_without_condition_is_diagnosed(folder: Path, tmp_path: Path):
    options = [*SMALL, "MODEL.SEGMENTER.CONDITION_ATTENTION", "none"]
    torch.manual_seed(0)
    weights = build_model(load_config(CONFIG, options)).state_dict()
    save_weights(weights, tmp_path / "none.pth")
    words = [str(folder / "list.csv"), "--config-file", str(CONFIG), "--output", str(tmp_path)]
    words += ["--weights", str(tmp_path / "none.pth"), *options]
    diagnose.main(words)
    facts = json.loads((tmp_path / "diagnosis.json").read_text())["facts"]
    assert facts["condition"]["told apart"] is None
    assert "told forged |" not in (tmp_path / "diagnosis.md").read_text()


def test_images_without_labels_are_refused(folder: Path, tmp_path: Path, capsys):
    (folder / "plain.csv").write_text("image,label\n0.png,\n1.png,\n")
    words = [str(folder / "plain.csv"), "--config-file", str(CONFIG), "--output", str(tmp_path)]
    words += ["--weights", str(folder / "base.pth"), *SMALL]
    assert diagnose.main(words) == 2
    assert "a diagnosis needs truth" in capsys.readouterr().err


def test_without_a_configuration_the_small_model_is_diagnosed(folder: Path, tmp_path: Path):
    words = [str(folder / "list.csv"), "--output", str(tmp_path), "MODEL.DEVICE", "cpu"]
    assert diagnose.main([*words, "INPUT.SIZE", "64", "DATALOADER.NUM_WORKERS", "0"]) == 1
    assert json.loads((tmp_path / "diagnosis.json").read_text())["facts"]["counts"]["images"] == 6
