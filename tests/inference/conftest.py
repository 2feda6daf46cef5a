"""A small predictor with random weights, and images for it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from loupe.checkpoint import save_weights
from loupe.config import load_config
from loupe.inference import LoupePredictor

CONFIG = Path(__file__).parents[2] / "configs" / "quick" / "loupe_stage2.yaml"
SMALL = ["MODEL.PERCEPTION_ENCODER.DEPTH", "1", "TEST.IMS_PER_BATCH", "2", "MODEL.DEVICE", "cpu"]


@pytest.fixture(scope="session")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> LoupePredictor:
    torch.manual_seed(0)
    cfg = load_config(CONFIG, SMALL)
    weights = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(build_model(cfg).state_dict(), weights)
    return LoupePredictor(cfg, weights)


@pytest.fixture
def write_image():
    """Writes noise as an image file; returns its (H, W, 3) RGB pixels (those of a PNG)."""

    def write(path: Path, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
        image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image)
        return np.ascontiguousarray(image[..., ::-1])

    return write
