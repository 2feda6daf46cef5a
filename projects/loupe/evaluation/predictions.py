"""Reads the saved predictions of any detector: one folder, one of the kinds below.

    loupe        predictions.csv (file,probability,error,...) and maps/, as tools/predict.py writes
    ddl2025      predictions.txt (name.png,0.1234) and masks/
    benco        pred/ and pred_label*.json, as IMDL-BenCo writes
    coco         one .json of COCO results or a COCO data set with RLE masks
    trufor       .npz files with map, conf, score, imgsize
    npy          .npy files
    png          .png files (8 or 16 bit probability)

The last two may have image probabilities in scores.csv or predictions.csv beside them. 1 = forged.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from loupe.evaluation.map_files import PredictionError, read_bounded
from loupe.writing import read_cell

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".npz", ".npy"}
MAP_SUFFIXES = {"trufor": ".npz", "npy": ".npy", "png": ".png"}
# Of a table or a list: a hundred bytes for each of two million images.
MAX_LIST_BYTES = 200_000_000
NAME_COLUMNS = ("file", "image", "name", "filename")
PROBABILITY_COLUMNS = ("probability", "score", "prediction")

Name = tuple[str, ...]


class SavedPrediction(NamedTuple):
    """One image's saved prediction, its map not yet read.

    Attributes:
        name: the image's name as far as it is known: folders, then the file, with or without its
            suffix, e.g. ("train", "0001.jpg").
        probability: that the image is forged, None where the file with the map may have it.
        source: the map: a path, or regions with run lengths and scores (an empty list says that
            nothing is forged); None where there is none.
        error: the detector's own message that it could not predict; "" otherwise.
    """

    name: Name
    probability: float | None
    source: Path | list[dict[str, Any]] | None
    error: str = ""


class PredictionSet(NamedTuple):
    """All saved predictions of a folder.

    Attributes:
        kind: one of the kinds above.
        entries: in the order of their names.
    """

    kind: str
    entries: list[SavedPrediction]


class Row(NamedTuple):
    """A line of a table of probabilities.

    Attributes:
        name: the image.
        probability: None where there is none.
        error: why there is none; "" otherwise.
    """

    name: Name
    probability: float | None
    error: str = ""


def split_name(name: str | Path) -> Name:
    """Folders and file: "a/b.jpg" -> ("a", "b.jpg").

    Raises:
        PredictionError: there is no file in it.
    """
    parts = Path(str(name).replace("\\", "/")).parts
    named = tuple(part for part in parts if part not in ("/", "."))
    if not named:
        raise PredictionError(f"{str(name)!r} names no file; write the image's file name")
    return named


def without_suffix(name: Name) -> Name:
    """The name with its image suffix cut off, if it has one."""
    last = Path(name[-1])
    return (*name[:-1], last.stem if last.suffix.lower() in IMAGE_SUFFIXES else last.name)


def find_predictions(folder: str | Path) -> PredictionSet:
    """Recognises the kind of a folder and lists its predictions; maps are not read.

    Raises:
        PredictionError: the folder is missing or empty, of no known kind, or a list is malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PredictionError(f"{folder}: no such folder of predictions")
    for kind, (recognises, reads) in _KINDS.items():
        if recognises(folder):
            entries = sorted(reads(folder), key=lambda entry: entry.name)
            if not entries:
                raise PredictionError(f"{folder}: the {kind} predictions are empty")
            _refuse_duplicates(folder, entries)
            return PredictionSet(kind, entries)
    found = sorted({path.suffix or path.name for path in folder.iterdir()})[:10]
    raise PredictionError(
        f"{folder}: no known kind of predictions (found {found}); known are "
        "predictions.csv + maps/, predictions.txt + masks/, pred/ + pred_label*.json, "
        "COCO results .json, .npz, .npy, .png"
    )


def _refuse_duplicates(folder: Path, entries: list[SavedPrediction]) -> None:
    seen: set[Name] = set()
    for entry in entries:
        if entry.name in seen:
            raise PredictionError(
                f"{folder}: two predictions are named {'/'.join(entry.name)}; remove one"
            )
        seen.add(entry.name)


def _number(text: str, path: Path, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise PredictionError(
            f"{path}: the score of {name} is {text!r}; a number in [0, 1] is needed"
        ) from None


def _maps_below(folder: Path, suffix: str) -> dict[Name, Path]:
    """Map files by their names relative to the folder, the map's own suffix cut off."""
    paths = sorted(path for path in folder.rglob(f"*{suffix}") if path.is_file())
    return {split_name(str(path.relative_to(folder))[: -len(suffix)]): path for path in paths}


def _longest_match(name: Name, maps: dict[Name, Path]) -> Name | None:
    """The map whose name is the longest end of an image's name, with or without its suffix."""
    for start in range(len(name)):
        for end in (name[start:], without_suffix(name[start:])):
            if end in maps:
                return end
    return None


def _join(maps: dict[Name, Path], rows: Iterable[Row], table: Path) -> list[SavedPrediction]:
    """Rows of probabilities with their maps, and the maps that no row has."""
    owners: dict[Name, Name] = {}
    entries = []
    for row in rows:
        found = _longest_match(row.name, maps)
        if found in owners:
            raise PredictionError(
                f"{table}: the map {'/'.join(found)} fits {'/'.join(owners[found])} and "
                f"{'/'.join(row.name)}; save maps in the same folders as the images"
            )
        if found:
            owners[found] = row.name
        source = maps[found] if found else None
        entries.append(SavedPrediction(row.name, row.probability, source, row.error))
    return entries + [
        SavedPrediction(name, None, path) for name, path in maps.items() if name not in owners
    ]


def _text(path: Path, errors: str = "strict") -> str:
    """A list's text.

    Args:
        path: The list.
        errors: What becomes of bytes that are not UTF-8.

    Raises:
        PredictionError: too large, or not UTF-8.
    """
    try:
        return read_bounded(path, MAX_LIST_BYTES).decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise PredictionError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from error


def _json(path: Path, kind: type | tuple[type, ...]) -> Any:
    """A list's content.

    Raises:
        PredictionError: not JSON, or of another kind.
    """
    try:
        content = json.loads(_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise PredictionError(f"{path}: not JSON ({error}); save it again") from error
    if not isinstance(content, kind):
        raise PredictionError(
            f"{path}: holds a {type(content).__name__}; needed is a dictionary or list"
        )
    return content


def _csv_rows(path: Path, errors: str = "strict") -> list[Row]:
    reader = csv.DictReader(io.StringIO(_text(path, errors), newline=""))
    try:
        return list(_rows_of(reader, path))
    except csv.Error as error:
        raise PredictionError(f"{path}:{reader.line_num}: {error}; save it as CSV") from error


def _rows_of(reader: csv.DictReader, path: Path) -> Iterator[Row]:
    columns = reader.fieldnames or []
    name = next((column for column in NAME_COLUMNS if column in columns), None)
    probability = next((column for column in PROBABILITY_COLUMNS if column in columns), None)
    if name is None or probability is None:
        raise PredictionError(
            f"{path}: the columns are {list(columns)}; needed are file and probability"
        )
    for row in reader:
        if row[name]:
            number = _number(row[probability], path, row[name]) if row[probability] else None
            error = read_cell(row.get("error") or "")
            yield Row(split_name(read_cell(row[name])), number, error)


def _read_loupe(folder: Path) -> list[SavedPrediction]:
    path = folder / "predictions.csv"
    # Names of files may be any bytes, and our table holds them as they are (`loupe.writing`).
    rows = _csv_rows(path, errors="surrogateescape")
    return _join(_maps_below(folder / "maps", ".png"), rows, path)


def _read_ddl2025(folder: Path) -> list[SavedPrediction]:
    path = folder / "predictions.txt"
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        name, comma, number_text = line.rpartition(",")
        if not comma:
            raise PredictionError(f"{path}:{number}: {line!r} is not `name.png,0.1234`")
        rows.append(Row(split_name(name.strip()), _number(number_text.strip(), path, name)))
    return _join(_maps_below(folder / "masks", ".png"), rows, path)


def _read_benco(folder: Path) -> list[SavedPrediction]:
    scores: dict[str, Any] = {}
    files = sorted(folder.glob("pred_label*.json"))
    # The combined file is written last and holds all others.
    for path in [path for path in files if "combined" in path.stem] or files:
        scores |= _json(path, dict)
    rows = [
        Row(split_name(name), _number(str(score), files[0], name)) for name, score in scores.items()
    ]
    return _join(_maps_below(folder / "pred", ".png"), rows, files[0])


def _coco_file(folder: Path) -> Path | None:
    files = sorted(folder.glob("*.json"))
    return files[0] if len(files) == 1 and not (folder / "pred").is_dir() else None


def _read_coco(folder: Path) -> list[SavedPrediction]:
    path = _coco_file(folder)
    assert path is not None
    content = _json(path, (dict, list))
    annotations, names = content, {}
    regions: dict[str, list[dict[str, Any]]] = {}
    try:
        if isinstance(content, dict):
            annotations = content.get("annotations", [])
            names = {image["id"]: image["file_name"] for image in content.get("images", [])}
            regions = {name: [] for name in names.values()}
        for annotation in annotations:
            image, score = annotation.get("image_id"), annotation.get("score", 1.0)
            name = names.get(image, image)
            if not isinstance(name, str):
                raise PredictionError(
                    f"{path}: image_id {image!r} names no file; write file names as image_id, "
                    'or give {"images": [{"id", "file_name"}], "annotations": [...]}'
                )
            region = {"segmentation": annotation["segmentation"], "score": float(score)}
            regions.setdefault(name, []).append(region)
    except (KeyError, TypeError, AttributeError) as error:
        raise PredictionError(f"{path}: not COCO ({error!r}); write COCO results") from error
    return [
        SavedPrediction(split_name(name), max((r["score"] for r in found), default=0.0), found)
        for name, found in regions.items()
    ]


def _read_plain(kind: str) -> Callable[[Path], list[SavedPrediction]]:
    """Reader of a folder of map files, with a table of scores beside them if there is one."""

    def read(folder: Path) -> list[SavedPrediction]:
        tables = [folder / "scores.csv", folder / "predictions.csv"]
        table = next((path for path in tables if path.is_file()), tables[0])
        rows = _csv_rows(table) if table.is_file() else []
        return _join(_maps_below(folder, MAP_SUFFIXES[kind]), rows, table)

    return read


def _has_maps(suffix: str) -> Callable[[Path], bool]:
    return lambda folder: next(folder.rglob(f"*{suffix}"), None) is not None


_KINDS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], list[SavedPrediction]]]] = {
    "loupe": (lambda f: (f / "predictions.csv").is_file() and (f / "maps").is_dir(), _read_loupe),
    "ddl2025": (lambda f: (f / "predictions.txt").is_file(), _read_ddl2025),
    "benco": (
        lambda f: (f / "pred").is_dir() and any(f.glob("pred_label*.json")),
        _read_benco,
    ),
    "coco": (lambda f: _coco_file(f) is not None, _read_coco),
    "trufor": (_has_maps(".npz"), _read_plain("trufor")),
    "npy": (_has_maps(".npy"), _read_plain("npy")),
    "png": (_has_maps(".png"), _read_plain("png")),
}
