"""A trained Loupe that predicts images outside any data set: arrays, files, lists of files.

H W pixels of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import loupe.modeling  # noqa: F401  Registers the meta-architecture with Detectron2.
from loupe.checkpoint import load_into, load_weights
from loupe.data.images.decoding import read_picture
from loupe.data.images.orientation import UPRIGHT
from loupe.data.sources.entries import make_dataset_dict
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper
from loupe.data.training.loaders import EvaluationDataset, start_worker
from loupe.data.training.steady import SteadyLoader
from loupe.modeling.guarded import guarded
from loupe.structures import Prediction

# File and prediction, or file and the reason why there is none.
Named = tuple[str, Prediction | str]


class LoupePredictor:
    """A trained Loupe, ready to predict. Many threads may share one.

    Example:
        >>> from loupe import load_config
        >>> predictor = LoupePredictor(load_config("configs/loupe_tiny.yaml"))  # doctest: +SKIP
        >>> score, forgery_map, _ = predictor("photograph.jpg")  # doctest: +SKIP

    Args:
        cfg: Configuration of the model.
        weights: Its checkpoint; by default `MODEL.WEIGHTS`.

    Raises:
        ValueError: There are no weights, or they do not fit.
    """

    def __init__(self, cfg: CfgNode, weights: str | Path | None = None) -> None:
        weights = weights or cfg.MODEL.WEIGHTS
        if not weights:
            raise ValueError("no weights: give a checkpoint, or set MODEL.WEIGHTS")
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = str(weights)
        # A reduced image has other pixels than the array that it could be given as.
        cfg.INPUT.REDUCED_DECODING = False
        cfg.freeze()
        self.cfg = cfg
        self.model = build_model(cfg).eval()
        load_into(self.model, load_weights(weights), source=str(weights))
        self.mapper = ForgeryDatasetMapper(cfg, is_train=False)

    @torch.no_grad()
    def __call__(self, image: np.ndarray | str | Path) -> Prediction:
        """Predicts one image.

        Args:
            image: (H, W, 3) uint8 RGB, or a file.

        Raises:
            UnreadableImageError: The file is no readable image.
            ValueError: The array is of another kind.
        """
        pixels, orientation = image, UPRIGHT
        if not isinstance(image, np.ndarray):
            pixels, _, orientation, _ = read_picture(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"image is {pixels.dtype} {pixels.shape}; give uint8 (H, W, 3) RGB")
        (output,) = self.model([self.mapper.map_image(pixels, orientation=orientation)])
        return _prediction(output)

    @torch.no_grad()
    def predict_files(self, files: Sequence[str | Path], workers: int = 0) -> Iterator[Named]:
        """Predicts many files, in order, in batches of TEST.IMS_PER_BATCH.

        Args:
            files: Image files.
            workers: Processes that decode; 0 = this one.

        Yields:
            The file and its prediction, or the reason why it has none. One bad file ends nothing,
            and neither does the end of a worker.
        """
        model = guarded(self.model)
        for batch in self.loader(files, workers):
            yield from named_predictions(batch, model(batch))

    def loader(self, files: Sequence[str | Path], workers: int = 0) -> SteadyLoader:
        """Batches of TEST.IMS_PER_BATCH unlabelled items, in order; see `predict_files`.

        An unreadable image is an item with its error.
        """
        entries = [make_dataset_dict(file, str(file), label=None) for file in files]
        return SteadyLoader(
            EvaluationDataset(entries, GuardedMapper(self.mapper)),
            batch_size=self.cfg.TEST.IMS_PER_BATCH,
            num_workers=workers,
            collate_fn=list,
            worker_init_fn=start_worker,
        )


class GuardedMapper:
    """A mapper whose failure on one file is that file's "error", whatever was raised."""

    def __init__(self, mapper: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Takes the mapper."""
        self.mapper = mapper

    def __call__(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The item, or one with its error."""
        try:
            return self.mapper(entry)
        except Exception as error:  # Decoders raise whatever their libraries do.
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            identity = {"file_name": entry["file_name"], "image_id": entry["image_id"]}
            return identity | {"error": f"{entry['file_name']}: cannot be read ({reason})"}


def named_predictions(
    batch: list[dict[str, Any]], outputs: list[dict[str, Any]]
) -> Iterator[Named]:
    """Each item's file and what the model gave for it, or the reason why it gave nothing."""
    for item, output in zip(batch, outputs, strict=True):
        yield item["file_name"], output.get("error") or _prediction(output)


def _prediction(output: dict[str, Any]) -> Prediction:
    patch_map = output["patch_map"]
    return Prediction(
        output["forgery_score"],
        output["forgery_map"].numpy(),
        None if patch_map is None else patch_map.numpy(),
    )
