"""A trained Loupe that predicts images outside any data set: arrays, files, lists of files.

H W pixels of an image.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image
from torch.utils.data import Dataset

import loupe.modeling  # noqa: F401  Registers the meta-architecture with Detectron2.
from loupe.checkpoint import load_into, load_metadata, load_weights
from loupe.data.images.decoding import read_picture
from loupe.data.images.orientation import ORIENTATIONS, UPRIGHT
from loupe.data.sources.entries import make_dataset_dict
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper
from loupe.data.training.loaders import EvaluationDataset, start_worker
from loupe.data.training.steady import SteadyLoader
from loupe.inference.pretrained import pretrained, tile_rule_of
from loupe.inference.tiles import (
    Progress,
    TiledMapper,
    TileScores,
    TileSettings,
    lower_map,
    predict_views,
)
from loupe.inference.verdict import AUTHENTIC, VerdictRule, rule_of
from loupe.modeling.guarded import guarded
from loupe.structures import Prediction, class_names

_ORIENTATION_TAG = 0x0112  # Of EXIF.

# What an image can be taken from.
ImageSource = (
    str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | torch.Tensor
)


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


class FileEntries(Dataset):
    """Dataset dicts of files, made when they are asked for.

    A list of a million dicts would be copied into every worker, page by page, as soon as their
    reference counts are touched. The names lie in one array of bytes instead.
    """

    def __init__(self, files: Iterable[str | Path]) -> None:
        """Takes the names of the files."""
        names = [os.fsencode(file) for file in files]
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._names = np.frombuffer(b"".join(names), np.uint8)

    def __len__(self) -> int:
        """Number of files."""
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The dataset dict of one file."""
        start = int(self._ends[index - 1]) if index else 0
        name = os.fsdecode(self._names[start : self._ends[index]].tobytes())
        return make_dataset_dict(name, name, label=None)


class LoupePredictor:
    """A trained Loupe, ready to predict. Many threads may share one.

    Example:
        >>> from loupe import LoupePredictor
        >>> predictor = LoupePredictor.from_pretrained("tiny")
        >>> prediction = predictor(np.zeros((256, 256, 3), np.uint8))
        >>> prediction.verdict, prediction.reasons[0]
        ('undecided', 'no photograph: 100% of its pixels equal their neighbour')

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
        # Images that are predicted once are not kept.
        cfg.MODEL.FEATURE_CACHE.FOLDER = cfg.MODEL.EXPERT.FEATURE_CACHE = ""
        cfg.freeze()
        self.cfg = cfg
        self.model = build_model(cfg).eval()
        load_into(self.model, load_weights(weights), source=str(weights))
        self.mapper = ForgeryDatasetMapper(cfg, is_train=False)
        self._mask_from = cfg.MODEL.SEGMENTER.MASK_FROM
        self.tiles = TileSettings.of(cfg)
        self.tiled_mapper = TiledMapper(cfg, is_train=False)
        self.tiled_mapper.tiles = self.tiles
        self.rule = rule_of(load_metadata(weights))
        if self.rule is not None and self.rule.tiles is None:
            self.rule = self.rule._replace(tiles=tile_rule_of(str(weights)))

    @classmethod
    def from_pretrained(
        cls, name: str | Path = "tiny", options: Sequence[str] = ()
    ) -> LoupePredictor:
        """A predictor by name: "tiny", a folder of a training run, or a file of weights.

        Args:
            name: A name of the model zoo, whose file is checked against its hash; a folder with a
                configuration and weights; or a file of weights beside its configuration.
            options: `KEY VALUE` pairs that change the configuration.

        Raises:
            ValueError: There is no such model; the message lists what there is.

        Example:
            >>> from loupe import LoupePredictor
            >>> predictor = LoupePredictor.from_pretrained("tiny")
            >>> predictor.tiles.side
            512
        """
        return cls(*pretrained(name, options))

    @torch.no_grad()
    def __call__(self, image: ImageSource, progress: Progress | None = None) -> Prediction:
        """Predicts one image.

        Args:
            image: A path, the bytes of a file, a file opened in binary mode, a PIL image, an
                (H, W, 3) uint8 RGB array or a (3, H, W) uint8 RGB tensor.
            progress: Called with the number of windows done and of all, for an image that is larger
                than the network's input.

        Raises:
            UnreadableImageError: The file is no readable image.
            TypeError, ValueError: It is something else.
        """
        pixels, orientation = pixels_of(image)
        item = self.tiled_mapper.map_image(pixels, orientation=orientation)
        (output,) = predict_views(self.model, self.mapper, [item], self.tiles, progress)
        if "error" in output:
            raise ValueError(output["error"])
        return _prediction(item, output, self.rule, self._mask_from)

    @torch.no_grad()
    def predict_many(
        self, files: Sequence[str | Path], workers: int = 0
    ) -> Iterator[FilePrediction]:
        """Predicts many files, in order, in batches of TEST.IMS_PER_BATCH.

        Args:
            files: Image files. Workers share the list and copy no names.
            workers: Processes that decode; 0 = this one.

        Yields:
            The file and its prediction, or the reason why it has none. One bad file ends nothing,
            and neither does the end of a worker.

        Example:
            >>> from loupe import LoupePredictor
            >>> predictor = LoupePredictor.from_pretrained("tiny")
            >>> for one in predictor.predict_many(["missing.jpg"]):
            ...     print(one.prediction, one.error)
            None missing.jpg: the file does not exist; restore it or drop it from the list
        """
        model = guarded(self.model)
        for batch in self._loader(files, workers, self.tiled_mapper):
            outputs = predict_views(model, self.mapper, batch, self.tiles)
            yield from named_predictions(batch, outputs, self.rule, self._mask_from)

    def loader(self, files: Sequence[str | Path], workers: int = 0) -> SteadyLoader:
        """Batches of TEST.IMS_PER_BATCH unlabelled items, in order; see `predict_many`.

        An unreadable image is an item with its error; a large one is shrunk and not cut.
        """
        return self._loader(files, workers, self.mapper)

    def _loader(
        self, files: Sequence[str | Path], workers: int, mapper: ForgeryDatasetMapper
    ) -> SteadyLoader:
        return SteadyLoader(
            EvaluationDataset(FileEntries(files), mapper),
            batch_size=self.cfg.TEST.IMS_PER_BATCH,
            num_workers=workers,
            collate_fn=list,
            worker_init_fn=start_worker,
        )


def named_predictions(
    batch: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    rule: VerdictRule | None = None,
    mask_from: float = 0.5,
) -> Iterator[FilePrediction]:
    """Each item's file and what the model gave for it, or the reason why it gave nothing."""
    for item, output in zip(batch, outputs, strict=True):
        prediction = None if "error" in output else _prediction(item, output, rule, mask_from)
        yield FilePrediction(
            item["file_name"], prediction, output.get("error", ""), item.get("warnings", ())
        )


def pixels_of(image: ImageSource) -> tuple[np.ndarray, int]:
    """Pixels as they are stored, (H, W, 3) uint8 RGB, and the EXIF orientation.

    Raises:
        UnreadableImageError: It is no readable image.
        TypeError, ValueError: It is nothing that an image could be taken from.
    """
    if isinstance(image, torch.Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            kind = f"{image.dtype} {tuple(image.shape)}"
            raise ValueError(f"image is a tensor of {kind}; give torch.uint8 (3, H, W) RGB")
        image = image.permute(1, 2, 0).cpu().contiguous().numpy()
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
            "a PIL image, an (H, W, 3) uint8 RGB array or a (3, H, W) uint8 RGB tensor"
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
    item: dict[str, Any], output: dict[str, Any], rule: VerdictRule | None, mask_from: float
) -> Prediction:
    patch_map = output["patch_map"]
    maps = output["forgery_map"].numpy(), None if patch_map is None else patch_map.numpy()
    scores: TileScores | None = output.get("tile_scores")
    score = output["forgery_score"]
    found = Prediction(score, *maps, "", (), views_of(item, scores), _classes(output))
    if rule is None:
        return found
    height, width = item["valid_size"]
    pixels = item["image"][:, :height, :width].permute(1, 2, 0).cpu().numpy()
    smaller_side = min(item["height"], item["width"])
    windows = () if scores is None else (scores.windows, scores.side**2)
    verdict = rule.judge(score, pixels, smaller_side, *windows)
    if scores is not None and verdict.word == AUTHENTIC:
        lower_map(found.forgery_map, mask_from)
    return found._replace(score=verdict.probability, verdict=verdict.word, reasons=verdict.reasons)


def _classes(output: dict[str, Any]) -> dict[str, float]:
    """Probability of each class by its name; empty for a model without classes."""
    probabilities = output.get("class_probabilities")
    if probabilities is None:
        return {}
    return dict(zip(class_names(len(probabilities)), probabilities.tolist(), strict=True))


def views_of(item: dict[str, Any], scores: TileScores | None) -> tuple[str, ...]:
    """What the network saw of an image, in words."""
    height, width = item["valid_size"]
    factor = max(item["height"], item["width"]) / max(height, width)
    if (height, width) == (item["height"], item["width"]):
        whole = "whole image at its own scale"
    elif factor >= 1:
        whole = f"whole image shrunk {factor:.1f} times, to {width} x {height}"
    else:
        whole = f"whole image enlarged to {width} x {height}"
    if scores is None:
        return (whole,)
    windows = f"{len(scores.windows)} windows of {scores.side} px at its own scale"
    return whole, windows
