"""Writes the answers that the DDL challenges of 2025 and 2026 ask for, into a folder or a .zip.

DDL-2025, detection and localisation:
    predictions.txt       a line `name.png,0.1234` for each image: probability that it is forged
    masks/name.png        8-bit grey PNG at the image's own size, 0 or 255 = forged
DDL-X-2026, with an explanation:
    json/name.json        {"Classification result": "fake" or "real",
                           "Bounding boxes": [[x1, y1, x2, y2], ...] scaled to 0 .. 1000,
                           "Visible forgery traces": text}

`challenge_checks.py` validates both. An image is known by its stem; 1 = forged. H W pixels.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import cv2
import numpy as np

from loupe.structures import THRESHOLD

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


class ChallengeAnswer(NamedTuple):
    """The answer for one image.

    Attributes:
        stem: the image's file name without its ending.
        score: probability that the image is forged.
        forgery_map: (H, W) uint8 of which 255 is certain, bool, or float in [0, 1]; at the
            image's own size.
    """

    stem: str
    score: float
    forgery_map: np.ndarray


class Container(AbstractContextManager):
    """A new folder or .zip that takes files, one at a time."""

    def __init__(self, path: str | Path) -> None:
        """Makes it; a .zip appears under its name when it is complete.

        Raises:
            FileExistsError: there is something already.
        """
        self.path = Path(path)
        if self.path.exists() and (self.path.is_file() or any(self.path.iterdir())):
            raise FileExistsError(f"{path} exists; remove it or choose another output")
        self._archive = None
        if self.path.suffix.lower() == ".zip":
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._partial = self.path.with_suffix(".partial")
            self._archive = zipfile.ZipFile(self._partial, "w", zipfile.ZIP_DEFLATED)
        else:
            self.path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Adds one file under a relative name."""
        if self._archive is not None:
            self._archive.writestr(name, data)
            return
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._archive is None:
            return
        self._archive.close()
        if kind is None:
            self._partial.rename(self.path)
        else:
            self._partial.unlink()


def _checked(answers: Iterable[ChallengeAnswer]) -> Iterable[ChallengeAnswer]:
    """The answers, as long as they can be written.

    Raises:
        ValueError: two have one stem, or a score or a map cannot be what it should be.
    """
    seen: set[str] = set()
    for answer in answers:
        stem, values = answer.stem, answer.forgery_map
        if stem in seen:
            raise ValueError(f"{stem}: two images have this name; a challenge tells them by it")
        if "," in stem or "/" in stem or not stem:
            raise ValueError(f"{stem!r}: not a name that the format can hold; rename the image")
        if not 0 <= answer.score <= 1:
            raise ValueError(f"{stem}: the score is {answer.score}; a probability is needed")
        if values.ndim != 2 or not values.size:
            raise ValueError(f"{stem}: the map has shape {values.shape}, needed is (H, W)")
        if values.dtype.kind == "f" and not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"{stem}: the map leaves [0, 1]; apply a sigmoid, replace NaN")
        if values.dtype.kind != "f" and values.dtype not in (np.uint8, bool):
            raise ValueError(f"{stem}: the map is {values.dtype}; give uint8, bool or float")
        seen.add(stem)
        yield answer


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
    answers: Iterable[ChallengeAnswer], output: str | Path, *, threshold: float = THRESHOLD
) -> int:
    """Writes a DDL-2025 submission; one map is in memory at a time.

    Args:
        answers: in any order.
        output: a new folder, or a .zip.
        threshold: a pixel above it is forged.

    Returns:
        Number of images.

    Raises:
        FileExistsError: the output is there already.
        ValueError: an answer cannot be written; names the image.
    """
    lines = []
    with Container(output) as container:
        for answer in _checked(answers):
            name = f"{answer.stem}.png"
            container.write(f"masks/{name}", encode_mask(above(answer.forgery_map, threshold)))
            lines.append(f"{name},{answer.score:.4f}\n")
        container.write("predictions.txt", "".join(sorted(lines)).encode())
    return len(lines)


def find_boxes(
    forgery_map: np.ndarray,
    threshold: float = BOX_THRESHOLD,
    smallest_region: int = SMALLEST_REGION,
) -> list[list[int]]:
    """Boxes x1, y1, x2, y2 round the forged regions, largest region first, 0 to 1000.

    Both ends are pixels of the region; x is divided by W, y by H, times 1000, rounded.

    Args:
        forgery_map: (H, W), see `ChallengeAnswer`.
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


def describe(fake: bool, boxes: list[list[int]], share: float) -> str:
    """A sentence on what was measured; it claims to have seen nothing else.

    Args:
        fake: the verdict.
        boxes: as of `find_boxes`.
        share: forged share of the image, in [0, 1].
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
        f"{regions} found, covering {share:.1%} of the image; {largest} at the {row} {column}. "
        "This image has been tampered with."
    )


def write_ddlx2026(
    answers: Iterable[ChallengeAnswer],
    output: str | Path,
    *,
    threshold: float = THRESHOLD,
    box_threshold: float = BOX_THRESHOLD,
    smallest_region: int = SMALLEST_REGION,
) -> int:
    """Writes a DDL-X-2026 submission; one map is in memory at a time.

    Args:
        answers: in any order.
        output: a new folder, or a .zip.
        threshold: an image is fake above it; a real one has no boxes.
        box_threshold: a pixel from it on is forged.
        smallest_region: 8-connected regions of fewer pixels are dropped.

    Returns:
        Number of images.

    Raises:
        FileExistsError: the output is there already.
        ValueError: an answer cannot be written; names the image.
    """
    count = 0
    with Container(output) as container:
        for answer in _checked(answers):
            fake = answer.score > threshold
            boxes: list[list[int]] = []
            share = 0.0
            if fake:
                boxes = find_boxes(answer.forgery_map, box_threshold, smallest_region)
                share = float(above(answer.forgery_map, box_threshold, inclusive=True).mean())
            content = {
                CLASS_KEY: CLASSES[fake],
                BOXES_KEY: boxes,
                TRACES_KEY: describe(fake, boxes, share),
            }
            text = json.dumps(content, ensure_ascii=False) + "\n"
            container.write(f"json/{answer.stem}.json", text.encode())
            count += 1
    return count
