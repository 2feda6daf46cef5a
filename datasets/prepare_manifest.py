#!/usr/bin/env python3
"""Writes the manifest.csv of a data set, without moving or copying its images.

A manifest is read faster than a tree of files, can be cut into splits by hand, and is understood
by every tool of Loupe. Masks that are not "bright = forged" (Columbia, DSO-1, NIST16) are written
anew beside the manifest.

Example:
    python datasets/prepare_manifest.py columbia --output datasets/columbia_manifest
    python datasets/prepare_manifest.py /data/my_forgeries --output datasets/mine
"""

from __future__ import annotations

import argparse
from pathlib import Path

from loupe.data.sources.catalog import load_dataset
from loupe.data.sources.entries import DatasetError
from loupe.data.sources.formats.manifest import write_manifest


def parse_arguments() -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="a data set's name, a folder in a known format or a list")
    parser.add_argument("--output", type=Path, required=True, help="folder of the manifest")
    return parser.parse_args()


def main() -> None:
    """Lists the data set and writes its manifest."""
    arguments = parse_arguments()
    try:
        entries = load_dataset(arguments.dataset)
        manifest = write_manifest(entries, arguments.output)
    except (DatasetError, FileExistsError) as error:
        raise SystemExit(f"error: {error}") from None
    forged = sum(entry["label"] == 1 for entry in entries)
    print(f"{manifest}: {len(entries)} images, {forged} of them forged")


if __name__ == "__main__":
    main()
