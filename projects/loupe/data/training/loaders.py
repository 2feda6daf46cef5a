"""Loaders that feed training and evaluation, with every version of Detectron2.

What is drawn for an image in training (its augmentation here, its points in the loss) depends on
SEED and on its position in the stream of draws alone: not on the number of processes and workers,
and not on when training was interrupted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from loupe.child_processes import serve_parent
from loupe.data.images.errors import UnreadableImageError
from loupe.data.sources.catalog import load_index
from loupe.data.sources.entries import DatasetError
from loupe.data.sources.index import UNLABELLED, DatasetIndex, labels_of
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper, error_item
from loupe.data.training.samplers import Draw, GroupedBatches, build_sampler, own_part
from loupe.data.training.steady import SteadyDataset, SteadyLoader

# So many unreadable images in a row mean that the data set is at fault, not a file.
MAX_CONSECUTIVE_FAILURES = 100
_RESIZED = (
    "Masks of another size than their image are resized to it (INPUT.MASK_SIZE_MISMATCH is resize; "
    "loupe doctor names them all)"
)

_logger = logging.getLogger(__name__)

Item = dict[str, Any]


class Entries(Protocol):
    """Dataset dicts by their place in a list."""

    def __len__(self) -> int:
        """Number of images listed."""

    def __getitem__(self, index: int, /) -> Item:
        """The dataset dict at a place."""


class TrainingDataset(SteadyDataset):
    """Mapped images by draw; an unreadable one is replaced by another and named in the item."""

    def __init__(self, entries: Entries, mapper: Callable[[Item], Item], seed: int) -> None:
        """Takes dataset dicts, what maps them, and the seed of the augmentations."""
        self.entries = entries
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        """Number of images listed."""
        return len(self.entries)

    def __getitem__(self, draw: Draw) -> Item:
        """The item of a draw.

        Raises:
            DatasetError: too many images in a row cannot be read.
        """
        return self._item(draw, [])

    def without(self, draw: Draw, reason: str) -> Item:
        """The item of a draw whose image cannot be read for that reason."""
        file_name = self.entries[draw.image]["file_name"]
        return self._item(draw, [(file_name, f"{file_name}: {reason}")])

    def _item(self, draw: Draw, skipped: list[tuple[str, str]]) -> Item:
        seed = model_seed(self.seed, draw.position)
        with numpy_seed(self.seed, draw.position):
            while len(skipped) < MAX_CONSECUTIVE_FAILURES:
                index = int(np.random.randint(len(self))) if skipped else draw.image
                try:
                    item = self.mapper(self.entries[index]) | {"seed": seed}
                except UnreadableImageError as error:
                    skipped.append((error.file_name, str(error)))
                    continue
                return item | {"skipped": skipped} if skipped else item
        raise DatasetError(
            f"{MAX_CONSECUTIVE_FAILURES} training images in a row cannot be read (loupe doctor "
            f"names all that cannot); the last: {skipped[-1][1]}"
        )


class EvaluationDataset(SteadyDataset):
    """Mapped images in order."""

    def __init__(self, entries: Entries, mapper: Callable[[Item], Item]) -> None:
        """Takes dataset dicts and what maps them."""
        self.entries = entries
        self.mapper = mapper

    def __len__(self) -> int:
        """Number of images listed."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Item:
        """The item of one image; whatever a decoder raises is its error."""
        try:
            return self.mapper(self.entries[index])
        except (MemoryError, RuntimeError, OSError, cv2.error) as error:
            return self.without(index, f"cannot be read ({type(error).__name__}: {error})")

    def without(self, index: int, reason: str) -> Item:
        """The item of an image that cannot be read for that reason."""
        entry = self.entries[index]
        return error_item(entry, f"{entry['file_name']}: {reason}")


class TrainLoader:
    """Endless batches (lists of items); counts the unreadable images and logs each once.

    Attributes:
        dataset: `len()` of it is the number of images listed.
        batch_size: images per batch on this process.
        skipped: how often each unreadable file was drawn on this process.
        resized_masks: how many masks drawn on this process had another size than their image.
    """

    def __init__(self, loader: DataLoader) -> None:
        """Wraps a loader whose dataset is a `TrainingDataset`."""
        self.dataset = loader.dataset
        self.batch_size = loader.batch_size
        self.skipped: Counter[str] = Counter()
        self._loader = loader
        self.resized_masks = 0
        self._warned: set[tuple[str, str]] = set()

    def __iter__(self) -> Iterator[list[Item]]:
        """Starts the workers and yields batches."""
        for batch in self._loader:
            for item in batch:
                self._report(item.pop("skipped", ()))
                self._warn(item["file_name"], item.pop("warnings", ()))
                resized = item.pop("resized_mask", "")
                if resized and not self.resized_masks:
                    _logger.warning("%s: %s; others are not named", _RESIZED, resized)
                self.resized_masks += bool(resized)
            yield batch

    def _warn(self, file_name: str, warnings: tuple[str, ...]) -> None:
        for warning in warnings:
            if (file_name, warning) not in self._warned:
                self._warned.add((file_name, warning))
                _logger.warning("%s: %s", file_name, warning)

    def _report(self, skipped: list[tuple[str, str]]) -> None:
        for file_name, message in skipped:
            self.skipped[file_name] += 1
            if self.skipped[file_name] == 1:
                _logger.warning("Skipped in training (%d so far): %s", len(self.skipped), message)


class EvaluationLoader(SteadyLoader):
    """Batches of a test set; a warning at their end counts the masks that were resized."""

    def __iter__(self) -> Any:  # As the `SteadyLoader`'s.
        """Starts the workers and yields batches."""
        count, first = 0, ""
        try:
            for batch in super().__iter__():
                for item in batch:
                    if resized := item.pop("resized_mask", ""):
                        count, first = count + 1, first or resized
                yield batch
        finally:
            if count:
                _logger.warning("%s: %d, the first: %s", _RESIZED, count, first)


def build_train_loader(
    cfg: CfgNode,
    start_batch: int = 0,
    *,
    mapper: Callable[[Item], Item] | None = None,
    load: Callable[[str], DatasetIndex | list[Item]] = load_index,
) -> TrainLoader:
    """Endless batches of IMS_PER_BATCH / processes items from DATASETS.TRAIN.

    Args:
        cfg: the config.
        start_batch: number of batches that a resumed run has consumed; the stream goes on behind
            them exactly as if it had not been interrupted.
        mapper: from dataset dicts to items; by default those of a detector.
        load: from a name to dataset dicts.

    Raises:
        ValueError: the batch cannot be shared out, or an image has no label.
    """
    processes = comm.get_world_size()
    batch_size = cfg.SOLVER.IMS_PER_BATCH // processes
    if batch_size * processes != cfg.SOLVER.IMS_PER_BATCH or batch_size < 1:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; "
            f"it must be a multiple of the {processes} processes"
        )
    parts = [load(name) for name in cfg.DATASETS.TRAIN]
    labels = _labels(parts)
    _logger.info(
        "Training images: %d, of which %d forged", len(labels), int(np.count_nonzero(labels))
    )
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    if cfg.DATALOADER.GROUP_SIZES:
        groups = GroupedBatches(
            [len(part) for part in parts],
            cfg.DATALOADER.GROUP_SIZES,
            cfg.DATALOADER.GROUP_SHARES,
            seed,
        )
        groups.skip(start_batch)
        batches: dict[str, Any] = {"batch_sampler": groups}
    else:
        sampler = build_sampler(cfg.DATALOADER.SAMPLER_TRAIN, labels, seed)
        sampler.skip(start_batch * batch_size)
        batches = {"batch_size": batch_size, "sampler": sampler, "drop_last": True}
    mapper = mapper or ForgeryDatasetMapper(cfg, is_train=True)
    dataset = TrainingDataset(_joined([_shared(part) for part in parts]), mapper, seed)
    return TrainLoader(
        SteadyLoader(
            dataset,
            **batches,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=_as_list,
            worker_init_fn=start_worker,
        )
    )


def build_test_loader(
    cfg: CfgNode,
    name: str,
    *,
    mapper: Callable[[Item], Item] | None = None,
    load: Callable[[str], DatasetIndex | list[Item]] = load_index,
) -> EvaluationLoader:
    """Batches of TEST.IMS_PER_BATCH items; each process has its own part of the set, in order.

    If the model adapts, each process has its own part of the images of each adaptation step.
    """
    entries = load(name)
    mapper = mapper or ForgeryDatasetMapper(cfg, is_train=False)
    dataset = EvaluationDataset(_shared(entries), mapper)
    adapts = cfg.ADAPTATION.MODE != "none"
    images_per_step = cfg.ADAPTATION.IMS_PER_BATCH if adapts else len(entries)
    return EvaluationLoader(
        dataset,
        batch_size=cfg.TEST.IMS_PER_BATCH,
        sampler=own_part(len(entries), max(images_per_step, 1)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_as_list,
        worker_init_fn=start_worker,
    )


@contextmanager
def numpy_seed(seed: int, position: int) -> Iterator[None]:
    """Numpy's global generator seeded for one image; as it was before, afterwards."""
    state = np.random.get_state()
    np.random.seed(np.random.SeedSequence((seed, position)).generate_state(4))
    try:
        yield
    finally:
        np.random.set_state(state)


def model_seed(seed: int, position: int) -> int:
    """Seed of what the model draws for one image, apart from the stream of its augmentation."""
    return int(np.random.SeedSequence((seed, position, 1)).generate_state(1, np.uint64)[0])


def _joined(parts: Sequence[Entries]) -> ConcatDataset[Item]:
    # PyTorch only reads their lengths and items: it does not ask for a `Dataset`.
    return ConcatDataset(cast("Sequence[Dataset[Item]]", parts))


def _shared(entries: DatasetIndex | list[Item]) -> Entries:
    """Entries in a form that forked workers do not copy."""
    if isinstance(entries, DatasetIndex):
        return entries
    return DatasetFromList(entries, copy=False)


def _labels(parts: list[DatasetIndex | list[Item]]) -> np.ndarray:
    """(N,) uint8 labels of all parts in turn."""
    labels = np.concatenate([np.zeros(0, np.int8), *map(labels_of, parts)])
    unlabelled = np.flatnonzero(labels == UNLABELLED)
    if len(unlabelled):
        first = _joined(parts)[int(unlabelled[0])]["file_name"]
        raise ValueError(
            f"{len(unlabelled)} of {len(labels)} images of DATASETS.TRAIN have no label "
            f"(first {first}); train on a set with labels"
        )
    return labels.astype(np.uint8)


def _as_list(items: list[Item]) -> list[Item]:
    return items


def start_worker(worker: int) -> None:
    """What each worker of a loader does first."""
    serve_parent()
    # Each worker is a process of its own: threads inside it would fight for the same cores.
    cv2.setNumThreads(0)
