"""A trained Loupe that predicts images outside any data set: arrays, files, lists of files.

H W pixels of an image.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image

import loupe.modeling  # noqa: F401  Registers the meta-architecture with Detectron2.
from loupe.checkpoint import load_into, load_metadata, load_weights
from loupe.data.images.decoding import read_picture
from loupe.data.images.orientation import ORIENTATIONS, UPRIGHT
from loupe.data.sources.entries import make_dataset_dict
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper
from loupe.data.training.loaders import EvaluationDataset, start_worker
from loupe.data.training.steady import SteadyLoader
from loupe.inference.verdict import VerdictRule, rule_of
from loupe.modeling.guarded import guarded
from loupe.structures import Prediction

_ORIENTATION_TAG = 0x0112  # Of EXIF.

# What an image can be taken from.
ImageSource = str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray


class FilePrediction(NamedTuple):
    """What came of one file.

    Attributes:
        file: As it was given.
        prediction: None where there is none.
        error: Why there is none; "" otherwise.
        warnings: What must be said of the file, such as "damaged inside".
    """

    file: str
    prediction: Prediction | None
    error: str = ""
    warnings: tuple[str, ...] = ()


class LoupePredictor:
    """A trained Loupe, ready to predict. Many threads may share one.

    Example:
        >>> from loupe import load_config
        >>> predictor = LoupePredictor(load_config("configs/loupe_tiny.yaml"))  # doctest: +SKIP
        >>> prediction = predictor("photograph.jpg")  # doctest: +SKIP
        >>> prediction.score, prediction.verdict  # doctest: +SKIP

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
        self.rule = rule_of(load_metadata(weights))

    @torch.no_grad()
    def __call__(self, image: ImageSource) -> Prediction:
        """Predicts one image.

        Args:
            image: A path, the bytes of a file, a file opened in binary mode, a PIL image, or an
                (H, W, 3) uint8 RGB array.

        Raises:
            UnreadableImageError: The file is no readable image.
            TypeError, ValueError: It is something else.
        """
        pixels, orientation = pixels_of(image)
        item = self.mapper.map_image(pixels, orientation=orientation)
        (output,) = self.model([item])
        return _prediction(item, output, self.rule)

    @torch.no_grad()
    def predict_files(
        self, files: Sequence[str | Path], workers: int = 0
    ) -> Iterator[FilePrediction]:
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
            yield from named_predictions(batch, model(batch), self.rule)

    def loader(self, files: Sequence[str | Path], workers: int = 0) -> SteadyLoader:
        """Batches of TEST.IMS_PER_BATCH unlabelled items, in order; see `predict_files`.

        An unreadable image is an item with its error.
        """
        entries = [make_dataset_dict(file, str(file), label=None) for file in files]
        return SteadyLoader(
            EvaluationDataset(entries, self.mapper),
            batch_size=self.cfg.TEST.IMS_PER_BATCH,
            num_workers=workers,
            collate_fn=list,
            worker_init_fn=start_worker,
        )


def named_predictions(
    batch: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    rule: VerdictRule | None = None,
) -> Iterator[FilePrediction]:
    """Each item's file and what the model gave for it, or the reason why it gave nothing."""
    for item, output in zip(batch, outputs, strict=True):
        prediction = None if "error" in output else _prediction(item, output, rule)
        yield FilePrediction(
            item["file_name"], prediction, output.get("error", ""), item.get("warnings", ())
        )


def pixels_of(image: ImageSource) -> tuple[np.ndarray, int]:
    """Pixels as they are stored, (H, W, 3) uint8 RGB, and the EXIF orientation.

    Raises:
        UnreadableImageError: It is no readable image.
        TypeError, ValueError: It is nothing that an image could be taken from.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"image is {image.dtype} {image.shape}; give uint8 (H, W, 3) RGB")
        return image, UPRIGHT
    if isinstance(image, Image.Image):
        return _pixels_of_pillow(image)
    if hasattr(image, "read"):
        image = image.read()
    if isinstance(image, bytearray | memoryview):
        image = bytes(image)
    if not isinstance(image, str | Path | bytes):
        raise TypeError(
            f"image is a {type(image).__name__}; give a path, bytes, a file opened in binary mode, "
            "a PIL image or an (H, W, 3) uint8 RGB array"
        )
    picture = read_picture(image)
    return picture.pixels, picture.orientation


def _pixels_of_pillow(image: Image.Image) -> tuple[np.ndarray, int]:
    """Pixels of a PIL image of any mode: converted by the one door that files pass, too."""
    try:
        image.load()
        orientation = image.getexif().get(_ORIENTATION_TAG, UPRIGHT)
    except Exception as error:  # Decoders raise whatever their authors thought of.
        raise ValueError(f"the PIL image cannot be decoded ({error}); give its file") from error
    orientation = orientation if orientation in ORIENTATIONS else UPRIGHT
    if "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGB":
        return np.asarray(image), orientation
    content = io.BytesIO()
    image.copy().save(content, "TIFF")
    return read_picture(content.getvalue(), name="the PIL image").pixels, orientation


def _prediction(
    item: dict[str, Any], output: dict[str, Any], rule: VerdictRule | None
) -> Prediction:
    patch_map = output["patch_map"]
    maps = output["forgery_map"].numpy(), None if patch_map is None else patch_map.numpy()
    if rule is None:
        return Prediction(output["forgery_score"], *maps)
    height, width = item["valid_size"]
    pixels = item["image"][:, :height, :width].permute(1, 2, 0).cpu().numpy()
    smaller_side = min(item["height"], item["width"])
    probability, word, reasons = rule.judge(output["forgery_score"], pixels, smaller_side)
    return Prediction(probability, *maps, word, reasons)
