"""An explainer trains, resumes, evaluates and is published by the same trainer as all models."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from loupe.checkpoint import load_weights
from loupe.config import load_config
from loupe.data.explanations.features import FeatureLoader, FeatureSet
from loupe.data.explanations.truth import all_texts, write_claims
from loupe.data.sources.entries import DatasetError
from loupe.explanation import explainer as explainer_module
from loupe.explanation.adapters import add_adapters
from loupe.explanation.building import trained_names
from loupe.explanation.prompts import question_of
from loupe.explanation.word_tokenizer import IMAGE, word_tokenizer
from loupe.trainer.trainer import LoupeTrainer
from loupe.vocabulary import Claims
from research.explanation import features, gpu, truncate
from tests.explanation.tiny import CLIP, LANGUAGE, tiny_llava
from tests.trainer.test_processes import start_processes

TOKENS, WIDTH = 16, CLIP["hidden_size"]
TEXTS = [*all_texts(), question_of("forged"), question_of("authentic", False), ": . , ;"]


def arguments(cfg: CfgNode) -> dict[str, Any]:
    """What `explainer_arguments` gives, of a model that is made in milliseconds."""
    tokenizer = word_tokenizer(TEXTS)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    vlm = tiny_llava(CLIP, LANGUAGE | {"vocab_size": len(tokenizer)}, image_id)
    vlm.config.vision_feature_layer, vlm.config.vision_feature_select_strategy = -1, "full"
    add_adapters(vlm, 2, 4.0, 0.0)
    return {
        "vlm": vlm,
        "tokenizer": tokenizer,
        "guide": None,
        "template": "words",
        "image_id": image_id,
        "image_tokens": TOKENS,
        "trained": trained_names(vlm, projector=True),
        "settings": {"alpha": 0.5, "template": "words"},
        "background": "mean",
        "mask_source": "item",
        "max_new_tokens": 8,
        "patch_size": CLIP["image_size"],
        "pixel_mean": (127.5,) * 3,
        "pixel_std": (127.5,) * 3,
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Ten examples of features, for training and for the test."""
    monkeypatch.setattr(explainer_module, "explainer_arguments", arguments)
    rng = np.random.default_rng(0)
    place = tmp_path / "features"
    place.mkdir()
    np.save(place / "features.npy", rng.normal(size=(10, 2, TOKENS, WIDTH)).astype(np.float16))
    claims = Claims("forged", "splice", "upper left", "small", "dark", "left half")
    lines = [
        {
            "image_id": f"{i}",
            "question": question_of("forged"),
            "explanation": write_claims(claims, rng),
            "claims": claims._asdict(),
            "verdict": "forged",
            "region_claims": claims._asdict(),
        }
        for i in range(10)
    ]
    (place / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return place


def settings(folder: Path, output: Path, steps: int) -> CfgNode:
    return load_config(
        gpu.CONFIG,
        [
            *("DATASETS.TRAIN", f"('features://{folder}',)", "SOLVER.IMS_PER_BATCH", "2"),
            *("DATASETS.TEST", f"('features://{folder}',)", "SOLVER.MAX_ITER", str(steps)),
            *("SOLVER.CHECKPOINT_PERIOD", "2", "OUTPUT_DIR", str(output), "SEED", "3"),
            *("MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"),
            *("SOLVER.DECAY_FRACTION", "0.0", "SOLVER.WARMUP_FRACTION", "0.0"),
        ],
    )


def train(cfg: CfgNode, *, resume: bool = False) -> dict[str, torch.Tensor]:
    trainer = LoupeTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return load_weights(Path(cfg.OUTPUT_DIR) / "model_final.pth")


def test_a_run_learns_resumes_evaluates_and_is_published(folder: Path, tmp_path: Path):
    whole = train(settings(folder, tmp_path / "run", 4))
    assert any("lora_B" in name and value.any() for name, value in whole.items())
    assert all("lora" in n or "projector" in n or n == "saved_settings" for n in whole)
    rows = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    losses = [json.loads(row)["loss_tokens"] for row in rows if "loss_tokens" in row]
    assert all(np.isfinite(losses))
    (scores,) = (tmp_path / "run" / "inference").glob("*features.json")
    written = json.loads(scores.read_text())
    assert written["images"] == 10
    assert set(written["metrics"]) >= {"facts/cell", "detector/verdict", "text/complete"}
    # The first half, then the other half by --resume, is the whole.
    train(settings(folder, tmp_path / "half", 2))
    (tmp_path / "half" / "model_final.pth").unlink()
    resumed = train(settings(folder, tmp_path / "half", 4), resume=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    (tmp_path / "out").mkdir()
    gpu.publish(tmp_path, tmp_path / "out")
    published = load_weights(tmp_path / "out" / "explain_tiny.safetensors")
    assert published.keys() == whole.keys()
    assert published["saved_settings"].dtype == torch.uint8


def save_gradients(wanted: Namespace) -> None:
    """Entry point of a process: leaves the gradients of an optimiser step of 4 texts."""
    explainer_module.explainer_arguments = arguments
    place = Path(wanted.folder)
    output = place.parent / f"of{comm.get_world_size()}"
    output.mkdir(exist_ok=True)
    cfg = settings(place, output, 1)
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 4, "DATASETS.TEST", ()])
    trainer = LoupeTrainer(cfg)
    model = trainer.checkpointer.model

    def keep(*_: object) -> None:
        named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        torch.save(named, output / f"gradients{comm.get_rank()}.pth")

    trainer._trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(folder: Path):
    save_gradients(Namespace(folder=str(folder)))
    start_processes(save_gradients, 2, folder)
    one = torch.load(folder.parent / "of1" / "gradients0.pth")
    largest = max(float(value.abs().max()) for value in one.values())
    assert largest > 0
    for rank in range(2):
        two = torch.load(folder.parent / "of2" / f"gradients{rank}.pth")
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6 * largest)


def test_features_are_made_on_the_cpu_also_beside_a_gpu(monkeypatch):
    """Workers feed tensors of the CPU; a model on a GPU would refuse them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    built = []
    monkeypatch.setattr(features, "LoupePredictor", lambda cfg, weights: built.append(cfg))
    features.predictor.__wrapped__()
    assert [cfg.MODEL.DEVICE for cfg in built] == ["cpu"]


def test_adapters_of_a_lower_rank_write_the_same():
    torch.manual_seed(0)
    a, b = torch.randn(4, 12), torch.randn(9, 4)
    smaller = truncate.truncated(a, b, 4)
    assert torch.allclose(smaller[1] @ smaller[0], b @ a, atol=1e-5)
    b[:, 3] = b[:, 2]  # Now three are enough.
    smaller = truncate.truncated(a, b, 3)
    assert torch.allclose(smaller[1] @ smaller[0], b @ a, atol=1e-5)
    assert smaller[2] < 1e-5 < truncate.truncated(a, b, 2)[2]


def test_every_pass_has_all_examples_in_another_order(folder: Path):
    batches = iter(FeatureLoader(FeatureSet(folder), 5, seed=1))
    passes = [[i["image_id"] for _ in range(2) for i in next(batches)] for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == [str(i) for i in range(10)]
    assert passes[0] != passes[1]
    later = iter(FeatureLoader(FeatureSet(folder), 5, seed=1, start=2))
    assert [i["image_id"] for _ in range(2) for i in next(later)] == passes[1]


def test_features_without_their_examples_are_refused(folder: Path):
    (folder / "examples.jsonl").write_text("{}\n")
    with pytest.raises(DatasetError, match="10 features and 1 examples"):
        FeatureSet(folder)
    with pytest.raises(DatasetError, match="no features"):
        FeatureSet(folder / "elsewhere")
