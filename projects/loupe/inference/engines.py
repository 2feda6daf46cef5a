"""Other ways to run the same predictor: graphs of onnxruntime, a folder shared by processes."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed

from loupe.inference.folders import TABLE
from loupe.inference.predictor import LoupePredictor
from loupe.model_zoo import digest_of
from loupe.modeling.postprocessing import paste_map, turn_map
from loupe.writing import read_cell, write_csv

Item = dict[str, Any]
_INPUT = "images"


class GraphError(ValueError):
    """A graph that does not belong to the model: names it, the fault and the remedy."""


def use_graph(predictor: LoupePredictor, file: Path) -> None:
    """Lets a predictor run a graph of `loupe export` wherever an image fits it.

    Raises:
        GraphError: There is no such file, it is no graph, or it was made of other weights.
    """
    import onnxruntime

    if not file.is_file():
        raise GraphError(f"{file}: there is no such file; give --graph one of loupe export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no public type.
        reason = " ".join(str(error).split())
        raise GraphError(
            f"{file}: is no graph that onnxruntime can run ({reason}); give --graph one of loupe "
            "export"
        ) from error
    metadata = session.get_modelmeta().custom_metadata_map
    digest = digest_of(predictor.cfg.MODEL.WEIGHTS)
    if metadata.get("weights") != digest:
        raise GraphError(
            f"{file}: was made of weights {metadata.get('weights', 'unknown')[:12]}, not of "
            f"{digest[:12]}; run loupe export with this --weights"
        )
    predictor.model = GraphModel(predictor.model, session, int(metadata["size"]))


class GraphModel:
    """A model that runs a graph on images of its size without padding, and itself on all others.

    Windows of large images fit a graph of TEST.TILES.SIDE, and so does every image where
    INPUT.RESIZE is squash.

    Args:
        model: In evaluation mode.
        session: Of onnxruntime.
        side: Of the graph's images, in pixels.

    Attributes:
        counts: Images that the graph and the model have predicted.
    """

    def __init__(self, model: Any, session: Any, side: int) -> None:
        self._model, self._session, self._side = model, session, side
        # The odds are shifted after a map was resized; the graph has shifted them before.
        self._any_size = model.mask_from == 0.5
        self.counts = {"graph": 0, "model": 0}

    def __call__(self, items: list[Item]) -> list[Item]:
        """Predicts items of the dataset mapper, as the model does."""
        fits = [self._fits(item) for item in items]
        others = iter(self._model([i for i, fit in zip(items, fits, strict=True) if not fit]))
        self.counts["model"] += fits.count(False)
        self.counts["graph"] += fits.count(True)
        return [
            self._run(item) if fit else next(others) for item, fit in zip(items, fits, strict=True)
        ]

    def _fits(self, item: Item) -> bool:
        whole = (self._side, self._side)
        if "image" not in item or tuple(item["image"].shape[1:]) != whole:
            return False
        own_size = (item["height"], item["width"]) == whole
        return tuple(item["valid_size"]) == whole and (own_size or self._any_size)

    def _run(self, item: Item) -> Item:
        pixels = item["image"][None].float().numpy()
        probability, forged, patches = self._session.run(None, {_INPUT: pixels})
        size = (item["height"], item["width"])
        window = item.get("window", (0, 0, item["width"], item["height"]))
        forgery_map = paste_map(torch.from_numpy(forged[0]), item["valid_size"], window, size)
        orientation = item.get("orientation", 1)
        return {
            "forgery_score": float(probability[0]),
            "forgery_map": turn_map(forgery_map, orientation),
            "patch_map": turn_map(torch.from_numpy(patches[0]), orientation),
        }


class Share(NamedTuple):
    """The part of a folder that one process of `torchrun` predicts.

    Attributes:
        rank: Of the process, from 0.
        total: Of processes.
    """

    rank: int
    total: int

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Share | None:
        """What torchrun says of this process; None where it runs alone."""
        count = int(environment.get("WORLD_SIZE", "1"))
        return cls(int(environment["RANK"]), count) if count > 1 else None

    def names(self, names: Mapping[str, str]) -> dict[str, str]:
        """Every `total`-th file, from `rank` on."""
        return dict(list(names.items())[self.rank :: self.total])

    def folder(self, output: Path, rank: int | None = None) -> Path:
        """Where a process writes."""
        number = self.rank if rank is None else rank
        return output / f"part-{number:04d}-of-{self.total:04d}"

    @contextmanager
    def together(self, output: Path, names: Mapping[str, str]) -> Iterator[None]:
        """All processes end the block together; then the first writes the table of all.

        Args:
            output: Folder of all parts.
            names: All files, in the order of the table.
        """
        # One process may have large images; torchrun itself ends the others when one dies.
        distributed.init_process_group("gloo", timeout=timedelta(days=30))
        try:
            yield
            distributed.barrier()
            if self.rank == 0:
                join_tables(
                    [self.folder(output, rank) for rank in range(self.total)], output, names
                )
        finally:
            distributed.destroy_process_group()


def join_tables(parts: Sequence[Path], output: Path, names: Mapping[str, str]) -> None:
    """Writes one table of several, whose rows come in the order of `names`."""
    rows: dict[str, list[str]] = {}
    header: list[str] = []
    for part in parts:
        with (part / TABLE).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *lines = csv.reader(file)
        rows |= {read_cell(line[0]): [read_cell(cell) for cell in line] for line in lines}
    write_csv(output / TABLE, header, [rows[file] for file in names])
