#!/usr/bin/env python3
"""Writes a data set as COCO JSON: forged regions as instances that any tool of Detectron2 reads.

Images are not moved or copied. An image without annotations is authentic.

Example:
    python datasets/prepare_coco.py casia_v1 --output casia_v1/instances.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from loupe.data.sources.catalog import load_dataset
from loupe.data.sources.formats.coco import write_coco


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="a data set's name, a folder in a known format or a list")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Lists the data set and writes it."""
    arguments = parse_arguments(words)
    try:
        entries = load_dataset(arguments.dataset)
        progress = tqdm(entries, unit="image", disable=not sys.stderr.isatty())
        write_coco(progress, arguments.output)
    except (ValueError, FileExistsError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{arguments.output}: {len(entries)} images")


if __name__ == "__main__":
    main()
