#!/usr/bin/env python3
"""Splits a manifest so that no photograph has a part in both training and test.

    datasets/split_by_source.py misd/manifest.csv --output misd/split --unseen casia/manifest.csv

A forged image is made of several photographs, which its name tells (CASIA: `ani_00010`, `pla0005`,
...). Images that share one, directly or through others, stay together. The groups are dealt out by
size, the largest to training, until the test set has its share.

Writes train.csv and test.csv, and for each `--unseen` manifest NAME_unseen.csv with those of its
images that share no photograph with train.csv. Images are not copied. What of split/train.csv may
be trained on where OTHER is tested: `OTHER/manifest.csv --test-share 0 --unseen split/train.csv`.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
from collections import defaultdict
from pathlib import Path

CASIA_NAMES = r"(ani|arc|art|cha|ind|nat|obj|pla|sec|txt)_?(\d{4,5})"

Row = dict[str, str]


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path, help="CSV: image,mask,label,technique,source")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--test-share", type=float, default=0.3, help="of the images (default 0.3)")
    parser.add_argument("--unseen", type=Path, nargs="*", default=[], help="other manifests")
    parser.add_argument("--pattern", default=CASIA_NAMES, help="finds photographs in a file name")
    return parser.parse_args(words)


def photographs(row: Row, pattern: str) -> set[tuple[str, int]]:
    """Category and number of the photographs that an image was made of.

    Numbers are compared as such, so that `ani_0010` of one release and `ani_00010` of another count
    as the same photograph: rather too careful than not enough.
    """
    return {(kind, int(number)) for kind, number in re.findall(pattern, Path(row["image"]).name)}


def groups_of(rows: list[Row], pattern: str) -> list[list[Row]]:
    """Rows connected by photographs, the largest group first.

    Raises:
        ValueError: A name tells no photograph.
    """
    group_of: dict[tuple[str, int], int] = {}
    members: dict[int, list[Row]] = defaultdict(list)
    for number, row in enumerate(rows):
        sources = photographs(row, pattern)
        if not sources:
            raise ValueError(f"{row['image']}: no photograph in its name; give --pattern")
        joined = {group_of[source] for source in sources if source in group_of}
        merged = members[number]
        for other in joined:
            merged += members.pop(other)
        merged.append(row)
        for member in merged:
            group_of |= dict.fromkeys(photographs(member, pattern), number)
    return sorted(members.values(), key=lambda group: (-len(group), group[0]["image"]))


def split(rows: list[Row], pattern: str, test_share: float) -> tuple[list[Row], list[Row]]:
    """Training and test rows: each group goes where most images are still wanted."""
    wanted = {"train": (1 - test_share) * len(rows), "test": test_share * len(rows)}
    parts: dict[str, list[Row]] = {"train": [], "test": []}
    for group in groups_of(rows, pattern):
        part = max(wanted, key=lambda name: wanted[name] - len(parts[name]))
        parts[part] += group
    return parts["train"], parts["test"]


def read(manifest: Path) -> list[Row]:
    """Rows of a manifest, with paths that hold from anywhere."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for key in ("image", "mask"):
            if row.get(key):
                row[key] = str((manifest.parent / row[key]).resolve())
    return rows


def write(rows: list[Row], columns: list[str], path: Path) -> None:
    """Writes a manifest with paths relative to it; there may be no rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            paths = {
                key: os.path.relpath(row[key], path.parent.resolve()) if row.get(key) else ""
                for key in ("image", "mask")
            }
            writer.writerow(row | paths)
    forged = sum(row["label"] == "1" for row in rows)
    print(f"{path}: {forged} forged, {len(rows) - forged} authentic")


def main() -> None:
    """Splits, and filters the other manifests."""
    arguments = parse_arguments()
    rows = read(arguments.manifest)
    train, test = split(rows, arguments.pattern, arguments.test_share)
    write(train, list(rows[0]), arguments.output / "train.csv")
    write(test, list(rows[0]), arguments.output / "test.csv")
    seen = set().union(*(photographs(row, arguments.pattern) for row in train))
    for manifest in arguments.unseen:
        rows = read(manifest)
        unseen = [row for row in rows if not photographs(row, arguments.pattern) & seen]
        write(unseen, list(rows[0]), arguments.output / f"{manifest.parent.name}_unseen.csv")


if __name__ == "__main__":
    main()
