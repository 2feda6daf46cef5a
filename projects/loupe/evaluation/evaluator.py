"""The evaluator: takes a model's predictions image by image, and reports once."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from loupe.evaluation.bootstrap import RESAMPLES
from loupe.evaluation.measures import BENCO_SIZE, PROTOCOLS, measure_image
from loupe.evaluation.pooled_histogram import PooledHistogram, PooledShard, merge_shards
from loupe.evaluation.records import RecordTable
from loupe.evaluation.report import text_table
from loupe.evaluation.results import Results, summarise
from loupe.structures import GroundTruth
from loupe.writing import plain_stem, write_json


class EvaluationShard(NamedTuple):
    """What one process has gathered.

    Attributes:
        table: numbers of its images.
        pooled: probabilities of its forged images' pixels.
        unreadable: error by image.
        unlabelled: identifiers of images without a truth.
    """

    table: RecordTable
    pooled: PooledShard
    unreadable: dict[str, str]
    unlabelled: frozenset[str]


class ForgeryEvaluator(DatasetEvaluator):
    """All metrics of docs/metrics.md over one data set, exact for any number of processes.

    Memory: about 120 bytes and the names of each image, and about 30 MB for the pooled scores.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | Path | None = None,
        protocols: tuple[str, ...] = PROTOCOLS,
        benco_size: int | None = BENCO_SIZE,
        resamples: int = RESAMPLES,
        distributed: bool = True,
    ) -> None:
        """Starts empty.

        Args:
            dataset_name: for the log and the file's name.
            output_dir: where `inference/<dataset_name>.json` with the intervals is written; None
                writes nothing.
            protocols: peers' protocols to compute as well; () is faster.
            benco_size: network size for `benco/*`; None for the image's own size.
            resamples: bootstrap resamples; 0 for no intervals.
            distributed: gather over the processes of the default group.

        Raises:
            ValueError: a protocol is not known.
        """
        unknown = set(protocols) - set(PROTOCOLS)
        if unknown:
            raise ValueError(f"unknown protocols {sorted(unknown)}; known are {list(PROTOCOLS)}")
        self.dataset_name = dataset_name
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.protocols = tuple(protocols)
        self.benco_size = benco_size
        self.resamples = resamples
        self.distributed = distributed
        self.results: Results | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self._table = RecordTable()
        self._pooled = PooledHistogram()
        self._unreadable: dict[str, str] = {}
        self._unlabelled: set[str] = set()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Measures a batch.

        Args:
            inputs: items with "image_id", "file_name" and "ground_truth" (a GroundTruth).
            outputs: for each {"forgery_score", "forgery_map"} (the map may be None) and perhaps
                "class_probabilities", or {"error"}.

        Raises:
            ValueError: a map or probability cannot be what it should be; names the image.
        """
        for item, output in zip(inputs, outputs, strict=True):
            image_id, name = str(item["image_id"]), str(item.get("file_name", item["image_id"]))
            if "error" in output:
                self._unreadable[name] = str(output["error"])
                continue
            truth = item.get("ground_truth")
            if truth is None:
                self._unlabelled.add(image_id)
                continue
            self.add(
                image_id,
                name,
                truth,
                output["forgery_score"],
                output.get("forgery_map"),
                output.get("class_probabilities"),
            )

    def add(
        self,
        image_id: str,
        name: str,
        truth: GroundTruth,
        probability: float | None,
        forgery_map: Any,
        class_probabilities: Any = None,
    ) -> None:
        """Measures one image; one that was added before is left out.

        Args:
            image_id: unique in the data set.
            name: for errors.
            truth: label and mask.
            probability: that the image is forged; None or NaN where there is none.
            forgery_map: (H, W) tensor or array at the image's own size, or None.
            class_probabilities: (K,) tensor or array of the model's classes, or None.
        """
        if image_id in self._table:
            return
        measures, levels = measure_image(
            name,
            truth,
            math.nan if probability is None else float(probability),
            None if forgery_map is None else np.asarray(forgery_map),
            protocols=self.protocols,
            benco_size=self.benco_size,
            class_probabilities=(
                None if class_probabilities is None else np.asarray(class_probabilities)
            ),
        )
        self._table.append(image_id, measures, truth.technique, truth.source)
        if levels is not None:
            self._pooled.add(image_id, levels)

    def add_unreadable(self, name: str, error: str) -> None:
        """Counts an image that has no prediction."""
        self._unreadable[name] = error

    def shard(self) -> EvaluationShard:
        """What this process has gathered, to be merged with the others'."""
        return EvaluationShard(
            self._table, self._pooled.shard(), self._unreadable, frozenset(self._unlabelled)
        )

    def summarise(self, shards: list[EvaluationShard]) -> Results:
        """All metrics from the shards of all processes, each image counted once."""
        table = RecordTable()
        unreadable: dict[str, str] = {}
        for shard in shards:
            table.extend(shard.table)
            unreadable |= shard.unreadable
        histogram, repeated = merge_shards([shard.pooled for shard in shards])
        return summarise(
            table,
            histogram,
            repeated=repeated,
            unreadable=unreadable,
            unlabelled=len(frozenset().union(*(shard.unlabelled for shard in shards))),
            protocols=self.protocols,
            resamples=self.resamples,
        )

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Gathers, computes, logs, and writes the intervals.

        Returns:
            Groups of plain floats, `results["image"]["AUC"]`; NaN where not defined. Empty in all
            processes but the main one. The intervals are in `self.results`.
        """
        shards = [self.shard()]
        if self.distributed:
            comm.synchronize()
            shards = comm.gather(shards[0])
            if not comm.is_main_process():
                return OrderedDict()
        self.results = self.summarise(shards)
        logger = logging.getLogger(__name__)
        logger.info("Evaluation of %s\n%s", self.dataset_name, text_table(self.results))
        if self.output_dir is not None:
            stem = plain_stem(self.dataset_name)
            content = {"dataset": self.dataset_name} | self.results.as_json()
            write_json(self.output_dir / "inference" / f"{stem}.json", content)
        return OrderedDict(self.results.flat_groups())
