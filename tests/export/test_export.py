"""The exported network is the model; its graph is the network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from loupe import Loupe
from loupe.checkpoint import save_weights
from loupe.commands import export
from loupe.export.graph import (
    FORMATS,
    difference,
    example_images,
    open_graph,
    quantise,
    write_graph,
)
from loupe.export.network import ExportedLoupe, ExportError
from loupe.export.twins import ShiftSearch, WholeBatchCopies
from loupe.inference.engines import GraphModel
from loupe.modeling.forensic.copies import CopyBranch, likeliest_shifts
from tests.pictures import textured

pytest.importorskip("onnxruntime")
SIDE = 84


def items_of(images: torch.Tensor) -> list[dict]:
    height, width = images.shape[2:]
    size = {"height": height, "width": width, "valid_size": (height, width)}
    return [{"image": image.to(torch.uint8), **size} for image in images]


def test_shifts_are_found_without_a_transform():
    picture = textured(96, 128, seed=3).astype(np.float32)
    picture[10:50, 70:118] = picture[40:80, 10:58]
    band = torch.from_numpy(picture - cv2.GaussianBlur(picture, (0, 0), 3))
    expected, heights = likeliest_shifts(band)
    shifts, peaks = ShiftSearch((96, 128))(band[None])
    assert shifts[0].tolist() == expected.tolist()
    assert torch.allclose(peaks[0], heights, rtol=1e-4)


def test_a_batch_of_copies_is_as_image_by_image():
    torch.manual_seed(0)
    branch = CopyBranch(8, 16).eval()
    torch.nn.init.normal_(branch.tokens[-1].weight)
    pictures = [textured(64, 96, seed=seed) for seed in (1, 2)]
    pictures[0][8:32, 60:92] = pictures[0][30:54, 4:36]
    images = torch.from_numpy(np.stack(pictures)).float()[:, None].expand(-1, 3, -1, -1)
    images = images / 127.5 - 1
    valid = torch.ones(2, 64, 96, dtype=torch.bool)
    with torch.no_grad():
        expected, found = branch(images, valid), WholeBatchCopies(branch, (64, 96))(images, valid)
    assert expected.std() > 0.01
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_network_gives_what_the_model_gives(tiny_model: Loupe):
    tiny_model.eval()
    images = example_images((SIDE, SIDE))
    with torch.no_grad():
        expected = tiny_model(items_of(images))
        probability, maps, patches = ExportedLoupe(tiny_model, (SIDE, SIDE))(images)
    for number, one in enumerate(expected):
        assert float(probability[number]) == pytest.approx(one["forgery_score"], abs=1e-6)
        assert torch.allclose(maps[number], one["forgery_map"], atol=1e-5)
        assert torch.allclose(patches[number], one["patch_map"], atol=1e-5)


def test_a_graph_of_onnx_gives_the_same_for_any_batch(build: Callable[..., Loupe], tmp_path: Path):
    model = build("MODEL.SEGMENTER.PIXEL_LAYERS", 1, "MODEL.SEGMENTER.MASK_LAYERS", 1).eval()
    network = ExportedLoupe(model, (SIDE, SIDE))
    (file,) = write_graph(network, tmp_path, ["onnx"], {"size": str(SIDE), "weights": "none"})
    assert file.name == FORMATS["onnx"]
    images = example_images((SIDE, SIDE), 3)
    found = difference(network, file, images)
    assert max(found.probability, found.forgery_map) < 1e-4

    session = open_graph(file)
    whole = session.run(None, {"images": images.numpy()})
    assert [value.shape[0] for value in whole] == [3, 3, 3]
    # As an engine: images that fit run in the graph, the others in the model.
    engine = GraphModel(model, session, SIDE)
    items = items_of(images) + items_of(example_images((42, 56), 1))
    with torch.no_grad():
        outputs, expected = engine(items), model(items[:3]) + model(items[3:])
    assert engine.counts == {"graph": 3, "model": 1}
    for one, other in zip(outputs, expected, strict=True):
        assert one["forgery_score"] == pytest.approx(other["forgery_score"], abs=1e-4)
        assert torch.allclose(one["forgery_map"], other["forgery_map"], atol=1e-4)
    smaller = tmp_path / "int8.onnx"
    quantise(file, smaller)
    assert smaller.stat().st_size < 0.8 * file.stat().st_size
    assert 0 < difference(network, smaller, images).forgery_map < 0.5


def test_a_size_that_does_not_fit_is_refused(tiny_model: Loupe):
    with pytest.raises(ExportError, match="multiples of the patch size 14"):
        ExportedLoupe(tiny_model, (80, 84))


def test_a_torch_export_alone_is_compared_and_told(
    build: Callable[..., Loupe], tiny_cfg: CfgNode, tmp_path: Path
):
    options = ["MODEL.SEGMENTER.ENABLED", False]
    model = build(*options).eval()
    save_weights(model.state_dict(), tmp_path / "weights.safetensors")
    tiny_cfg.merge_from_list(options)
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    words = ["--config-file", str(tmp_path / "config.yaml"), "--format", "torch-export"]
    words += ["--weights", str(tmp_path / "weights.safetensors"), "--size", str(SIDE)]
    output = tmp_path / "out"
    assert export.main([*words, "--output", str(output), "MODEL.DEVICE", "cpu"]) == 0
    ((name, found),) = json.loads((output / "export.json").read_text())["differences"].items()
    assert name == FORMATS["torch-export"]
    assert max(found["probability"], found["forgery_map"]) < 1e-4

    # What differs is noticed.
    with torch.no_grad():
        model.classifier.fusion.weight += 1
    network, images = ExportedLoupe(model, (SIDE, SIDE)), example_images((SIDE, SIDE))
    assert difference(network, output / name, images).probability > 1e-3


def test_rounded_weights_without_the_graph_that_they_are_of_are_refused(tmp_path: Path, capsys):
    words = ["--output", str(tmp_path / "out"), "--format", "torch-export"]
    assert export.main([*words, "--quantise", "dynamic"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "add onnx to --format" in line
    assert not (tmp_path / "out").exists()
