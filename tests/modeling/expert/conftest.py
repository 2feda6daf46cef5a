from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from loupe import add_loupe_config
from loupe.modeling import ForgeryExpert
from tests.modeling.expert.sizes import OWN


@pytest.fixture
def build_expert() -> Callable[..., ForgeryExpert]:
    """`build_expert("KEY", value, ...)`: a tiny expert on our own encoder."""

    def build(*options: object) -> ForgeryExpert:
        cfg = add_loupe_config(get_cfg())
        cfg.merge_from_list([*OWN, *options])
        torch.manual_seed(0)
        return build_model(cfg)

    return build
