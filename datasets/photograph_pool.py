#!/usr/bin/env python3
"""Packs photographs for making forgeries: pixels without loss in one file, read as it is needed.

    datasets/photograph_pool.py photographs/photographs.csv --output pool \
        --originals photographs/full_size.csv --repositories clones

A list of photographs has the columns `file,source,camera`; its files lie beside it. A list of
originals has `repo,commit,path,camera`; they are taken from git repositories (clones or mirrors)
below `--repositories`, where `--layout` says, and written to OUTPUT/originals.

Camera models are dealt out to train, valid and test, so that no model is in two of them; what names
no camera is for training. Writes for each split SPLIT.csv and SPLIT.pixels (uint8 RGB, row by row,
photograph after photograph) and, of the originals, SPLIT_originals.csv, a manifest of the files;
tables.json has the quantisation tables of the cameras for training.
Pixels are as stored: orientation tags are not applied, for traces lie in the stored raster.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from loupe.data.images.decoding import read_picture
from loupe.data.images.errors import UnreadableImageError

SPLITS = ("train", "valid", "test")
# Of the camera models: what each split but the first gets.
SHARES = {"test": 0.34, "valid": 0.16}
_SMALLEST_SIDE = 128
_FIELDS = ("offset", "height", "width", "original", "camera", "source")


class Photograph(NamedTuple):
    """One photograph and where it is from.

    Attributes:
        data: the file's bytes.
        name: of the file, without folders.
        camera: model, "" = unknown.
        source: repository, commit and path.
        original: whether it has its full size.
    """

    data: bytes
    name: str
    camera: str
    source: str
    original: bool


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=Path, help="CSV: file,source,camera")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--originals", type=Path, help="CSV: repo,commit,path,camera")
    parser.add_argument("--repositories", type=Path, help="folder of git repositories")
    parser.add_argument(
        "--layout",
        default="{owner}/{name}",
        help="where a repository lies in that folder (default %(default)s)",
    )
    parser.add_argument(
        "--training-only",
        nargs="*",
        default=[],
        metavar="WORD",
        help="cameras with such a word in their name are no cameras, and for training",
    )
    return parser.parse_args(words)


def split_of(camera: str, training_only: list[str]) -> str:
    """The split of a camera model, decided by its name alone."""
    if not camera or any(word.lower() in camera.lower() for word in training_only):
        return "train"
    digest = hashlib.sha256(camera.strip().lower().encode()).digest()
    place = int.from_bytes(digest[:4], "big") / 2**32
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    return "train"


def read_photographs(path: Path) -> Iterator[Photograph]:
    """Photographs of a list beside its files."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            data = (path.parent / row["file"]).read_bytes()
            yield Photograph(data, Path(row["file"]).name, row["camera"], row["source"], False)


def read_originals(path: Path, repositories: Path, layout: str) -> Iterator[Photograph]:
    """Originals of a list, each taken from its repository at its commit; missing ones are named."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        owner, name = row["repo"].split("/") if "/" in row["repo"] else ("", row["repo"])
        folder = repositories / layout.format(owner=owner, name=name)
        source = f"{row['repo']}@{row['commit']}:{row['path']}"
        command = ["git", "-C", str(folder), "show", f"{row['commit']}:{row['path']}"]
        shown = subprocess.run(command, capture_output=True) if folder.is_dir() else None
        if shown is None or shown.returncode:
            reason = "no repository" if shown is None else shown.stderr.decode().strip()
            print(f"left out: {source}: {reason}", file=sys.stderr)
            continue
        ending = Path(row["path"]).suffix.lower()
        yield Photograph(shown.stdout, f"{number:05d}{ending}", row["camera"], source, True)


def decode(data: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB as stored; None where it is no usable picture."""
    try:
        image = read_picture(data).pixels
    except UnreadableImageError:
        return None
    return image if min(image.shape[:2]) >= _SMALLEST_SIDE else None


def tables_of(data: bytes) -> tuple[tuple[int, ...], ...] | None:
    """Luma's and chroma's quantisation tables of a JPEG, row by row; None of other files."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            tables = getattr(image, "quantization", None) or {}
    except OSError:
        return None
    pair = tuple(tuple(tables[key]) for key in (0, 1) if key in tables)
    # Baseline JPEG has steps of 8 bits.
    return pair if len(pair) == 2 and max(map(max, pair)) < 256 else None


class PoolWriter:
    """Appends photographs to the files of a split."""

    def __init__(self, folder: Path, split: str) -> None:
        self.offset = self.count = 0
        self._pixels = (folder / f"{split}.pixels").open("wb")
        self._list = (folder / f"{split}.csv").open("w", newline="", encoding="utf-8")
        self._rows = csv.DictWriter(self._list, _FIELDS)
        self._rows.writeheader()
        self._originals = (folder / f"{split}_originals.csv").open(
            "w", newline="", encoding="utf-8"
        )
        self._files = csv.writer(self._originals)
        self._files.writerow(["image", "mask", "label", "technique", "source", "camera"])
        self._folder = folder

    def add(self, photograph: Photograph, image: np.ndarray) -> None:
        """Writes pixels and row and, of an original, its file."""
        self._pixels.write(image.tobytes())
        self._rows.writerow(
            {
                "offset": self.offset,
                "height": image.shape[0],
                "width": image.shape[1],
                "original": int(photograph.original),
                "camera": photograph.camera,
                "source": photograph.source,
            }
        )
        self.offset += image.nbytes
        self.count += 1
        if photograph.original:
            place = self._folder / "originals" / photograph.name
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(photograph.data)
            entry = [f"originals/{photograph.name}", "", 0, "authentic", photograph.source]
            self._files.writerow([*entry, photograph.camera])

    def close(self) -> None:
        """Closes the files."""
        for file in (self._pixels, self._list, self._originals):
            file.close()


def main(words: list[str] | None = None) -> None:
    """Writes the pool."""
    arguments = parse_arguments(words)
    arguments.output.mkdir(parents=True, exist_ok=True)
    writers = {split: PoolWriter(arguments.output, split) for split in SPLITS}
    sources = [read_photographs(arguments.photographs)]
    if arguments.originals:
        sources.append(
            read_originals(arguments.originals, arguments.repositories, arguments.layout)
        )
    tables: set[tuple[tuple[int, ...], ...]] = set()
    for source in sources:
        for photograph in source:
            image = decode(photograph.data)
            if image is None:
                print(f"left out: {photograph.source}: unreadable or small", file=sys.stderr)
                continue
            split = split_of(photograph.camera, arguments.training_only)
            writers[split].add(photograph, image)
            found = tables_of(photograph.data)
            if found and split == "train":
                tables.add(found)
    (arguments.output / "tables.json").write_text(json.dumps(sorted(tables)), encoding="utf-8")
    for split, writer in writers.items():
        writer.close()
        print(f"{split}: {writer.count} photographs, {writer.offset / 1e6:.0f} megabytes")


if __name__ == "__main__":
    main()
