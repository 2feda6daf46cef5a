"""The shipped adapters belong to the shipped configuration and to the shipped detector."""

from __future__ import annotations

import torch

from loupe.checkpoint import load_weights
from loupe.config import load_config
from loupe.explanation.adapters import as_settings
from loupe.explanation.building import build_guide, encoder_digest
from loupe.model_zoo import CONFIGS, FOLDER, shipped_file


def test_adapters_fit_configuration_detector_and_card():
    cfg = load_config(CONFIGS / "explain_tiny.yaml")
    name, keys = cfg.MODEL.WEIGHTS, cfg.MODEL.EXPLAINER
    weights = load_weights(name)
    settings = as_settings(weights.pop("saved_settings"))
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert settings == {
        "alpha": keys.ALPHA,
        "background": keys.BACKGROUND,
        "template": keys.TEMPLATE,
        "base": keys.BASE,
        "digest": settings["digest"],
        "grid": keys.GRID,
        "tower": encoder_digest(build_guide(cfg)),
        "lora_alpha": keys.LORA_ALPHA,
        "tell_region": keys.TELL_REGION,
    }
    ranks = {value.shape[0] for key, value in weights.items() if ".lora_A." in key}
    assert ranks == {keys.LORA_RANK}
    assert all("language_model" in key for key in weights if "lora" in key)
    assert name.removeprefix("loupe://") in (FOLDER / "README.md").read_text()
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) < 25e6
    assert shipped_file(name).stat().st_size < 6e6


def test_adapters_hang_on_the_encoder_and_on_nothing_else_of_the_detector():
    guide = build_guide(load_config(CONFIGS / "explain_tiny.yaml"))
    before = encoder_digest(guide)
    for part in (guide.classifier, guide.segmenter):
        next(part.parameters()).data.add_(1)
    assert encoder_digest(guide) == before
    next(guide.backbone.parameters()).data[0] += 1e-3
    assert encoder_digest(guide) != before
