"""A whole run: offline, online or episodic."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from loupe.adaptation.settings import AdaptationSettings
from loupe.adaptation.steps import TestTimeAdaptation
from loupe.modeling.guarded import without_failing
from loupe.modeling.loupe import ClassifiedBatch

logger = logging.getLogger(__name__)

MODES = ("none", "offline", "online", "episodic")
# The keys of an item that the model is shown: no label and no mask, whatever the item holds.
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
    schedule: Schedule | None = None,
) -> Iterator[tuple[Batch, Batch]]:
    """Adapts and predicts; in the end the model has the weights that predicted last.

    Several processes take each step together: each has its own part of the images of that step.

    Args:
        adaptation: Holds the model.
        loader: Batches of test items; read twice in offline mode.
        mode: "offline", "online" or "episodic".
        images_per_step: Images in one optimiser step, over all processes.
        schedule: Multiplier of the learning rate as a function of progress in [0, 1]; used in
            offline mode, where the number of steps is known beforehand.

    Yields:
        Items and their predictions, in the loader's order, in batches of at most its size. An item
        that a step failed on is predicted, and its "warnings" say so.

    Raises:
        ValueError: The mode is unknown, or the images of a step cannot be shared out evenly.
    """
    processes = comm.get_world_size()
    if mode not in MODES[1:]:
        raise ValueError(f"ADAPTATION.MODE is {mode!r}; use one of {MODES}")
    if images_per_step < 1 or images_per_step % processes:
        raise ValueError(
            f"ADAPTATION.IMS_PER_BATCH is {images_per_step}; use a positive multiple of the number "
            f"of processes, {processes}"
        )
    adaptation.model.eval()
    adaptation.summary.mode = mode
    size = images_per_step // processes
    if mode == "offline":
        yield from _offline(adaptation, loader, size, schedule)
    else:
        yield from _online(adaptation, loader, size, reset=mode == "episodic")
    adaptation.summary.add_up_processes()
    logger.info("adaptation: %s", adaptation.summary)


def _offline(
    adaptation: TestTimeAdaptation, loader: Loader, size: int, schedule: Schedule | None
) -> Iterator[tuple[Batch, Batch]]:
    steps = count_steps(loader, size)
    if schedule is not None and steps:
        adaptation.follow(schedule, steps)
    for group in _grouped(loader, size):
        _adapt(adaptation, [_classify(adaptation, batch) for batch in group])
    for batch in loader:
        yield batch, _predict(adaptation, batch, _classify(adaptation, batch))


def _online(
    adaptation: TestTimeAdaptation, loader: Loader, size: int, *, reset: bool
) -> Iterator[tuple[Batch, Batch]]:
    for group in _grouped(loader, size):
        classified = [_classify(adaptation, batch) for batch in group]
        _adapt(adaptation, classified)
        try:
            for batch, known in zip(group, classified, strict=True):
                yield batch, _predict(adaptation, batch, known)
        finally:
            if reset:
                adaptation.reset()


def _grouped(loader: Loader, size: int) -> Iterator[list[Batch]]:
    """The images of each step: `size` of them, in parts of the loader's batches.

    Every process gives as many groups as the one with most images; the last may be empty.
    """
    remaining = count_steps(loader, size)
    group: list[Batch] = []
    for batch in loader:
        while batch:
            room = size - sum(map(len, group))
            group.append(batch[:room])
            batch = batch[room:]
            if sum(map(len, group)) == size:
                yield group
                group, remaining = [], remaining and remaining - 1
    if group:
        yield group
        remaining = remaining and remaining - 1
    for _ in range(remaining or 0):
        yield []


def count_steps(loader: Loader, size: int) -> int | None:
    """Number of steps of `size` images in each process; None where the loader does not tell."""
    if isinstance(loader, list):
        images = sum(map(len, loader))
    elif hasattr(loader, "sampler"):
        images = len(loader.sampler)
    else:
        return None
    return max(comm.all_gather(-(-images // size)))


def _adapt(adaptation: TestTimeAdaptation, classified: list[ClassifiedBatch | None]) -> None:
    readable = [batch for batch in classified if batch is not None]
    adaptation.summary.images += sum(len(batch.image_ids) for batch in readable)
    logger.info("adaptation loss %.4f", adaptation.step(readable))


# `no_grad` inside a generator would leak to its caller between two yields: hence two functions.
@torch.no_grad()
def _classify(adaptation: TestTimeAdaptation, batch: Batch) -> ClassifiedBatch | None:
    return without_failing(lambda items: adaptation.model.classify(_shown(items)), batch)


@torch.no_grad()
def _predict(
    adaptation: TestTimeAdaptation, batch: Batch, classified: ClassifiedBatch | None
) -> Batch:
    shown = _shown(batch)
    _warn(adaptation, batch)
    try:
        with _noting_disagreement(adaptation, classified):
            return adaptation.model.predict(shown, classified)
    except Exception as error:  # Out of memory, a shape that a layer refuses, ...
        logger.warning("the model failed on a batch", exc_info=error)
        return adaptation.predict(shown)


def _warn(adaptation: TestTimeAdaptation, batch: Batch) -> None:
    """Says of each item that it was left out of the adaptation, if it was."""
    for item in batch:
        reason = adaptation.left_out.get(str(item.get("image_id", "")))
        if reason is not None:
            item["warnings"] = (*item.get("warnings", ()), reason)


@contextmanager
def _noting_disagreement(
    adaptation: TestTimeAdaptation, classified: ClassifiedBatch | None
) -> Iterator[None]:
    """Measures the masks of the prediction as they are made: a second pass would cost its time."""
    if classified is None:  # No image is readable: the segmenter does not run.
        yield
        return
    hook = adaptation.segmenter.register_forward_hook(
        lambda module, inputs, outputs: adaptation.note_prediction(outputs[-1], classified)
    )
    try:
        yield
    finally:
        hook.remove()


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
    """
    evaluator.reset()
    for batch, predictions in adapted_predictions(
        adaptation,
        loader,
        mode=cfg.ADAPTATION.MODE,
        images_per_step=cfg.ADAPTATION.IMS_PER_BATCH,
        schedule=schedule,
    ):
        evaluator.process(batch, predictions)
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
    if same or (target.exists() and Path(base).is_file() and os.path.samefile(target, base)):
        raise ValueError(
            f"{target} is the checkpoint to adapt from, which is never overwritten: "
            "give another output folder"
        )
    return target
