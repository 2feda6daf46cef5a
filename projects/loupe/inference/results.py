"""Writing predictions: a table, regions, maps, masks and overlays, and going on after a stop."""

from __future__ import annotations

import csv
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from loupe.data.images.decoding import read_image
from loupe.inference.folders import TABLE, UNFINISHED_TABLE
from loupe.inference.journal import Journal
from loupe.inference.predictor import FilePrediction
from loupe.inference.regions import describe_regions, write_regions
from loupe.structures import THRESHOLD, Prediction
from loupe.visualization import overlay
from loupe.writing import guard_cell, write_bytes

COLUMNS = (
    *("file", "probability", "error", "warning", "verdict", "reasons", "views"),
    *("class", "class_probabilities"),
)
# Images whose pictures are drawn and compressed while the model predicts the next ones.
_PENDING = 4
# Largest number of pixels that wait so; a larger image waits alone.
_PENDING_PIXELS = 24_000_000


class Written(NamedTuple):
    """What was written of one image.

    Attributes:
        row: By COLUMNS, all text.
        size: (H, W); (0, 0) where there is no prediction.
        regions: Of `describe_regions`.
        files: Relative to the folder.
        is_new: False = taken over from an earlier run.
    """

    row: dict[str, str]
    size: tuple[int, int] = (0, 0)
    regions: list[dict[str, Any]] = []
    files: tuple[str, ...] = ()
    is_new: bool = True

    def entry(self) -> dict[str, Any]:
        """The image in `regions.json`."""
        number = float(self.row["probability"]) if self.row["probability"] else None
        verdict = {"verdict": self.row["verdict"], "probability": number}
        height, width = self.size
        first = {"file": self.row["file"], "width": width, "height": height}
        return first | verdict | self._classes() | {"regions": self.regions}

    def _classes(self) -> dict[str, Any]:
        """The class and the probability of each; nothing where the model tells none."""
        if not self.row.get("class"):
            return {}
        parts = (part.rpartition(" ") for part in self.row["class_probabilities"].split("; "))
        probabilities = {name: float(number) for name, _, number in parts}
        return {"class": self.row["class"], "class_probabilities": probabilities}


def classes_text(probabilities: Mapping[str, float]) -> str:
    """The probability of each class as one cell of a table; "" where a model tells no classes.

    Example:
        >>> classes_text({"authentic": 0.25, "tampered": 0.75})
        'authentic 0.250000; tampered 0.750000'
    """
    return "; ".join(f"{name} {number:.6f}" for name, number in probabilities.items())


def write_predictions(
    predictions: Iterable[FilePrediction],
    names: Mapping[str, str],
    output: str | Path,
    *,
    overlays: bool = True,
    maps: bool = True,
    journal: Journal | None = None,
    told: Callable[[Written], None] = lambda written: None,
) -> tuple[int, int]:
    """Writes `predictions.csv`, `regions.json`, `maps/`, `masks/`, `overlays/`, image by image.

    Each row is on the disk as soon as its image is done, in a table whose name says that it is not
    finished; in the end it gets its own. An interrupted run loses nothing of what it has.

    Args:
        predictions: What came of each file that the journal cannot supply, in the order of `names`.
        names: Name of each file's results.
        output: Folder to write to.
        overlays: Whether to draw overlays, which reads every image once more.
        maps: Whether to write pictures at all.
        journal: Knows what an earlier run has done; None = nothing.
        told: Called with each image, in order.

    Returns:
        Number of images predicted, number of images that could not be.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    kinds = (("maps", "masks") if maps else ()) + (("overlays",) if maps and overlays else ())
    done = failed = 0
    unfinished = output / UNFINISHED_TABLE
    # File names may hold bytes that are no text; they are written as they are.
    with unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)

        def noted() -> Iterator[dict[str, Any]]:
            nonlocal done, failed
            for written in _in_order(iter(predictions), names, output, kinds, journal):
                failed += bool(written.row["error"])
                done += not written.row["error"]
                table.writerow([guard_cell(written.row.get(column, "")) for column in COLUMNS])
                file.flush()
                if written.is_new and journal is not None:
                    regions = {"size": written.size, "list": written.regions}
                    journal.add(written.row["file"], written.row, regions, written.files)
                told(written)
                if not written.row["error"]:
                    yield written.entry()

        write_regions(output, noted())
        os.fsync(file.fileno())
    os.replace(unfinished, output / TABLE)
    return done, failed


def _in_order(
    predictions: Iterator[FilePrediction],
    names: Mapping[str, str],
    output: Path,
    kinds: tuple[str, ...],
    journal: Journal | None,
) -> Iterator[Written]:
    """Every image in the order of `names`; new ones are drawn in threads while the model works."""
    images: Iterator[tuple[str, FilePrediction | Written]]
    if journal is None:
        images = ((one.file, one) for one in predictions)
    else:
        images = _with_known(predictions, names, journal)
    waiting: deque[tuple[int, Future[Written]]] = deque()
    stopped: BaseException | None = None
    with ThreadPoolExecutor(2) as pool:
        while True:
            try:
                file, one = next(images)
            except StopIteration:
                break
            except BaseException as error:  # What is on its way is written before the run ends.
                stopped = error
                break
            if isinstance(one, Written):
                future: Future[Written] = Future()
                future.set_result(one)
                pixels = 0
            else:
                future = pool.submit(_write_one, output, names[file], one, kinds)
                pixels = 0 if one.prediction is None else one.prediction.forgery_map.size
            waiting.append((pixels, future))
            while len(waiting) > _PENDING or sum(n for n, _ in waiting) > _PENDING_PIXELS:
                yield waiting.popleft()[1].result()
            while waiting and waiting[0][1].done():
                yield waiting.popleft()[1].result()
        for _, future in waiting:
            yield future.result()
    if stopped is not None:
        raise stopped


def _with_known(
    predictions: Iterator[FilePrediction], names: Mapping[str, str], journal: Journal
) -> Iterator[tuple[str, FilePrediction | Written]]:
    """What an earlier run has done in its place among the new predictions."""
    upcoming = next(predictions, None)
    for file in names:
        if upcoming is not None and upcoming.file == file:
            yield file, upcoming
            upcoming = next(predictions, None)
            continue
        entry = journal.done(file)
        if entry is None:  # It was changed or removed while this run was on its way.
            problem = f"{file}: was changed during the run; run again with --resume"
            yield file, FilePrediction(file, None, problem)
            continue
        regions = entry["regions"]
        row = entry["row"] | {"file": file}
        yield file, Written(row, tuple(regions["size"]), regions["list"], (), is_new=False)


def _write_one(output: Path, name: str, one: FilePrediction, kinds: tuple[str, ...]) -> Written:
    """Writes the pictures of one image."""
    image, prediction, error, warnings = one
    row = dict.fromkeys(COLUMNS, "")
    row |= {"file": image, "error": error, "warning": "; ".join(warnings)}
    if prediction is None:
        return Written(row)
    files = []
    regions = describe_regions(prediction)  # First: their labels and a picture are both large.
    try:
        for kind, picture in _pictures(image, prediction, kinds):
            encoded, data = cv2.imencode(".png", picture)
            assert encoded, image
            files.append(f"{kind}/{name}.png")
            write_bytes(output / files[-1], data.tobytes())
    except (ValueError, cv2.error, MemoryError) as fault:  # The image was replaced meanwhile, ...
        problem = f"{image}: cannot be drawn ({type(fault).__name__}: {fault})"
        return Written(row | {"error": problem})
    row |= {
        "probability": f"{prediction.score:.6f}",
        "verdict": prediction.verdict,
        "reasons": "; ".join(prediction.reasons),
        "views": "; ".join(prediction.views),
        "class": prediction.class_name,
        "class_probabilities": classes_text(prediction.class_probabilities),
    }
    height, width = prediction.forgery_map.shape
    return Written(row, (height, width), regions, tuple(files))


def _pictures(
    image: str, prediction: Prediction, kinds: tuple[str, ...]
) -> Iterator[tuple[str, np.ndarray]]:
    """Pictures and the folder that each goes to, 8 bit, grey or BGR, one at a time."""
    forgery_map = prediction.forgery_map
    if "maps" in kinds:
        # Rounds as np.rint does, without planes of floats.
        yield "maps", cv2.convertScaleAbs(forgery_map, alpha=255)
        yield "masks", (forgery_map > THRESHOLD) * np.uint8(255)
    if "overlays" in kinds:
        drawn = np.require(read_image(image), requirements="W")
        overlay(drawn, forgery_map, THRESHOLD, out=drawn)
        for row in drawn:  # OpenCV would copy the whole picture.
            row[...] = row[:, ::-1]  # RGB to BGR
        yield "overlays", drawn
