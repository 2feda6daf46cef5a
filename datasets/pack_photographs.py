#!/usr/bin/env python3
"""Chooses photographs for training that fit a number of megabytes, for a machine without a network.

    datasets/pack_photographs.py output/pool/train_originals.csv photographs/photographs.csv \
        --megabytes 48 --output packed
    datasets/photograph_pool.py packed/photographs.csv --output pool    # on the other machine

The lists are a manifest of originals (`image,source,camera`) and one of photographs
(`file,source,camera`), as datasets/photograph_pool.py writes and reads them. Originals get three
quarters of the room, one of each camera model in turn, the smallest file first; files are copied
byte by byte.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

# Of the room: what photographs at their full size get.
ORIGINALS_SHARE = 0.75


class Entry(NamedTuple):
    """A file to choose from."""

    path: Path
    source: str
    camera: str
    size: int


def read_entries(path: Path) -> list[Entry]:
    """Files of a list beside it; those that the splits of the pool leave for training."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    entries = []
    for row in rows:
        place = path.parent / (row.get("image") or row["file"])
        entries.append(Entry(place, row["source"], row["camera"], place.stat().st_size))
    return entries


def choose(entries: list[Entry], room: int) -> list[Entry]:
    """Entries that fit, one of each camera model in turn, the smallest first."""
    by_camera: dict[str, list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda one: one.size):
        # Without a camera's name the place of origin stands for it.
        by_camera[entry.camera or entry.source.split("@")[0]].append(entry)
    turns = [
        entry
        for turn in range(max(map(len, by_camera.values()), default=0))
        for files in by_camera.values()
        for entry in files[turn : turn + 1]
    ]
    chosen, taken = [], 0
    for entry in turns:
        if taken + entry.size <= room:
            chosen.append(entry)
            taken += entry.size
    return chosen


def main(words: list[str] | None = None) -> None:
    """Chooses and copies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("originals", type=Path, help="CSV: image,source,camera")
    parser.add_argument("photographs", type=Path, help="CSV: file,source,camera")
    parser.add_argument("--megabytes", type=float, default=48.0)
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args(words)
    room = int(1e6 * arguments.megabytes)
    chosen = choose(read_entries(arguments.originals), int(ORIGINALS_SHARE * room))
    left = room - sum(entry.size for entry in chosen)
    chosen += choose(read_entries(arguments.photographs), left)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "photographs.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "source", "camera"])
        for number, entry in enumerate(chosen):
            name = f"{number:04d}{entry.path.suffix}"
            shutil.copyfile(entry.path, arguments.output / name)
            table.writerow([name, entry.source, entry.camera])
    size = sum(entry.size for entry in chosen)
    print(f"{len(chosen)} photographs, {size / 1e6:.1f} megabytes: {arguments.output}")


if __name__ == "__main__":
    main()
