"""Features of image and masked image, computed once by a frozen tower: training costs text only.

A folder holds `features.npy`, (N, 2, T, C) float16, and `examples.jsonl`, a line for each:
image_id, question, explanation, claims. `features://FOLDER` names it in DATASETS.TRAIN.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from loupe.data.explanations.mapper import as_feature_item
from loupe.data.sources.entries import DatasetError

SCHEME = "features://"
FEATURES, EXAMPLES = "features.npy", "examples.jsonl"
Item = dict[str, Any]


class FeatureSet:
    """Examples of a folder, mapped into memory.

    Args:
        folder: See the module.

    Raises:
        DatasetError: Features and examples are missing or differ in number.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        try:
            self.features = np.load(folder / FEATURES, mmap_mode="r")
            text = (folder / EXAMPLES).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"{folder}: no features ({error}); write them with "
                "python -m research.explanation.features"
            ) from error
        self.lines: list[Item] = [json.loads(line) for line in text.splitlines()]
        if len(self.lines) != len(self.features):
            raise DatasetError(
                f"{folder}: {len(self.features)} features and {len(self.lines)} examples; "
                "write them anew"
            )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.lines)

    def __getitem__(self, index: int) -> Item:
        """The item of an example."""
        features = torch.from_numpy(np.array(self.features[index], dtype=np.float32))
        return as_feature_item(features, self.lines[index])


class FeatureLoader:
    """Endless batches in an order that follows from the seed; each pass has another.

    Args:
        dataset: The examples.
        batch_size: Of this process.
        seed: Of the order.
        start: Batches that a resumed run has consumed.
    """

    def __init__(self, dataset: FeatureSet, batch_size: int, seed: int, start: int = 0) -> None:
        self.dataset, self.batch_size, self.seed, self.start = dataset, batch_size, seed, start
        self._pass, self._order = -1, np.arange(0)

    def __iter__(self) -> Iterator[list[Item]]:
        """Batches; processes take turns."""
        processes, rank = comm.get_world_size(), comm.get_rank()
        position = self.start * self.batch_size * processes + rank
        while True:
            places = range(position, position + self.batch_size * processes, processes)
            yield [self.dataset[self._index(place)] for place in places]
            position += self.batch_size * processes

    def _index(self, position: int) -> int:
        number, place = divmod(position, len(self.dataset))
        if self._pass != number:
            rng = np.random.default_rng((self.seed, number))
            self._pass, self._order = number, rng.permutation(len(self.dataset))
        return int(self._order[place])


def feature_loader(cfg: CfgNode, start_batch: int) -> FeatureLoader:
    """The loader of a configuration whose DATASETS.TRAIN names one set of features.

    Raises:
        DatasetError: It names several.
    """
    names = cfg.DATASETS.TRAIN
    if len(names) != 1:
        raise DatasetError(f"DATASETS.TRAIN names {len(names)} sets; features come from one folder")
    batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    return FeatureLoader(FeatureSet(names[0].removeprefix(SCHEME)), batch_size, seed, start_batch)
