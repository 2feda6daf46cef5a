"""Toy files for the tests of the data package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from loupe.config import add_loupe_config


@pytest.fixture
def photograph() -> np.ndarray:
    """(24, 40, 3) smooth image, red growing rightwards and green downwards."""
    image = np.zeros((24, 40, 3), np.uint8)
    image[..., 0] = np.linspace(20, 220, 40)[None, :]
    image[..., 1] = np.linspace(20, 220, 24)[:, None]
    image[..., 2] = 90
    return image


@pytest.fixture
def save() -> Callable[..., Path]:
    """Writes an array as an image file, making its folder."""

    def write(path: Path, pixels: np.ndarray | None = None, **options) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if pixels is None:
            pixels = np.full((6, 8, 3), 100, np.uint8)
        Image.fromarray(pixels).save(path, **options)
        return path

    return write


@pytest.fixture
def cfg() -> CfgNode:
    """Loupe's defaults at a small size, without augmentation."""
    cfg = add_loupe_config(get_cfg())
    cfg.INPUT.SIZE = 32
    cfg.SEED = 7
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 4
    for name in cfg.INPUT.AUGMENTATION:
        cfg.INPUT.AUGMENTATION[name] = 0.0
    return cfg
