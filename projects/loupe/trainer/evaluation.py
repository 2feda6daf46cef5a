"""Evaluating a model on one test set."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_context, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from loupe.adaptation import adapt_and_evaluate, safe_target
from loupe.adaptation.runs import adaptation_of
from loupe.checkpoint import save_weights
from loupe.modeling.guarded import guarded
from loupe.solver import warmup_stable_decay
from loupe.trainer.step import Batch
from loupe.writing import cut_name

logger = logging.getLogger(__name__)

# Characters of a data set's name in a file's; file systems take 255 bytes, ending included.
LONGEST_STEM = 80


def evaluate_model(
    cfg: CfgNode,
    model: nn.Module,
    loader: Iterable[Batch],
    evaluator: DatasetEvaluator,
    suffix: str = "",
) -> dict[str, Any]:
    """Runs a model over a test set, adapting a copy of it if `ADAPTATION.MODE` says so.

    An adaptation leaves `adaptation<suffix>.json` in OUTPUT_DIR and, unless it is episodic,
    `model_adapted<suffix>.pth`.

    Returns:
        Metrics by group and name; empty on all processes but the main one.

    Raises:
        ValueError: the adapted weights would overwrite those that adaptation starts from.
    """
    if cfg.ADAPTATION.MODE == "none":
        with inference_context(model):
            return inference_on_dataset(guarded(model), loader, evaluator)
    folder = Path(cfg.OUTPUT_DIR)
    target = safe_target(folder / f"model_adapted{suffix}.pth", cfg.MODEL.WEIGHTS)
    # A copy, so that each of several test sets starts from the weights as they were trained.
    adaptation = adaptation_of(cfg, copy.deepcopy(model))
    schedule = adaptation_schedule(cfg)
    results = adapt_and_evaluate(cfg, adaptation, loader, evaluator, schedule) or {}
    if comm.is_main_process():
        adaptation.summary.write(folder / f"adaptation{suffix}.json")
        if cfg.ADAPTATION.MODE != "episodic":
            logger.info("Saving adapted weights to %s", target)
            save_weights(adaptation.model.state_dict(), target)
    return results


def adaptation_schedule(cfg: CfgNode) -> Callable[[float], float] | None:
    """The multiplier of adaptation's learning rate; None = constant.

    Raises:
        ValueError: `ADAPTATION.SCHEDULE` is unknown.
    """
    name, solver = cfg.ADAPTATION.SCHEDULE, cfg.SOLVER
    if name == "wsd":
        return warmup_stable_decay(
            solver.WARMUP_FRACTION, solver.DECAY_FRACTION, solver.DECAY_SHAPE
        )
    if name == "constant":
        return None
    raise ValueError(f"ADAPTATION.SCHEDULE is {name!r}; use wsd or constant")


def check_expected_results(cfg: CfgNode) -> None:
    """Checks before a run what Detectron2 would stumble over after it.

    Raises:
        ValueError: `TEST.EXPECTED_RESULTS` cannot be compared with what the run will measure.
    """
    expected, sets = cfg.TEST.EXPECTED_RESULTS, cfg.DATASETS.TEST
    if not expected:
        return
    if len(sets) != 1:
        raise ValueError(
            f"TEST.EXPECTED_RESULTS is {expected}, which is compared with one test set, and "
            f"DATASETS.TEST names {len(sets)}; name one, or give TEST.EXPECTED_RESULTS '[]'"
        )
    for entry in expected:
        if len(entry) != 4 or not all(isinstance(number, int | float) for number in entry[2:]):
            raise ValueError(
                f"TEST.EXPECTED_RESULTS holds {entry}; an entry is a group, a metric, the value "
                'and its tolerance: ["image", "AUC", 0.9, 0.1]'
            )


def file_stem(dataset_name: str) -> str:
    """A data set's name or path as part of a file name, another one for each name."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in dataset_name)
    if plain == dataset_name and len(plain) <= LONGEST_STEM:
        return plain
    return cut_name(dataset_name, plain, LONGEST_STEM)
