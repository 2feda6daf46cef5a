"""Writes a report: index.html with its pictures, report.json and report.csv.

index.html      opens from the disk, loads nothing from elsewhere, prints
report.json     everything that the page says, `schema` 1 (docs/report.md)
report.csv      a row for each image
pictures/       the images, shrunk for the page, and their maps

What is said of a region comes from `loupe.explanation.facts`.
"""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from loupe.data.images.decoding import read_picture
from loupe.data.images.errors import UnreadableImageError
from loupe.data.images.orientation import turn
from loupe.explanation.facts import measure
from loupe.inference.earlier import Results
from loupe.inference.predictor import FilePrediction
from loupe.inference.results import classes_text
from loupe.report.file_facts import facts_of_file
from loupe.report.page import page
from loupe.structures import Prediction
from loupe.writing import UNFINISHED, write_bytes, write_csv, write_json, write_text

SCHEMA = 1
PICTURES = "pictures"
# `report.csv` until all pictures are written.
UNFINISHED_TABLE = "report.unfinished.csv"
_NUMBER = "[0-9]" * 6
REPORT = Results(
    ("report.csv", UNFINISHED_TABLE),
    ("report.json", "index.html"),
    tuple(f"{PICTURES}/{one}" for one in (f"{_NUMBER}.jpg", f"{_NUMBER}.png", f"{UNFINISHED}*")),
)
# Longest side in pixels of the pictures on the page, and their JPEG quality.
LONGEST, QUALITY = 1024, 85
COLUMNS = (
    *("file", "verdict", "probability", "reasons", "regions", "width", "height", "format"),
    *("sha256", "jpeg_quality", "software", "contradictions", "credentials", "seconds"),
    *("class", "class_probabilities", "error"),
)


class Model(NamedTuple):
    """What predicted.

    Attributes:
        name: Of the weights.
        sha256: Of their file.
        version: Of Loupe.
        operating_point: What a verdict means, in words.
        settings: Those that differ from the defaults a reader may want.
    """

    name: str
    sha256: str
    version: str
    operating_point: str
    settings: dict[str, Any]


def write_report(
    results: Iterable[FilePrediction],
    folder: str | Path,
    model: Model,
    *,
    title: str = "Image forgery report",
    told: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> tuple[int, int]:
    """Writes a report of predictions, most probable forgery first, images in error apart.

    Args:
        results: What came of each file.
        folder: To write to.
        model: What predicted.
        title: Of the page.
        told: Called with each image's entry as it is done.

    Returns:
        Number of images reported, number of images that could not be.
    """
    folder = Path(folder)
    # Says whose the pictures are, if the run is stopped.
    write_csv(folder / UNFINISHED_TABLE, COLUMNS, [])
    entries = list(_entries(results, folder, told))
    done = [entry for entry in entries if not entry["error"]]
    failed = [entry for entry in entries if entry["error"]]
    done.sort(key=lambda entry: -entry["probability"])
    content = {
        "schema": SCHEMA,
        "title": title,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "system": f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        "model": model._asdict(),
        "images": done,
        "errors": [{"file": one["file"], "error": one["error"]} for one in failed],
    }
    write_json(folder / "report.json", content)
    write_csv(folder / "report.csv", COLUMNS, map(_row, [*done, *failed]))
    write_text(folder / "index.html", page(content))
    (folder / UNFINISHED_TABLE).unlink()
    return len(done), len(failed)


def _entries(
    results: Iterable[FilePrediction], folder: Path, told: Callable[[dict[str, Any]], None]
) -> Iterator[dict[str, Any]]:
    start = time.perf_counter()
    for number, one in enumerate(results):
        entry: dict[str, Any] = {
            "file": one.file,
            "error": one.error,
            "warnings": list(one.warnings),
        }
        if one.prediction is not None:
            try:
                entry |= _described(one.file, one.prediction, folder, number)
            except (UnreadableImageError, OSError, ValueError) as error:
                entry["error"] = f"{one.file}: was predicted, but cannot be reported ({error})"
        entry["seconds"] = round(time.perf_counter() - start, 3)
        told(entry)
        yield entry
        start = time.perf_counter()


def _described(file: str, prediction: Prediction, folder: Path, number: int) -> dict[str, Any]:
    """Everything that is said of one image, and its pictures."""
    content = Path(file).read_bytes()
    picture = read_picture(content, name=file)
    image = turn(picture.pixels, picture.orientation)
    facts = measure(image, prediction, file=content)
    name = f"{number:06}"
    _write_pictures(folder / PICTURES, name, image, prediction)
    return {
        "verdict": prediction.verdict,
        "probability": round(prediction.score, 6),
        "reasons": list(prediction.reasons),
        "views": list(prediction.views),
        **_classes(prediction),
        "width": image.shape[1],
        "height": image.shape[0],
        "regions": [region._asdict() for region in prediction.regions],
        "facts": [fact._asdict() for fact in facts],
        "file_facts": facts_of_file(content),
        "picture": f"{PICTURES}/{name}.jpg",
        "map": f"{PICTURES}/{name}.png",
    }


def _classes(prediction: Prediction) -> dict[str, Any]:
    """The class and the probability of each; nothing where the model tells none."""
    if not prediction.class_probabilities:
        return {}
    rounded = {name: round(value, 6) for name, value in prediction.class_probabilities.items()}
    return {"class": prediction.class_name, "class_probabilities": rounded}


def _write_pictures(folder: Path, name: str, image: np.ndarray, prediction: Prediction) -> None:
    height, width = image.shape[:2]
    scale = min(1.0, LONGEST / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    small = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    forgery_map = cv2.resize(prediction.forgery_map, size, interpolation=cv2.INTER_AREA)
    grey = np.rint(forgery_map * 255).astype(np.uint8)
    for ending, pixels, options in (
        (".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY]),
        (".png", grey, []),
    ):
        encoded, data = cv2.imencode(ending, pixels, options)
        assert encoded, name
        write_bytes(folder / f"{name}{ending}", data.tobytes())


def _row(entry: dict[str, Any]) -> list[Any]:
    """One row of report.csv."""
    if entry["error"]:
        return [entry["file"], *[None] * (len(COLUMNS) - 2), entry["error"]]
    facts = entry["file_facts"]
    return [
        *(entry["file"], entry["verdict"], entry["probability"], "; ".join(entry["reasons"])),
        *(len(entry["regions"]), entry["width"], entry["height"], facts["format"]),
        *(facts["sha256"], (facts["jpeg"] or {}).get("quality"), "; ".join(facts["software"])),
        *("; ".join(facts["contradictions"]), facts["credentials"]["state"], entry["seconds"]),
        *(entry.get("class"), classes_text(entry.get("class_probabilities", {})), None),
    ]
