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
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from loupe.data.sources.catalog import load_dataset
from loupe.data.sources.entries import DatasetDict
from loupe.data.sources.formats.manifest import write_manifest

CASIA_NAMES = r"(ani|arc|art|cha|ind|nat|obj|pla|sec|txt)_?(\d{4,5})"


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


def photographs(entry: DatasetDict, pattern: str) -> set[tuple[str, int]]:
    """Category and number of the photographs that an image was made of.

    Numbers are compared as such, so that `ani_0010` of one release and `ani_00010` of another count
    as the same photograph: rather too careful than not enough.
    """
    name = Path(entry["file_name"]).name
    return {(kind, int(number)) for kind, number in re.findall(pattern, name)}


def groups_of(entries: Sequence[DatasetDict], pattern: str) -> list[list[DatasetDict]]:
    """Images connected by photographs, the largest group first.

    Raises:
        ValueError: A name tells no photograph.
    """
    group_of: dict[tuple[str, int], int] = {}
    members: dict[int, list[DatasetDict]] = defaultdict(list)
    for number, entry in enumerate(entries):
        sources = photographs(entry, pattern)
        if not sources:
            raise ValueError(f"{entry['file_name']}: no photograph in its name; give --pattern")
        joined = {group_of[source] for source in sources if source in group_of}
        merged = members[number]
        for other in joined:
            merged += members.pop(other)
        merged.append(entry)
        for member in merged:
            group_of |= dict.fromkeys(photographs(member, pattern), number)
    return sorted(members.values(), key=lambda group: (-len(group), group[0]["file_name"]))


def split(
    entries: Sequence[DatasetDict], pattern: str, test_share: float
) -> tuple[list[DatasetDict], list[DatasetDict]]:
    """Training and test images: each group goes where most images are still wanted."""
    wanted = {"train": (1 - test_share) * len(entries), "test": test_share * len(entries)}
    parts: dict[str, list[DatasetDict]] = {"train": [], "test": []}
    for group in groups_of(entries, pattern):
        part = max(wanted, key=lambda name: wanted[name] - len(parts[name]))
        parts[part] += group
    return parts["train"], parts["test"]


def write(entries: Sequence[DatasetDict], folder: Path, name: str) -> None:
    """Writes a manifest; there may be no images."""
    manifest = write_manifest(entries, folder, name)
    forged = sum(entry["label"] == 1 for entry in entries)
    print(f"{manifest}: {forged} forged, {len(entries) - forged} others")


def main(words: list[str] | None = None) -> None:
    """Splits, and filters the other manifests."""
    arguments = parse_arguments(words)
    try:
        entries = load_dataset(arguments.manifest)
        train, test = split(entries, arguments.pattern, arguments.test_share)
        write(train, arguments.output, "train.csv")
        write(test, arguments.output, "test.csv")
        seen = set().union(*(photographs(entry, arguments.pattern) for entry in train))
        for manifest in arguments.unseen:
            entries = load_dataset(manifest)
            unseen = [e for e in entries if not photographs(e, arguments.pattern) & seen]
            write(unseen, arguments.output, f"{manifest.parent.name}_unseen.csv")
    except (ValueError, FileExistsError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
