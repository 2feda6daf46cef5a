"""Images larger than the network's input: windows at native scale beside one shrunk view.

Shrinking an image removes the traces that the network looks for; windows alone cannot show a copy
whose original lies in another window, nor a large forgery from its border. So both are predicted:

    overview    the whole image, shrunk to the network's input
    windows     SIDE x SIDE pixels as they are stored, from multiples of 8 on (the grid of JPEG's
                blocks), overlapping; in an overlap each counts by its distance from its border

The forgery map is the weighted mean of both. The probability comes of the scores of the
overview and of all windows, by `verdict.TileRule`.

H W pixels of the image as stored, n windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode

from loupe.data.images.orientation import UPRIGHT, turn
from loupe.data.training.dataset_mapper import ForgeryDatasetMapper
from loupe.modeling.postprocessing import shift_odds, turn_map

# Side in pixels of a JPEG's block, on whose grid windows begin.
GRID = 8
# Fraction of the overview in the forgery map: highest mean of the best F1 on 35 photographs for
# validation (weights/README.md). Windows find small forgeries, the overview large ones and copies.
OVERVIEW_SHARE = 0.25
# Rows of the image that are resized at a time.
_BAND = 256

Item = dict[str, Any]
Model = Callable[[list[Item]], list[Item]]
Progress = Callable[[int, int], None]


class Span(NamedTuple):
    """Where a window lies along one axis, in pixels; `stop` is excluded."""

    start: int
    stop: int


class TileSettings(NamedTuple):
    """How an image is cut into windows.

    Attributes:
        enabled: Whether it is.
        side: Of a window, in pixels.
        overlap: Of neighbours, at least, in pixels.
        batch: Windows in one forward pass.
    """

    enabled: bool
    side: int
    overlap: int
    batch: int

    @classmethod
    def of(cls, cfg: CfgNode) -> TileSettings:
        """The settings of a configuration: TEST.TILES and INPUT."""
        tiles = cfg.TEST.TILES
        native = cfg.INPUT.RESIZE == "native"
        enabled = tiles.MODE == "on" or (tiles.MODE == "auto" and native)
        side = max(GRID, min(tiles.SIDE, cfg.INPUT.SIZE) // GRID * GRID)
        return cls(enabled, side, round(side * tiles.OVERLAP), tiles.IMS_PER_BATCH)

    def windows(self, height: int, width: int) -> list[tuple[Span, Span]]:
        """Rows and columns of each window of an image, row by row."""
        rows, columns = (spans(side, self.side, self.overlap) for side in (height, width))
        return [(row, column) for row in rows for column in columns]


class TileScores(NamedTuple):
    """Scores of the network for the views of one image.

    Attributes:
        overview: Of the shrunk image.
        windows: (n,) of the windows.
        side: Of a window, in pixels.
    """

    overview: float
    windows: tuple[float, ...]
    side: int


class TiledMapper(ForgeryDatasetMapper):
    """The mapper of evaluation, whose items also hold the pixels of images to be cut.

    Attributes:
        tiles: Settings; set after construction.
    """

    tiles: TileSettings | None = None

    def map_image(
        self,
        image: np.ndarray,
        size: tuple[int, int] | None = None,
        orientation: int = UPRIGHT,
    ) -> Item:
        """Adds `pixels` (H, W, 3) uint8, where the network's input is smaller than the image."""
        item = super().map_image(image, size, orientation)
        larger = max(image.shape[:2]) > self.size
        if self.tiles is not None and self.tiles.enabled and larger:
            item["pixels"] = np.ascontiguousarray(image)
        return item


def spans(length: int, side: int, overlap: int) -> list[Span]:
    """Windows along one axis: as few as overlap enough, evenly spread, on the grid.

    Example:
        >>> spans(1000, 512, 64)
        [Span(start=0, stop=512), Span(start=240, stop=752), Span(start=488, stop=1000)]
    """
    if length <= side:
        return [Span(0, length)]
    count = -(-(length - overlap) // (side - overlap))
    # Rounded up, the last one begins on the grid too, and is up to 7 pixels smaller.
    last = GRID * -(-(length - side) // GRID)
    starts = [GRID * round(i * last / (count - 1) / GRID) for i in range(count)]
    return [Span(start, min(start + side, length)) for start in starts]


def feather(parts: list[Span], length: int) -> list[np.ndarray]:
    """Weight of each window at each of its pixels along one axis; in each pixel they add up to 1.

    A weight falls to the window's border, except at the border of the image.
    """
    weights = []
    total = np.zeros(length)
    for part in parts:
        place = np.arange(part.start, part.stop) + 0.5
        first = np.full(len(place), np.inf) if part.start == 0 else place - part.start
        second = np.full(len(place), np.inf) if part.stop == length else part.stop - place
        weight = np.minimum(np.minimum(first, second), length)
        weights.append(weight)
        total[part.start : part.stop] += weight
    return [
        (weight / total[part.start : part.stop]).astype(np.float32)
        for part, weight in zip(parts, weights, strict=True)
    ]


class MapMaker:
    """Adds up the forgery map of one image, in place: no view is held at the image's size.

    Args:
        overview: (h, w) forgery map of the shrunk image.
        size: (H, W) of the image.
        settings: How it is cut.
        share: Fraction of the overview.
    """

    def __init__(
        self,
        overview: np.ndarray,
        size: tuple[int, int],
        settings: TileSettings,
        share: float = OVERVIEW_SHARE,
    ) -> None:
        height, width = size
        self.share = share
        self.result = np.empty(size, np.float32)
        for top, band in resized_bands(overview, size):
            np.multiply(band, share, out=self.result[top : top + len(band)])
        rows, columns = (spans(side, settings.side, settings.overlap) for side in size)
        self._rows = dict(zip(rows, feather(rows, height), strict=True))
        self._columns = dict(zip(columns, feather(columns, width), strict=True))

    def add(self, row: Span, column: Span, forgery_map: np.ndarray) -> None:
        """Adds the map (h, w) of one window."""
        weight = self._rows[row][:, None] * ((1 - self.share) * self._columns[column][None])
        self.result[row.start : row.stop, column.start : column.stop] += weight * forgery_map


def resized_bands(
    small: np.ndarray, size: tuple[int, int], rows: int = _BAND
) -> Iterator[tuple[int, np.ndarray]]:
    """Bands of rows of a map at another size (bilinear, pixel centres aligned), from the top.

    Args:
        small: (h, w) float32.
        size: (H, W) of the result.
        rows: Of a band.

    Yields:
        The first row of a band, and the band.
    """
    height, width = size
    wide = cv2.resize(small, (width, len(small)), interpolation=cv2.INTER_LINEAR)
    scale = len(small) / height
    for top in range(0, height, rows):
        place = (np.arange(top, min(top + rows, height)) + 0.5) * scale - 0.5
        place = place.clip(0, len(small) - 1).astype(np.float32)
        first = np.minimum(place.astype(int), len(small) - 1)
        second = np.minimum(first + 1, len(small) - 1)
        weight = (place - first)[:, None]
        yield top, wide[first] * (1 - weight) + wide[second] * weight


def predict_views(
    model: Model,
    mapper: ForgeryDatasetMapper,
    items: list[Item],
    settings: TileSettings,
    progress: Progress | None = None,
) -> list[Item]:
    """The model's predictions, those of items with `pixels` from all views of them.

    Args:
        model: Any whose outputs have `forgery_score`, `forgery_map` and `patch_map`, or `error`.
        mapper: Makes items of windows.
        items: Of `TiledMapper`; they lose their `pixels`.
        settings: How images are cut.
        progress: Is told the number of windows done, and of all, of each image.

    Returns:
        Outputs in order; those of cut images also have `tile_scores`. Their patch map is the
        overview's.
    """
    outputs = model([_overview(item) for item in items])
    return [
        _with_windows(model, mapper, item, output, settings, progress)
        if "pixels" in item and "error" not in output
        else output
        for item, output in zip(items, outputs, strict=True)
    ]


def lower_map(forgery_map: np.ndarray, mask_from: float) -> None:
    """Takes `shift_odds` back, in place, where the image as a whole is called authentic.

    The model raises the map of each view that looks forged by itself, and of the many windows of
    an authentic photograph some do.

    Args:
        forgery_map: (H, W) float32 in [0, 1].
        mask_from: MODEL.SEGMENTER.MASK_FROM.
    """
    for top in range(0, len(forgery_map), _BAND):
        band = forgery_map[top : top + _BAND]
        band[...] = shift_odds(torch.from_numpy(band), 1 - mask_from).numpy()


def _overview(item: Item) -> Item:
    """The item whose map comes at the size that the network sees."""
    if "pixels" not in item:
        return item
    height, width = item["valid_size"]
    whole = {"height": height, "width": width, "window": (0.0, 0.0, float(width), float(height))}
    return (
        {key: value for key, value in item.items() if key != "pixels"}
        | whole
        | {"orientation": UPRIGHT}
    )


def _with_windows(
    model: Model,
    mapper: ForgeryDatasetMapper,
    item: Item,
    overview: Item,
    settings: TileSettings,
    progress: Progress | None,
) -> Item:
    pixels = item.pop("pixels")  # Nobody else holds them: they go before pictures are drawn.
    windows = settings.windows(*pixels.shape[:2])
    made = MapMaker(overview["forgery_map"].numpy(), pixels.shape[:2], settings)
    scores: list[float] = []
    for first in range(0, len(windows), settings.batch):
        part = windows[first : first + settings.batch]
        cut = [pixels[r.start : r.stop, c.start : c.stop] for r, c in part]
        batch = [
            ForgeryDatasetMapper.map_image(mapper, one) | _named(item, first + i)
            for i, one in enumerate(cut)
        ]
        for (row, column), output in zip(part, model(batch), strict=True):
            if "error" in output:
                return {"error": output["error"]}
            made.add(row, column, output["forgery_map"].numpy())
            scores.append(output["forgery_score"])
        if progress is not None:
            progress(len(scores), len(windows))
    patch_map, orientation = overview["patch_map"], item["orientation"]
    forgery_map = made.result if orientation == UPRIGHT else turn(made.result, orientation)
    return overview | {
        "forgery_map": torch.from_numpy(forgery_map),
        "patch_map": None if patch_map is None else turn_map(patch_map, orientation),
        "tile_scores": TileScores(overview["forgery_score"], tuple(scores), settings.side),
    }


def _named(item: Item, number: int) -> Item:
    """Names of a window, as far as its image has names."""
    names = {key: item[key] for key in ("file_name", "image_id") if key in item}
    return {key: f"{value} window {number}" for key, value in names.items()}
