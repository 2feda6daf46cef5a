"""Validates submissions to the DDL challenges: every fault has a name, and all are found at once.

A submission is a folder or a .zip, checked against the images that it answers. One file is in
memory at a time. The formats are in `challenge.py`, the faults in FAULTS and docs/challenges.md.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from loupe.challenge.writers import BOX_SCALE, BOXES_KEY, CLASS_KEY, CLASSES, TRACES_KEY
from loupe.data.images.decoding import read_samples, read_size
from loupe.data.images.errors import UnreadableImageError

FAULTS = {
    # Any submission.
    "bad-archive": "the .zip cannot be read",
    "nested-folder": "everything lies in one folder more than it should",
    "duplicate-file": "a .zip holds two files of one name",
    "unexpected-file": "a file that the format does not know",
    "bad-encoding": "a text is not UTF-8, or begins with a byte order mark",
    "missing-image": "an image has no answer",
    "extra-image": "an answer belongs to no image",
    # DDL-2025.
    "predictions-missing": "there is no predictions.txt",
    "bad-line": "a line is not `name.png,0.1234`",
    "name-has-folder": "a line names an image with its folder",
    "name-not-png": "a line's name does not end in .png",
    "duplicate-line": "two lines answer one image",
    "number-format": "a probability is not written with four decimals",
    "not-a-number": "a probability is NaN or infinite",
    "probability-out-of-range": "a probability is below 0 or above 1",
    "missing-mask": "an image has no mask",
    "extra-mask": "a mask belongs to no image",
    "mask-name": "a mask's name does not end in .png",
    "mask-not-png": "a mask's content is not PNG",
    "mask-damaged": "a mask cannot be decoded",
    "mask-not-8-bit": "a mask has 1 or 16 bits",
    "mask-not-grey": "a mask has colours, a palette or transparency",
    "mask-size": "a mask is not of its image's size",
    "mask-values": "a mask has values other than 0 and 255",
    # DDL-X-2026.
    "invalid-json": "a file is not JSON (NaN and Infinity are not)",
    "not-an-object": "a file's JSON is not an object",
    "duplicate-key": "a key is there twice",
    "missing-key": "one of the three keys is missing",
    "unknown-key": "a key that the format does not know",
    "class-string": "the class is not fake or real",
    "boxes-not-a-list": "the boxes are not a list of lists",
    "box-length": "a box has not four numbers",
    "box-not-a-number": "a coordinate is not a finite number",
    "box-out-of-range": "a coordinate is below 0 or above 1000",
    "box-order": "x1 > x2 or y1 > y2",
    "duplicate-box": "a box is there twice",
    "boxes-on-real": "an image called real has boxes",
    "traces-not-text": "the traces are not a text",
    "traces-empty": "the traces of a fake image are empty",
}

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_FOUR_DECIMALS = re.compile(r"\d\.\d{4}")

# (height, width) of each image by stem.
Sizes = Mapping[str, tuple[int, int]]


class Fault(NamedTuple):
    """One thing that is wrong.

    Attributes:
        name: one of FAULTS.
        place: the file, with the line where it has lines.
        found: what is there.
    """

    name: str
    place: str
    found: str = ""

    def __str__(self) -> str:
        """One line: name, place, what is wrong, what is there."""
        found = f": {self.found}" if self.found else ""
        return f"{self.name}: {self.place}: {FAULTS[self.name]}{found}"


class BadArchiveError(ValueError):
    """A .zip that cannot be read."""


class Files:
    """The files of a folder or a .zip, by their relative names.

    Attributes:
        names: sorted, with "/" between folders.
    """

    def __init__(self, path: str | Path) -> None:
        """Lists them.

        Raises:
            FileNotFoundError: there is nothing.
            BadArchiveError: the .zip cannot be read.
        """
        self.path = Path(path)
        self._archive = None
        if self.path.is_dir():
            found = (file for file in self.path.rglob("*") if not file.is_dir())
            self.names = sorted(file.relative_to(self.path).as_posix() for file in found)
        elif self.path.is_file():
            try:
                self._archive = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise BadArchiveError(str(error)) from error
            names = (entry.filename for entry in self._archive.infolist() if not entry.is_dir())
            self.names = sorted(names)
        else:
            raise FileNotFoundError(f"{path}: no such folder or .zip; check the path")

    def read(self, name: str) -> bytes:
        """Content of one file.

        Raises:
            BadArchiveError: its part of the .zip is damaged.
        """
        if self._archive is None:
            return (self.path / name).read_bytes()
        try:
            return self._archive.read(name)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise BadArchiveError(f"{name}: {error}") from error


def image_sizes(folder: str | Path) -> Sizes:
    """(height, width) of all images of a folder by stem, as they are looked at; headers only.

    Raises:
        ValueError: there is no image, two have one stem, or one cannot be opened.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in sizes:
            raise ValueError(f"{path}: another image has this stem; a challenge tells them by it")
        try:
            sizes[path.stem] = read_size(path)
        except UnreadableImageError as error:
            raise ValueError(
                f"{path}: not a readable image ({error.problem}); remove it"
            ) from error
    if not sizes:
        raise ValueError(f"{folder}: there are no images in it; give the challenge's images")
    return sizes


def validate(submission: str | Path, form: str, sizes: Sizes) -> list[Fault]:
    """All faults of a submission, in the order of its files; an empty list says it is valid.

    Args:
        submission: a folder or a .zip.
        form: "ddl2025" or "ddlx2026".
        sizes: (height, width) of the images by stem, see `image_sizes`.

    Raises:
        FileNotFoundError: there is no submission.
        ValueError: there is no such form.
    """
    checks: dict[str, Callable[[Files, Sizes], Iterator[Fault]]] = {
        "ddl2025": _check_ddl2025,
        "ddlx2026": _check_ddlx2026,
    }
    if form not in checks:
        raise ValueError(f"unknown form {form!r}; known are {', '.join(checks)}")
    try:
        files = Files(submission)
        tops = {PurePosixPath(name).parts[0] for name in files.names}
        nested = len(tops) == 1 and all("/" in name for name in files.names)
        if nested and not tops & {"masks", "json"}:
            return [Fault("nested-folder", tops.pop(), "put its content at the top")]
        twice = {a for a, b in zip(files.names, files.names[1:], strict=False) if a == b}
        return [Fault("duplicate-file", name) for name in sorted(twice)] + list(
            checks[form](files, sizes)
        )
    except BadArchiveError as error:
        return [Fault("bad-archive", str(submission), str(error))]


def _decode(data: bytes, place: str) -> tuple[str, list[Fault]]:
    """The text, and its fault if it has one; undecodable bytes are replaced."""
    if data.startswith(b"\xef\xbb\xbf"):
        return data[3:].decode(errors="replace"), [Fault("bad-encoding", place, "UTF-8 with BOM")]
    try:
        return data.decode(), []
    except UnicodeDecodeError as error:
        return data.decode(errors="replace"), [Fault("bad-encoding", place, error.reason)]


def _check_names(stems: set[str], sizes: Sizes, place: str, words: str) -> Iterator[Fault]:
    for stem in sorted(sizes.keys() - stems):
        yield Fault(f"missing-{words}", place, stem)
    for stem in sorted(stems - sizes.keys()):
        yield Fault(f"extra-{words}", place, stem)


def _check_ddl2025(files: Files, sizes: Sizes) -> Iterator[Fault]:
    if "predictions.txt" in files.names:
        text, faults = _decode(files.read("predictions.txt"), "predictions.txt")
        yield from faults
        yield from _check_lines(text, sizes)
    else:
        yield Fault("predictions-missing", str(files.path))
    answered: set[str] = set()
    for name in files.names:
        path = PurePosixPath(name)
        if name == "predictions.txt":
            continue
        if len(path.parts) != 2 or path.parts[0] != "masks" or path.name.startswith("."):
            yield Fault("unexpected-file", name)
            continue
        answered.add(path.stem)
        if path.suffix != ".png":
            yield Fault("mask-name", name)
        elif path.stem in sizes:
            yield from _check_mask(files.read(name), name, sizes[path.stem])
    yield from _check_names(answered, sizes, "masks/", "mask")


def _check_lines(text: str, sizes: Sizes) -> Iterator[Fault]:
    answered: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        place = f"predictions.txt:{number}"
        name, comma, score = line.rpartition(",")
        path = PurePosixPath(name)
        heading = path.suffix != ".png" and not _is_number(score)
        if not comma or "," in name or not name or line != line.strip() or heading:
            yield Fault("bad-line", place, repr(line))
            continue
        if "/" in name or "\\" in name:
            yield Fault("name-has-folder", place, name)
        elif path.suffix != ".png":
            yield Fault("name-not-png", place, name)
        if path.stem in answered:
            yield Fault("duplicate-line", place, name)
        answered.add(path.stem)
        yield from _check_probability(score, place)
    yield from _check_names(answered, sizes, "predictions.txt", "image")


def _is_number(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text)) or _is_special(text)


def _is_special(text: str) -> bool:
    return text.strip().lower().lstrip("+-") in ("nan", "inf", "infinity")


def _check_probability(text: str, place: str) -> Iterator[Fault]:
    if _is_special(text):
        yield Fault("not-a-number", place, text)
    elif not _NUMBER.fullmatch(text):
        yield Fault("number-format", place, repr(text))
    elif not 0 <= float(text) <= 1:
        yield Fault("probability-out-of-range", place, text)
    elif not _FOUR_DECIMALS.fullmatch(text):
        yield Fault("number-format", place, repr(text))


def _check_mask(data: bytes, place: str, size: tuple[int, int]) -> Iterator[Fault]:
    """At most one fault of form, else one of size and one of values."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        yield Fault("mask-not-png", place, f"begins with {data[:8]!r}")
        return
    try:
        pixels = read_samples(data, name=place).values
    except UnreadableImageError as error:
        yield Fault("mask-damaged", place, error.problem)
        return
    # Bit depth and colour type as they are stored: decoders widen 2 and 4 bits.
    depth, colour = data[24], data[25]
    if colour != 0 or pixels.ndim != 2:
        yield Fault("mask-not-grey", place, f"colour type {colour}, {pixels.shape}")
        return
    if depth != 8:
        yield Fault("mask-not-8-bit", place, f"{depth} bits")
        return
    if pixels.shape != tuple(size):
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        yield Fault("mask-size", place, f"{found}, the image {size[1]} x {size[0]}")
    strange = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)[1:255]) + 1
    if strange.size:
        yield Fault("mask-values", place, f"{strange[:5].tolist()}")


def _check_ddlx2026(files: Files, sizes: Sizes) -> Iterator[Fault]:
    answered: set[str] = set()
    for name in files.names:
        path = PurePosixPath(name)
        if len(path.parts) != 2 or path.parts[0] != "json" or path.suffix != ".json":
            yield Fault("unexpected-file", name)
            continue
        answered.add(path.stem)
        yield from _check_json(files.read(name), name)
    yield from _check_names(answered, sizes, "json/", "image")


def _check_json(data: bytes, place: str) -> Iterator[Fault]:
    text, faults = _decode(data, place)
    yield from faults
    twice: list[str] = []

    def join(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        content = json.loads(text, object_pairs_hook=join, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        yield Fault("invalid-json", place, str(error))
        return
    if not isinstance(content, dict):
        yield Fault("not-an-object", place, type(content).__name__)
        return
    yield from (Fault("duplicate-key", place, key) for key in twice)
    known = (CLASS_KEY, BOXES_KEY, TRACES_KEY)
    yield from (Fault("missing-key", place, key) for key in known if key not in content)
    yield from (Fault("unknown-key", place, key) for key in content if key not in known)
    verdict = content.get(CLASS_KEY)
    if CLASS_KEY in content and verdict not in CLASSES:
        yield Fault("class-string", place, repr(verdict))
    if BOXES_KEY in content:
        yield from _check_boxes(content[BOXES_KEY], verdict, place)
    traces = content.get(TRACES_KEY, "-")
    if not isinstance(traces, str):
        yield Fault("traces-not-text", place, type(traces).__name__)
    elif verdict == "fake" and not traces.strip():
        yield Fault("traces-empty", place)


def _check_boxes(boxes: Any, verdict: Any, place: str) -> Iterator[Fault]:
    if not isinstance(boxes, list) or not all(isinstance(box, list) for box in boxes):
        yield Fault("boxes-not-a-list", place, repr(boxes)[:60])
        return
    if verdict == "real" and boxes:
        yield Fault("boxes-on-real", place, f"{len(boxes)} boxes")
    seen: set[tuple[float, ...]] = set()
    for box in boxes:
        numbers = [x for x in box if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(box) != 4:
            yield Fault("box-length", place, repr(box))
        elif len(numbers) != 4 or any(math.isinf(x) for x in numbers if isinstance(x, float)):
            yield Fault("box-not-a-number", place, repr(box))
        elif not all(0 <= x <= BOX_SCALE for x in numbers):
            yield Fault("box-out-of-range", place, repr(box))
        elif box[0] > box[2] or box[1] > box[3]:
            yield Fault("box-order", place, repr(box))
        elif tuple(box) in seen:
            yield Fault("duplicate-box", place, repr(box))
        else:
            seen.add(tuple(box))
