"""Validates submissions to the DDL challenges: every fault has a name, and all are found at once.

A submission is a folder or a .zip, checked against the images that it is about. One file is in
memory at a time. The formats are in `writers.py`, the faults in FAULTS and docs/challenges.md.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from loupe.challenge.files import BadArchiveError, Files, TooLargeError
from loupe.challenge.writers import BOX_SCALE, BOXES_KEY, CLASS_KEY, CLASSES, TRACES_KEY
from loupe.data.images.decoding import read_samples, read_size
from loupe.data.images.errors import UnreadableImageError

FAULTS = {
    # Any submission.
    "bad-archive": "the .zip cannot be read",
    "nested-folder": "everything lies in one folder more than it should",
    "unsafe-file": "a link, a special file, or a name that leads outside",
    "file-too-large": "a file has more bytes than its content needs",
    "duplicate-file": "a .zip holds two files of one name",
    "unexpected-file": "a file that the format does not know",
    "bad-encoding": "a text is not UTF-8, or begins with a byte order mark",
    "missing-image": "an image has no prediction",
    "extra-image": "a prediction belongs to no image",
    # DDL-2025.
    "predictions-missing": "there is no predictions.txt",
    "bad-line": "a line is not `name.png,0.1234`",
    "name-has-folder": "a line names an image with its folder",
    "name-not-png": "a line's name does not end in .png",
    "duplicate-line": "two lines are of one image",
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
# Larger than any line, and than any explanation.
LINE_BYTES = 1024
SMALL_FILE = 1_000_000
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


def image_sizes(folder: str | Path) -> Sizes:
    """(height, width) of all images of a folder by stem, as they are looked at; headers only.

    Raises:
        ValueError: there is no image, two have one stem, or one cannot be opened.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if not path.is_file():
            continue
        if path.stem in sizes:
            raise ValueError(f"{path}: another image has this stem; a challenge tells them by it")
        sizes[path.stem] = read_size(path)
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
        faults = [Fault("unsafe-file", name) for name in files.unsafe]
        faults += [Fault("duplicate-file", name) for name in sorted(twice)]
        return faults + list(checks[form](files, sizes))
    except BadArchiveError as error:
        return [Fault("bad-archive", str(submission), str(error))]


def _read(files: Files, name: str, limit: int) -> tuple[bytes | None, list[Fault]]:
    """Content of a file, or its fault; a file that is larger than it can be is not read."""
    try:
        return files.read(name, limit), []
    except TooLargeError as error:
        return None, [Fault("file-too-large", name, str(error))]


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
        data, faults = _read(files, "predictions.txt", LINE_BYTES * (len(sizes) + 100))
        yield from faults
        if data is not None:
            text, faults = _decode(data, "predictions.txt")
            yield from faults
            yield from _check_lines(text, sizes)
    else:
        yield Fault("predictions-missing", str(files.path))
    named: set[str] = set()
    for name in files.names:
        path = PurePosixPath(name)
        if name == "predictions.txt":
            continue
        if len(path.parts) != 2 or path.parts[0] != "masks" or path.name.startswith("."):
            yield Fault("unexpected-file", name)
            continue
        named.add(path.stem)
        if path.suffix != ".png":
            yield Fault("mask-name", name)
        elif path.stem in sizes:
            height, width = sizes[path.stem]
            # Four samples of 16 bits are the most that a PNG holds.
            data, faults = _read(files, name, 8 * height * width + SMALL_FILE)
            yield from faults
            if data is not None:
                yield from _check_mask(data, name, (height, width))
    yield from _check_names(named, sizes, "masks/", "mask")


def _check_lines(text: str, sizes: Sizes) -> Iterator[Fault]:
    named: set[str] = set()
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
        if path.stem in named:
            yield Fault("duplicate-line", place, name)
        named.add(path.stem)
        yield from _check_probability(score, place)
    yield from _check_names(named, sizes, "predictions.txt", "image")


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
    # What the header says: decoders widen 1, 2 and 4 bits.
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if height * width > 4 * size[0] * size[1] + SMALL_FILE:
        yield Fault("mask-size", place, f"{width} x {height}, the image {size[1]} x {size[0]}")
        return
    try:
        pixels = read_samples(data, name=place).values
    except UnreadableImageError as error:
        yield Fault("mask-damaged", place, error.problem)
        return
    depth, colour = data[24], data[25]
    if colour != 0 or pixels.ndim != 2:
        yield Fault("mask-not-grey", place, f"colour type {colour}, {pixels.shape}")
        return
    if depth != 8:
        yield Fault("mask-not-8-bit", place, f"{depth} bits")
        return
    if pixels.shape != size:
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        yield Fault("mask-size", place, f"{found}, the image {size[1]} x {size[0]}")
    strange = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)[1:255]) + 1
    if strange.size:
        yield Fault("mask-values", place, f"{strange[:5].tolist()}")


def _check_ddlx2026(files: Files, sizes: Sizes) -> Iterator[Fault]:
    named: set[str] = set()
    for name in files.names:
        path = PurePosixPath(name)
        if len(path.parts) != 2 or path.parts[0] != "json" or path.suffix != ".json":
            yield Fault("unexpected-file", name)
            continue
        named.add(path.stem)
        data, faults = _read(files, name, SMALL_FILE)
        yield from faults
        if data is not None:
            yield from _check_json(data, name)
    yield from _check_names(named, sizes, "json/", "image")


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
    classified = content.get(CLASS_KEY)
    if CLASS_KEY in content and classified not in CLASSES:
        yield Fault("class-string", place, repr(classified))
    if BOXES_KEY in content:
        yield from _check_boxes(content[BOXES_KEY], classified, place)
    traces = content.get(TRACES_KEY, "-")
    if not isinstance(traces, str):
        yield Fault("traces-not-text", place, type(traces).__name__)
    elif classified == "fake" and not traces.strip():
        yield Fault("traces-empty", place)


def _check_boxes(boxes: Any, classified: Any, place: str) -> Iterator[Fault]:
    if not isinstance(boxes, list) or not all(isinstance(box, list) for box in boxes):
        yield Fault("boxes-not-a-list", place, repr(boxes)[:60])
        return
    if classified == "real" and boxes:
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
