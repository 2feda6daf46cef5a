"""Evaluating a model on one test set."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from torch import nn

from loupe.adaptation import adapt_and_evaluate
from loupe.trainer.step import Batch


def evaluate_model(
    cfg: CfgNode, model: nn.Module, loader: Iterable[Batch], evaluator: DatasetEvaluator
) -> dict[str, Any]:
    """Runs a model over a test set, adapting a copy of it if `ADAPTATION.MODE` says so.

    Returns:
        Metrics by group and name; empty on all processes but the main one.
    """
    if cfg.ADAPTATION.MODE == "none":
        return inference_on_dataset(model, loader, evaluator)
    # A copy, so that each of several test sets starts from the weights as they were trained.
    return adapt_and_evaluate(cfg, copy.deepcopy(model), loader, evaluator) or {}
