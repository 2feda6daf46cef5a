"""Loaders of an explainer: data sets with texts, with exact truths, or features made before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from loupe.data.explanations.features import SCHEME, FeatureSet, feature_loader
from loupe.data.explanations.mapper import ExplanationMapper
from loupe.data.explanations.readers import is_explanations, read_explanations
from loupe.data.sources.catalog import load_index
from loupe.data.training.loaders import build_test_loader, build_train_loader

Item = dict[str, Any]


def load_explanations(name: str) -> Any:
    """Dataset dicts of a file of explanations, or of any data set that a detector takes."""
    return read_explanations(name) if is_explanations(name) else load_index(name)


def explanation_loader(cfg: CfgNode, start_batch: int = 0) -> Any:
    """Endless batches for training, see `build_train_loader`; also of `features://FOLDER`."""
    if cfg.DATASETS.TRAIN and cfg.DATASETS.TRAIN[0].startswith(SCHEME):
        return feature_loader(cfg, start_batch)
    mapper = ExplanationMapper(cfg, is_train=True)
    return build_train_loader(cfg, start_batch, mapper=mapper, load=load_explanations)


def explanation_test_loader(cfg: CfgNode, name: str) -> Any:
    """Batches for evaluation. `oracle+NAME` shows the true masks, and its results say so."""
    if name.startswith(SCHEME):
        return FeatureBatches(FeatureSet(name.removeprefix(SCHEME)), cfg.TEST.IMS_PER_BATCH)
    oracle = name.startswith("oracle+")
    mapper = ExplanationMapper(cfg, is_train=False, oracle=oracle)
    return build_test_loader(
        cfg, name.removeprefix("oracle+"), mapper=mapper, load=load_explanations
    )


class FeatureBatches:
    """Examples in order; each process has its own part."""

    def __init__(self, dataset: FeatureSet, batch_size: int) -> None:
        """Takes the examples and the size of a batch."""
        self.dataset, self.batch_size = dataset, batch_size
        self._own = range(comm.get_rank(), len(dataset), comm.get_world_size())

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._own) // self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        """Batches of items."""
        for start in range(0, len(self._own), self.batch_size):
            yield [self.dataset[index] for index in self._own[start : start + self.batch_size]]
