"""Writes the submissions that the DDL challenges of 2025 and 2026 ask for, into a folder or a .zip.

DDL-2025, detection and localisation:
    predictions.txt       a line `name.png,0.1234` for each image: probability that it is forged
    masks/name.png        8-bit grey PNG at the image's own size, 0 or 255 = forged
DDL-X-2026, with an explanation:
    json/name.json        {"Classification result": "fake" or "real",
                           "Bounding boxes": [[x1, y1, x2, y2], ...] scaled to 0 .. 1000,
                           "Visible forgery traces": text}

`checks.py` validates both. An image is known by its stem; 1 = forged. H W pixels.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from loupe.structures import THRESHOLD
from loupe.writing import replacing, write_bytes

FORMATS = ("ddl2025", "ddlx2026")
CLASS_KEY, BOXES_KEY, TRACES_KEY = (
    "Classification result",
    "Bounding boxes",
    "Visible forgery traces",
)
CLASSES = ("real", "fake")
BOX_SCALE = 1000

# What the winners of DDL-X-2026 used: boxes round 8-connected regions of pixels from 0.4 on,
# without those of fewer than 8 pixels.
BOX_THRESHOLD = 0.4
SMALLEST_REGION = 8


class ChallengePrediction(NamedTuple):
    """What is submitted for one image.

    Attributes:
        stem: the image's file name without its ending.
        probability: that the image is forged.
        forgery_map: (H, W) uint8 of which 255 is certain, bool, or float in [0, 1]; at the
            image's own size.
    """

    stem: str
    probability: float
    forgery_map: np.ndarray


@contextmanager
def container(path: str | Path) -> Iterator[Callable[[str, bytes], None]]:
    """A new folder or .zip; gives what adds a file. A .zip takes its name when it is complete.

    Raises:
        FileExistsError: there is something already.
    """
    path = Path(path)
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists; remove it or choose another output")
    if path.suffix.lower() == ".zip":
        with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            yield archive.writestr
    else:
        path.mkdir(parents=True, exist_ok=True)
        yield lambda name, data: write_bytes(path / name, data)


def _checked(predictions: Iterable[ChallengePrediction]) -> Iterable[ChallengePrediction]:
    """The predictions, as long as they can be written.

    Raises:
        ValueError: two have one stem, or a probability or a map cannot be what it should be.
    """
    seen: set[str] = set()
    for one in predictions:
        stem, values = one.stem, one.forgery_map
        if stem in seen:
            raise ValueError(f"{stem}: two images have this name; a challenge tells them by it")
        if not stem or set(stem) & set(",/\\\r\n"):
            raise ValueError(f"{stem!r}: not a name that the format can hold; rename the image")
        if not 0 <= one.probability <= 1:
            raise ValueError(f"{stem}: the probability is {one.probability}; needed is 0 to 1")
        if values.ndim != 2 or not values.size:
            raise ValueError(f"{stem}: the map has shape {values.shape}, needed is (H, W)")
        if values.dtype.kind == "f" and not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"{stem}: the map leaves [0, 1]; apply a sigmoid, replace NaN")
        if values.dtype.kind != "f" and values.dtype not in (np.uint8, bool):
            raise ValueError(f"{stem}: the map is {values.dtype}; give uint8, bool or float")
        seen.add(stem)
        yield one


def above(forgery_map: np.ndarray, threshold: float, *, inclusive: bool = False) -> np.ndarray:
    """(H, W) bool: pixels above a probability, or from it on."""
    limit = threshold * 255 if forgery_map.dtype == np.uint8 else threshold
    if forgery_map.dtype == bool:
        return forgery_map
    return forgery_map >= limit if inclusive else forgery_map > limit


def encode_mask(forged: np.ndarray) -> bytes:
    """(H, W) bool -> 8-bit grey PNG of 0 and 255."""
    encoded, data = cv2.imencode(".png", forged.astype(np.uint8) * np.uint8(255))
    assert encoded, forged.shape
    return data.tobytes()


def write_ddl2025(
    predictions: Iterable[ChallengePrediction], output: str | Path, *, threshold: float = THRESHOLD
) -> int:
    """Writes a DDL-2025 submission; one map is in memory at a time.

    Args:
        predictions: in any order.
        output: a new folder, or a .zip.
        threshold: a pixel above it is forged.

    Returns:
        Number of images.

    Raises:
        FileExistsError: the output is there already.
        ValueError: a prediction cannot be written; names the image.
    """
    lines = []
    with container(output) as add:
        for one in _checked(predictions):
            name = f"{one.stem}.png"
            add(f"masks/{name}", encode_mask(above(one.forgery_map, threshold)))
            lines.append(f"{name},{one.probability:.4f}\n")
        add("predictions.txt", "".join(sorted(lines)).encode())
    return len(lines)


def find_boxes(
    forgery_map: np.ndarray,
    threshold: float = BOX_THRESHOLD,
    smallest_region: int = SMALLEST_REGION,
) -> list[list[int]]:
    """Boxes x1, y1, x2, y2 round the forged regions, largest region first, 0 to 1000.

    Both ends are pixels of the region; x is divided by W, y by H, times 1000, rounded.

    Args:
        forgery_map: (H, W), see `ChallengePrediction`.
        threshold: pixels from it on are forged.
        smallest_region: 8-connected regions of fewer pixels are dropped.
    """
    forged = above(forgery_map, threshold, inclusive=True).astype(np.uint8)
    statistics = cv2.connectedComponentsWithStats(forged, connectivity=8)[2][1:]
    statistics = statistics[statistics[:, cv2.CC_STAT_AREA] >= smallest_region]
    order = np.argsort(-statistics[:, cv2.CC_STAT_AREA], kind="stable")
    left, top, width, height = statistics[order, :4].astype(np.int64).T
    ends = np.stack([left, top, left + width - 1, top + height - 1], axis=1)
    scale = BOX_SCALE / np.array(forgery_map.shape[::-1] * 2)
    boxes = np.rint(ends * scale).astype(int).tolist()
    # Regions apart by less than a thousandth of the image have one box.
    return list(map(list, dict.fromkeys(map(tuple, boxes))))


def traces_of(fake: bool, boxes: list[list[int]], fraction: float) -> str:
    """A sentence on what was measured; it claims to have seen nothing else.

    Args:
        fake: whether the image is called forged.
        boxes: as of `find_boxes`.
        fraction: of the image that is forged, in [0, 1].
    """
    if not fake:
        return "The image was found authentic. This image has not been tampered with."
    if not boxes:
        return (
            "The image as a whole was found forged, no region stands out. "
            "This image has been tampered with."
        )
    regions = "One forged region was" if len(boxes) == 1 else f"{len(boxes)} forged regions were"
    x1, y1, x2, y2 = boxes[0]
    row = ("top", "middle", "bottom")[min(2, (y1 + y2) * 3 // (2 * BOX_SCALE))]
    column = ("left", "centre", "right")[min(2, (x1 + x2) * 3 // (2 * BOX_SCALE))]
    largest = "it lies" if len(boxes) == 1 else "the largest lies"
    return (
        f"{regions} found, covering {fraction:.1%} of the image; {largest} at the {row} {column}. "
        "This image has been tampered with."
    )


def write_ddlx2026(
    predictions: Iterable[ChallengePrediction],
    output: str | Path,
    *,
    threshold: float = THRESHOLD,
    box_threshold: float = BOX_THRESHOLD,
    smallest_region: int = SMALLEST_REGION,
) -> int:
    """Writes a DDL-X-2026 submission; one map is in memory at a time.

    Args:
        predictions: in any order.
        output: a new folder, or a .zip.
        threshold: an image is fake above it; a real one has no boxes.
        box_threshold: a pixel from it on is forged.
        smallest_region: 8-connected regions of fewer pixels are dropped.

    Returns:
        Number of images.

    Raises:
        FileExistsError: the output is there already.
        ValueError: a prediction cannot be written; names the image.
    """
    count = 0
    with container(output) as add:
        for one in _checked(predictions):
            fake = one.probability > threshold
            boxes: list[list[int]] = []
            fraction = 0.0
            if fake:
                boxes = find_boxes(one.forgery_map, box_threshold, smallest_region)
                fraction = float(above(one.forgery_map, box_threshold, inclusive=True).mean())
            content = {
                CLASS_KEY: CLASSES[fake],
                BOXES_KEY: boxes,
                TRACES_KEY: traces_of(fake, boxes, fraction),
            }
            text = json.dumps(content, ensure_ascii=False) + "\n"
            add(f"json/{one.stem}.json", text.encode())
            count += 1
    return count
