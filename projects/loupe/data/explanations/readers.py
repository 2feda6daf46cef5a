"""Readers of published explanations: LLaVA's JSON, descriptions of SID-Set, MMTD-Set.

Each gives dataset dicts as `loupe.data.sources` does, with `question` and `explanation`. A missing
file that an entry names, or an entry that lacks a field, is an error that names both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loupe.data.sources.entries import DatasetDict, DatasetError, make_dataset_dict
from loupe.explanation.prompts import QUESTION

_IMAGE_MARK = "<image>"
# Fields of SID-Set's descriptions, in the order in which they are told.
_SID_FIELDS = ("Type", "Areas", "Tampered Content", "Visual Inconsistencies")
_FORGED_FOLDERS = {"tampered", "full_synthetic", "fake", "forged", "photoshop", "aigc", "deepfake"}
_REAL = ("real", "authentic", "not tampered", "no tampering")
Record = dict[str, Any]


def is_explanations(name: str) -> bool:
    """Whether a data set's name is a JSON file whose entries have texts."""
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open(encoding="utf-8") as file:
        return file.read(1) == "["


def read_explanations(path: str | Path) -> list[DatasetDict]:
    """Dataset dicts of a JSON list of entries in any of the layouts.

    - LLaVA (and MMTD-Set): `image`, perhaps `mask`, and `conversations`, of which the first
      question and the first text behind it count.
    - SID-Set: `image`, perhaps `mask`, and the fields Type, Areas, Tampered Content, Visual
      Inconsistencies.

    Paths are relative to the file. An entry is forged if it has a mask, or if its label or a folder
    of its path says so.

    Raises:
        DatasetError: The file is no such list, or an entry is not whole.
    """
    path = Path(path)
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(records, list) or not records:
        raise DatasetError(f"{path}: it must be a list of entries, and not empty")
    return [_entry(path, number, record) for number, record in enumerate(records)]


def _entry(path: Path, number: int, record: Record) -> DatasetDict:
    where = f"{path}, entry {number}"
    if not isinstance(record, dict) or not isinstance(record.get("image"), str):
        raise DatasetError(f'{where}: it has no "image"; name its file')
    question, explanation = _reader_of(record, where)(record, where)
    image = _file(path, record["image"], where)
    # Some sets name the mask of an image without one by an empty string.
    mask = _file(path, record["mask"], where) if record.get("mask") else None
    entry = make_dataset_dict(
        image,
        str(record.get("id", f"{path.stem}-{number:06d}")),
        label=_label(record, mask),
        mask_file_name=mask,
    )
    return entry | {"question": question, "explanation": explanation}


def _reader_of(record: Record, where: str) -> Callable[[Record, str], tuple[str, str]]:
    if "conversations" in record:
        return _read_conversation
    if any(field in record for field in _SID_FIELDS):
        return _read_fields
    raise DatasetError(
        f'{where}: it has neither "conversations" (LLaVA, MMTD-Set) nor any of '
        f"{', '.join(_SID_FIELDS)} (SID-Set)"
    )


def _read_conversation(record: Record, where: str) -> tuple[str, str]:
    try:
        turns = {"human": "", "gpt": ""}
        for turn in record["conversations"]:
            if turn["from"] in turns and not turns[turn["from"]]:
                turns[turn["from"]] = str(turn["value"])
    except (TypeError, KeyError) as error:
        raise DatasetError(f"{where}: its conversations lack {error}") from error
    question = turns["human"].replace(_IMAGE_MARK, "").strip()
    if not question or not turns["gpt"].strip():
        raise DatasetError(f"{where}: it lacks the question of a human or the text of gpt")
    return question, turns["gpt"].strip()


def _read_fields(record: Record, where: str) -> tuple[str, str]:
    parts = [f"{field}: {_text(record[field])}" for field in _SID_FIELDS if record.get(field)]
    if not parts:
        raise DatasetError(f"{where}: all its fields are empty")
    return QUESTION, " ".join(parts)


def _text(value: Any) -> str:
    """A field as one line: lists and tables of details become sentences."""
    if isinstance(value, dict):
        return " ".join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return " ".join(str(value).split())


def _file(path: Path, name: str, where: str) -> str:
    file = path.parent / name
    if not file.is_file():
        raise DatasetError(f"{where}: {file} is missing; put it there, or correct the path")
    return str(file)


def _label(record: Record, mask: str | None) -> int:
    if "label" in record:
        return int(bool(record["label"]))
    kind = str(record.get("Type", "")).lower()
    if any(word in kind for word in _REAL):
        return 0
    forged = mask is not None or bool(kind)
    return int(forged or bool(_FORGED_FOLDERS & set(Path(record["image"]).parts)))
