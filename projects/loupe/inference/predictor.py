"""Prediction on images outside any data set: an array, a file, a folder; and its files.

H W pixels of an image.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch.utils.data import DataLoader

import loupe.modeling  # noqa: F401  Registers the meta-architecture with Detectron2.
from loupe.checkpoint import load_into, load_weights
from loupe.data.images.decoding import read_image, read_orientation
from loupe.data.sources.pairing import list_images, make_dataset_dict
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper
from loupe.data.training.loaders import EvaluationDataset
from loupe.structures import Prediction
from loupe.visualization import overlay

# A pixel is called forged above this probability; of 8-bit maps, above 127.
THRESHOLD = 0.5


class LoupePredictor:
    """A trained Loupe, ready to answer.

    Example:
        >>> predictor = LoupePredictor(load_config("configs/loupe_tiny.yaml"))
        >>> score, forgery_map, _ = predictor("photograph.jpg")

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
        """
        orientation = 1
        if isinstance(image, np.ndarray):
            pixels = image
        else:
            pixels, orientation = read_image(image), read_orientation(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"image is {pixels.dtype} {pixels.shape}; give uint8 (H, W, 3) RGB")
        (answer,) = self.model([self.mapper.map_image(pixels, orientation=orientation)])
        return _prediction(answer)

    @torch.no_grad()
    def predict_files(
        self, files: Sequence[str | Path], workers: int = 0
    ) -> Iterator[tuple[str, Prediction | str]]:
        """Predicts many files, in order, in batches of TEST.IMS_PER_BATCH.

        Args:
            files: Image files.
            workers: Processes that decode; 0 = this one.

        Yields:
            The file and its prediction, or the reason why it has none. One bad file ends nothing.
        """
        for batch in self.loader(files, workers):
            yield from named_predictions(batch, self.model(batch))

    def loader(self, files: Sequence[str | Path], workers: int = 0) -> DataLoader:
        """Batches of TEST.IMS_PER_BATCH unlabelled items, in order; see `predict_files`.

        An unreadable image is an item with its error.
        """
        entries = [make_dataset_dict(file, str(file), label=None) for file in files]
        return DataLoader(
            EvaluationDataset(entries, self.mapper),
            batch_size=self.cfg.TEST.IMS_PER_BATCH,
            num_workers=workers,
            collate_fn=list,
        )


def named_predictions(
    batch: list[dict[str, Any]], answers: list[dict[str, Any]]
) -> Iterator[tuple[str, Prediction | str]]:
    """Each item's file and what the model answered, or the reason why it did not."""
    for item, answer in zip(batch, answers, strict=True):
        yield item["file_name"], answer.get("error") or _prediction(answer)


def _prediction(answer: dict[str, Any]) -> Prediction:
    patch_map = answer["patch_map"]
    return Prediction(
        answer["forgery_score"],
        answer["forgery_map"].numpy(),
        None if patch_map is None else patch_map.numpy(),
    )


def find_images(path: str | Path) -> dict[str, str]:
    """Finds what to predict, and under which name to write it.

    Args:
        path: An image, or a folder that is searched with its subfolders.

    Returns:
        File -> output name, relative to the output folders and without ending; subfolders are kept.
        Files of one folder that differ in their ending alone keep it, so no two names are equal.

    Raises:
        DatasetError: There is no such file or folder.
        ValueError: The folder holds no image.
    """
    path = Path(path)
    if path.is_file():
        return {str(path): path.stem}
    relative = list_images(path)
    if not relative:
        raise ValueError(f"{path}: there are no image files in it; give an image or its folder")
    stems = Counter(str(Path(name).with_suffix("")) for name in relative)
    return {
        str(path / name): name if stems[stem] > 1 else stem
        for name in relative
        for stem in [str(Path(name).with_suffix(""))]
    }


def write_predictions(
    predictions: Iterable[tuple[str, Prediction | str]],
    names: dict[str, str],
    output: str | Path,
    *,
    overlays: bool = True,
) -> tuple[int, int]:
    """Writes `predictions.csv`, `maps/`, `masks/` and `overlays/`, image by image.

    Each row of the table is on disk as soon as its image is done, so an interrupted run loses
    nothing of what it has.

    Args:
        predictions: File and prediction, or file and the reason why there is none.
        names: Output name of each file.
        output: Folder to write to.
        overlays: Whether to draw overlays, which reads every image once more.

    Returns:
        Number of images predicted, number of images that could not be.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    done = failed = 0
    with (output / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "probability", "error"])
        for image, answer in predictions:
            if isinstance(answer, str):
                failed += 1
                table.writerow([image, "", answer])
            else:
                done += 1
                _write_pictures(output, image, names[image], answer, overlays)
                table.writerow([image, f"{answer.score:.6f}", ""])
            file.flush()
    return done, failed


def _write_pictures(
    output: Path, image: str, name: str, prediction: Prediction, overlays: bool
) -> None:
    forgery_map = prediction.forgery_map
    pictures = {
        "maps": np.rint(forgery_map * 255).astype(np.uint8),
        "masks": (forgery_map > THRESHOLD).astype(np.uint8) * 255,
    }
    if overlays:
        drawn = overlay(read_image(image), forgery_map, THRESHOLD)
        pictures["overlays"] = cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)
    for folder, picture in pictures.items():
        path = output / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded, data = cv2.imencode(".png", picture)
        assert encoded, path
        path.write_bytes(data.tobytes())
