"""Fixtures that all tests may use: a tiny model, items for it, fixed seeds, one thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Before anything imports Python's own distutils: setuptools, which PyTorch's environment report
# imports late, refuses to come after it.
import setuptools  # noqa: F401
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from PIL import Image

from loupe import Loupe, add_loupe_config
from tests.limited_time import MOST_SECONDS, within

Item = dict[str, Any]

# 84 px in patches of 14: the size of the reference model, so its grid (6 x 6) is even but no power
# of two, and no side of any level equals another by chance.
TINY = (
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.PERCEPTION_ENCODER.NAME", "vit_pe_core_tiny_patch16_384"),
    *("MODEL.PERCEPTION_ENCODER.PATCH_SIZE", 14),
    *("MODEL.PERCEPTION_ENCODER.EMBED_DIM", 64),
    *("MODEL.PERCEPTION_ENCODER.NUM_HEADS", 4),
    *("MODEL.PERCEPTION_ENCODER.DEPTH", 2),
    *("MODEL.SEGMENTER.FEATURE_DIM", 64),
    *("MODEL.SEGMENTER.NUM_HEADS", 4),
    *("MODEL.SEGMENTER.PIXEL_LAYERS", 2),
    *("MODEL.SEGMENTER.PIXEL_FFN_DIM", 128),
    *("MODEL.SEGMENTER.MASK_LAYERS", 3),
    *("MODEL.SEGMENTER.MASK_FFN_DIM", 128),
    *("MODEL.SEGMENTER.NUM_QUERIES", 5),
    *("MODEL.SEGMENTER.TRAIN_POINTS", 64),
    *("INPUT.SIZE", 84),
)


def pytest_configure() -> None:
    torch.set_num_threads(1)
    # Of commands that run here or in processes of their own; see `loupe.threads`.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _in_time(item: pytest.Item) -> Generator[None, object, object]:
    with within(MOST_SECONDS):
        return (yield)


pytest_runtest_setup = pytest.hookimpl(_in_time, wrapper=True)
pytest_runtest_call = pytest.hookimpl(_in_time, wrapper=True)
pytest_runtest_teardown = pytest.hookimpl(_in_time, wrapper=True)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def tiny_cfg() -> CfgNode:
    """A configuration of the whole model that runs in milliseconds."""
    cfg = add_loupe_config(get_cfg())
    cfg.merge_from_list(list(TINY))
    return cfg


@pytest.fixture
def build(tiny_cfg: CfgNode) -> Callable[..., Loupe]:
    """`build("KEY", value, ...)`: a tiny model whose configuration differs in these keys."""

    def build(*options: object) -> Loupe:
        cfg = tiny_cfg.clone()
        cfg.merge_from_list(list(options))
        torch.manual_seed(0)
        return build_model(cfg)

    return build


@pytest.fixture
def tiny_model(build: Callable[..., Loupe]) -> Loupe:
    """A tiny model with random weights."""
    return build()


@pytest.fixture
def make_item() -> Callable[..., Item]:
    """`make_item(seed, ...)`: what the dataset mapper gives in training, from random numbers."""

    def make_item(
        seed: int = 0,
        *,
        label: int = 1,
        regions: int = 1,
        valid_size: tuple[int, int] = (84, 84),
        size: int = 84,
        mask_known: bool = True,
    ) -> Item:
        generator = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
        image[:, valid_size[0] :] = 0
        image[:, :, valid_size[1] :] = 0
        numbers = torch.zeros(size, size, dtype=torch.uint8)
        for number in range(1, (regions if label and mask_known else 0) + 1):
            top, left = 12 * number - 7 + seed % 3, 3 * number + 2 + seed % 5
            numbers[top : top + 8, left : left + 22] = number
        return {
            "file_name": f"{seed}.png",
            "image_id": str(seed),
            "height": 50,
            "width": 70,
            "image": image,
            "valid_size": valid_size,
            "window": (0.0, 0.0, 70.0, 50.0),
            "label": label,
            "mask": (numbers > 0).float(),
            "regions": numbers,
            "mask_known": mask_known,
        }

    return make_item


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
