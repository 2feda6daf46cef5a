"""Images of every size and shape get a probability and a map of their own size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from loupe import Loupe
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper
from loupe.modeling.backbone import STEMS

Build = Callable[..., Loupe]

SIDES = [(side, side) for side in range(1, 41)] + [(1, 40), (40, 1), (3, 17), (23, 16), (32, 31)]
ASPECTS = [(1, 1000), (1000, 1), (2, 2000), (3000, 3)]
SHAPES = SIDES + ASPECTS


@pytest.mark.parametrize("resize", ["squash", "pad", "crop", "native"])
@pytest.mark.parametrize("stem", STEMS)
@torch.no_grad()
def test_an_image_of_any_size_gets_a_map_of_its_size(
    stem: str, resize: str, build: Build, tiny_cfg, save: Callable[..., Path], tmp_path: Path
):
    options = [
        *("MODEL.PERCEPTION_ENCODER.STEM", stem, "MODEL.PERCEPTION_ENCODER.PATCH_SIZE", 16),
        *("INPUT.SIZE", 64, "INPUT.RESIZE", resize),
    ]
    model = build(*options).eval()
    tiny_cfg.merge_from_list(options)
    mapper = ForgeryDatasetMapper(tiny_cfg, is_train=False)
    rng = np.random.default_rng(0)
    # Sizes change the path only where nothing is resized to INPUT.SIZE.
    for height, width in SHAPES if resize == "native" else SHAPES[::5] + ASPECTS:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        file = save(tmp_path / f"{height}x{width}.png", pixels)
        item = mapper({"file_name": str(file), "image_id": file.stem})
        (prediction,) = model([item])
        assert "error" not in prediction, prediction
        assert prediction["forgery_map"].shape == (height, width)
        assert torch.isfinite(prediction["forgery_map"]).all()
        assert 0 <= prediction["forgery_score"] <= 1
