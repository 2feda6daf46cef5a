"""Reads the saved answers of any detector: one folder, one of the kinds below.

    loupe        predictions.csv (file,probability,error) and maps/, as tools/predict.py writes
    ddl2025      predictions.txt (name.png,0.1234) and masks/
    benco        pred/ and pred_label*.json, as IMDL-BenCo writes
    coco         one .json of COCO results or a COCO data set with RLE masks
    trufor       .npz files with map, conf, score, imgsize
    npy          .npy files
    png          .png files (8 or 16 bit probability)

The last two may have image scores in scores.csv or predictions.csv beside them.
1 = forged. A prediction belongs to the image of the same stem; where stems repeat, the folders
above must agree as well.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".npz", ".npy"}
MAP_SUFFIXES = {"trufor": ".npz", "npy": ".npy", "png": ".png"}


class PredictionError(ValueError):
    """A folder of predictions that cannot be used as it is; names the file and the remedy."""


Name = tuple[str, ...]


class SavedPrediction(NamedTuple):
    """One image's saved answer, not yet read.

    Attributes:
        name: the image's name as far as it is known: folders, then the file, with or without its
            suffix, e.g. ("train", "0001.jpg").
        score: probability that the image is forged, None where the file with the map may have it.
        source: the map: a path, or regions with run lengths and scores (an empty list says that
            nothing is forged); None where there is none.
        error: the detector's own message that it could not answer; "" otherwise.
    """

    name: Name
    score: float | None
    source: Path | list[dict[str, Any]] | None
    error: str = ""


class PredictionSet(NamedTuple):
    """All saved answers of a folder.

    Attributes:
        kind: one of the kinds above.
        entries: in the order of their names.
    """

    kind: str
    entries: list[SavedPrediction]


class ScoreRow(NamedTuple):
    """A line of a table of scores.

    Attributes:
        name: the image.
        score: its probability, None where there is none.
        error: why there is none; "" otherwise.
    """

    name: Name
    score: float | None
    error: str = ""


def split_name(name: str | Path) -> Name:
    """Folders and file: "a/b.jpg" -> ("a", "b.jpg")."""
    parts = Path(str(name).replace("\\", "/")).parts
    return tuple(part for part in parts if part not in ("/", "."))


def without_suffix(name: Name) -> Name:
    """The name with its image suffix cut off, if it has one."""
    last = Path(name[-1])
    return (*name[:-1], last.stem if last.suffix.lower() in IMAGE_SUFFIXES else last.name)


def find_predictions(folder: str | Path) -> PredictionSet:
    """Recognises the kind of a folder and lists its answers; maps are not read.

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


def _join(maps: dict[Name, Path], rows: Iterable[ScoreRow], table: Path) -> list[SavedPrediction]:
    """Rows of scores with their maps, and the maps that no row has."""
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
        entries.append(SavedPrediction(row.name, row.score, source, row.error))
    return entries + [
        SavedPrediction(name, None, path) for name, path in maps.items() if name not in owners
    ]


def _csv_rows(path: Path) -> list[ScoreRow]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        columns = reader.fieldnames or []
        name = next((c for c in ("file", "image", "name", "filename") if c in columns), None)
        score = next((c for c in ("probability", "score", "prediction") if c in columns), None)
        if name is None or score is None:
            raise PredictionError(
                f"{path}: the columns are {list(columns)}; needed are file and probability"
            )
        return [
            ScoreRow(
                split_name(row[name]),
                _number(row[score], path, row[name]) if row[score] else None,
                row.get("error") or "",
            )
            for row in reader
        ]


def _read_loupe(folder: Path) -> list[SavedPrediction]:
    path = folder / "predictions.csv"
    return _join(_maps_below(folder / "maps", ".png"), _csv_rows(path), path)


def _read_ddl2025(folder: Path) -> list[SavedPrediction]:
    path = folder / "predictions.txt"
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        name, comma, score = line.rpartition(",")
        if not comma:
            raise PredictionError(f"{path}:{number}: {line!r} is not `name.png,0.1234`")
        rows.append(ScoreRow(split_name(name.strip()), _number(score.strip(), path, name)))
    return _join(_maps_below(folder / "masks", ".png"), rows, path)


def _read_benco(folder: Path) -> list[SavedPrediction]:
    scores: dict[str, Any] = {}
    files = sorted(folder.glob("pred_label*.json"))
    # The combined file is written last and holds all others.
    for path in [path for path in files if "combined" in path.stem] or files:
        scores |= json.loads(path.read_text())
    rows = [
        ScoreRow(split_name(name), _number(str(score), files[0], name))
        for name, score in scores.items()
    ]
    return _join(_maps_below(folder / "pred", ".png"), rows, files[0])


def _coco_file(folder: Path) -> Path | None:
    files = sorted(folder.glob("*.json"))
    return files[0] if len(files) == 1 and not (folder / "pred").is_dir() else None


def _read_coco(folder: Path) -> list[SavedPrediction]:
    path = _coco_file(folder)
    content = json.loads(path.read_text())
    annotations, names = content, {}
    if isinstance(content, dict):
        annotations = content.get("annotations", [])
        names = {image["id"]: image["file_name"] for image in content.get("images", [])}
    regions: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for annotation in annotations:
        image = annotation.get("image_id")
        name = names.get(image, image)
        if not isinstance(name, str):
            raise PredictionError(
                f"{path}: image_id {image!r} names no file; write file names as image_id, "
                'or give {"images": [{"id", "file_name"}], "annotations": [...]}'
            )
        regions.setdefault(name, []).append(
            {"segmentation": annotation["segmentation"], "score": annotation.get("score", 1.0)}
        )
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


class Matcher:
    """Finds each image's prediction by stem, and by folders and suffix where stems repeat."""

    def __init__(self, predictions: PredictionSet) -> None:
        """Indexes the predictions."""
        self._by_stem: dict[str, list[SavedPrediction]] = defaultdict(list)
        for entry in predictions.entries:
            # A map may be named after the whole image ("a.jpg.npz") or after its stem, which may
            # itself end like a suffix; so it is found under both.
            for stem in {entry.name[-1], without_suffix(entry.name)[-1]}:
                self._by_stem[stem].append(entry)

    def find(self, file_name: str) -> SavedPrediction | None:
        """The prediction of an image file; None without one.

        Raises:
            PredictionError: several predictions fit equally well.
        """
        name = split_name(file_name)
        candidates = self._by_stem.get(without_suffix(name)[-1], [])
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        agreement = [_agreement(name, entry.name) for entry in candidates]
        best = [c for c, a in zip(candidates, agreement, strict=True) if a == max(agreement)]
        if len(best) > 1:
            names = ["/".join(entry.name) for entry in best]
            raise PredictionError(
                f"{file_name}: the predictions {names} fit equally well; "
                "save predictions in the same folders as the images"
            )
        return best[0]


def _agreement(image: Name, saved: Name) -> tuple[int, bool]:
    """How many folders agree, from the last one upwards, and whether the suffix does."""
    folders = zip(reversed(image[:-1]), reversed(saved[:-1]), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], folders)), (
        image[-1] == saved[-1]
    )


def match_predictions(
    file_names: list[str], predictions: PredictionSet
) -> tuple[list[SavedPrediction | None], list[str]]:
    """Each image's prediction, and the names of predictions that no image has.

    Raises:
        PredictionError: a prediction fits two images, or an image has several.
    """
    matcher = Matcher(predictions)
    found = [matcher.find(name) for name in file_names]
    owners: dict[Name, str] = {}
    for name, entry in zip(file_names, found, strict=True):
        if entry is None:
            continue
        if entry.name in owners:
            raise PredictionError(
                f"the prediction {'/'.join(entry.name)} fits two images: {owners[entry.name]} and "
                f"{name}; save predictions in the same folders as the images"
            )
        owners[entry.name] = name
    unused = ["/".join(entry.name) for entry in predictions.entries if entry.name not in owners]
    return found, unused
