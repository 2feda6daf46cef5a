"""A whole run: offline, online or episodic."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from loupe.adaptation.settings import AdaptationSettings
from loupe.adaptation.steps import TestTimeAdaptation
from loupe.modeling.guarded import without_failing
from loupe.modeling.loupe import ClassifiedBatch

logger = logging.getLogger(__name__)

MODES = ("none", "offline", "online", "episodic")
# All of an item that the model is shown: no label, no mask, whatever else the item holds.
SHOWN = (
    *("file_name", "image_id", "image", "valid_size", "height", "width", "window", "orientation"),
    "error",
)

Batch = list[dict[str, Any]]
Loader = Iterable[Batch]
Schedule = Callable[[float], float]


def adapted_predictions(
    adaptation: TestTimeAdaptation,
    loader: Loader,
    *,
    mode: str,
    images_per_step: int,
    steps: int = 1,
    schedule: Schedule | None = None,
) -> Iterator[tuple[Batch, Batch]]:
    """Adapts and predicts; in the end the model has the weights that answered last.

    Args:
        adaptation: Holds the model.
        loader: Batches of test items; read twice in offline mode.
        mode: "offline", "online" or "episodic".
        images_per_step: Images in one optimiser step; a loader's batch is a micro-batch.
        steps: Optimiser steps on the same images.
        schedule: Multiplier of the learning rate as a function of progress in [0, 1]; used in
            offline mode, where the number of steps is known beforehand.

    Yields:
        Batches as the loader gave them, and their predictions, in order.

    Raises:
        ValueError: The mode is unknown, or `steps` or `images_per_step` is not positive.
    """
    if mode not in MODES[1:]:
        raise ValueError(f"ADAPTATION.MODE is {mode!r}; use one of {MODES}")
    if min(steps, images_per_step) < 1:
        raise ValueError(
            f"ADAPTATION.STEPS is {steps} and ADAPTATION.IMS_PER_BATCH is {images_per_step}; "
            "both must be at least 1"
        )
    adaptation.model.eval()
    adaptation.summary.mode = mode
    if mode == "offline":
        pairs = _offline(adaptation, loader, images_per_step, steps, schedule)
    else:
        pairs = _online(adaptation, loader, images_per_step, steps, reset=mode == "episodic")
    yield from pairs
    if mode != "episodic" and adaptation.settings.teacher_predicts:
        weights = adaptation.teacher.state_dict()
        adaptation.model.segmenter.load_state_dict(weights)
    logger.info("adaptation: %s", adaptation.summary)


def _offline(
    adaptation: TestTimeAdaptation,
    loader: Loader,
    images_per_step: int,
    steps: int,
    schedule: Schedule | None,
) -> Iterator[tuple[Batch, Batch]]:
    groups = count_groups(loader, images_per_step)
    if schedule is not None and groups:
        adaptation.follow(schedule, groups * steps)
    for group in _grouped(loader, images_per_step):
        _adapt(adaptation, _perceive(adaptation, group), steps)
    adaptation.forget_answers()
    for batch in loader:
        (perception,) = _perceive(adaptation, [batch])
        yield batch, _answer(adaptation, batch, perception)


def _online(
    adaptation: TestTimeAdaptation, loader: Loader, images_per_step: int, steps: int, *, reset: bool
) -> Iterator[tuple[Batch, Batch]]:
    for group in _grouped(loader, images_per_step):
        perceptions = _perceive(adaptation, group)
        _adapt(adaptation, perceptions, steps)
        try:
            for batch, perception in zip(group, perceptions, strict=True):
                yield batch, _answer(adaptation, batch, perception)
        finally:
            if reset:
                adaptation.reset()


def _grouped(loader: Loader, size: int) -> Iterator[list[Batch]]:
    """Joins a loader's batches until they hold `size` images or the loader ends."""
    group: list[Batch] = []
    for batch in loader:
        group.append(batch)
        if sum(map(len, group)) >= size:
            yield group
            group = []
    if group:
        yield group


def count_groups(loader: Loader, size: int) -> int | None:
    """Number of groups that a loader will give; None where it does not tell."""
    if isinstance(loader, list):
        return sum(1 for _ in _grouped(loader, size))
    batch_size = getattr(loader, "batch_size", None)
    if not batch_size or not hasattr(loader, "__len__"):
        return None
    return -(-len(loader) // -(-size // batch_size))


def _adapt(
    adaptation: TestTimeAdaptation, perceptions: list[ClassifiedBatch | None], steps: int
) -> None:
    seen = [perception for perception in perceptions if perception is not None]
    adaptation.summary.images += sum(
        len(perception.classification.image_logits) for perception in seen
    )
    for number in range(steps):
        logger.info("adaptation loss %.4f", adaptation.step(seen, met=number == 0))


# Functions of their own, lest the generator's consumer runs without gradients while it is paused.
@torch.no_grad()
def _answer(
    adaptation: TestTimeAdaptation, batch: Batch, perception: ClassifiedBatch | None
) -> Batch:
    with adaptation.answering(perception):
        # The forward pass of the answer is measured as it runs: a second one would cost its time.
        hook = adaptation.model.segmenter.register_forward_hook(
            lambda module, inputs, outputs: adaptation.note_answer(outputs[-1], perception)
        )
        try:
            return adaptation.model.predict(_shown(batch), perception)
        finally:
            hook.remove()


@torch.no_grad()
def _perceive(adaptation: TestTimeAdaptation, group: list[Batch]) -> list[ClassifiedBatch | None]:
    def classify(batch: Batch) -> ClassifiedBatch | None:
        return adaptation.model.classify(_shown(batch))

    return [without_failing(classify, batch) for batch in group]


def _shown(batch: Batch) -> Batch:
    return [{key: item[key] for key in SHOWN if key in item} for item in batch]


def adapt_and_evaluate(
    cfg: CfgNode,
    adaptation: TestTimeAdaptation,
    loader: Loader,
    evaluator: Any,
    schedule: Schedule | None = None,
) -> dict[str, Any]:
    """Evaluates while adapting, as `ADAPTATION` says.

    Args:
        cfg: The configuration.
        adaptation: Holds the model, which is adapted in place.
        loader: A test loader.
        evaluator: A Detectron2 evaluator; it alone sees the truth.
        schedule: See `adapted_predictions`.

    Returns:
        What the evaluator returns.

    Raises:
        ValueError: There is more than one process.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ValueError("adaptation runs in one process: use --num-gpus 1")
    evaluator.reset()
    for batch, answers in adapted_predictions(
        adaptation,
        loader,
        mode=cfg.ADAPTATION.MODE,
        images_per_step=cfg.ADAPTATION.IMS_PER_BATCH,
        steps=cfg.ADAPTATION.STEPS,
        schedule=schedule,
    ):
        evaluator.process(batch, answers)
    return evaluator.evaluate()


def adaptation_of(cfg: CfgNode, model: Any) -> TestTimeAdaptation:
    """The adaptation of a model that a configuration describes."""
    return TestTimeAdaptation(model, AdaptationSettings.from_config(cfg))


def safe_target(target: str | Path, base: str | Path) -> Path:
    """The path for adapted weights, if writing there loses nothing.

    Args:
        target: Where to write.
        base: The checkpoint that adaptation starts from.

    Raises:
        ValueError: They are the same file.
    """
    target = Path(target)
    same = os.path.realpath(target) == os.path.realpath(base)
    if same or (target.exists() and Path(base).exists() and os.path.samefile(target, base)):
        raise ValueError(
            f"{target} is the checkpoint to adapt from, which is never overwritten: "
            "give another output folder"
        )
    return target
