#!/usr/bin/env python3
"""Lists CVIP's shifted copies (D0) and their originals (D3), with masks of the copies alone.

    datasets/prepare_cvip.py CVIP --output cvip
    datasets/prepare_cvip.py CVIP --output cvip80 --quality 80     # stored as JPEG once more

CVIP holds `Dataset 0` (im1_t.bmp, im1_t_mask.bmp, ...) and `Dataset 3` (im1.bmp, ...) of Ardizzone,
Bruno and Mazzola (2015), doi 10.1109/TIFS.2015.2445742. The published masks mark original and copy;
forged is the one that differs from the untouched photograph. Images whose two ends touch cannot be
told apart so, and are left out and named. Writes manifest.csv and masks/, and images/ with a
quality.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

import cv2
import numpy as np


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="holds `Dataset 0` and `Dataset 3`")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--quality", type=int, help="store the images as JPEG of that quality")
    return parser.parse_args(words)


def read(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 BGR.

    Raises:
        ValueError: It is not there, or no image.
    """
    image = cv2.imread(str(path))
    if image is None:
        raise ValueError(f"{path}: no such image; give the folder with `Dataset 0` and `Dataset 3`")
    return image


def copy_alone(forged: np.ndarray, original: np.ndarray, ends: np.ndarray) -> np.ndarray | None:
    """Mask (H, W) bool of the copy; None where it cannot be told.

    Args:
        forged: (H, W, 3) uint8.
        original: the same before.
        ends: (H, W) bool, original and copy.
    """
    if forged.shape != original.shape:
        return None
    changed = (forged != original).any(axis=2)
    count, parts = cv2.connectedComponents(ends.astype(np.uint8))
    copies = [part for part in range(1, count) if changed[parts == part].mean() > 0.5]
    mask = np.isin(parts, copies)
    return mask if copies and mask.sum() < ends.sum() else None


def prepare(folder: Path, output: Path, quality: int | None = None) -> list[str]:
    """Writes manifest, masks and perhaps images; returns the names of those left out.

    Raises:
        ValueError: The folder does not hold the data set.
    """
    originals = sorted((folder / "Dataset 3").glob("*.bmp"))
    if not originals:
        raise ValueError(f"{folder}: no `Dataset 3` with *.bmp in it; give the folder above")
    (output / "masks").mkdir(parents=True, exist_ok=True)
    rows, left_out = [], []
    for path in originals:
        forged_path = folder / "Dataset 0" / f"{path.stem}_t.bmp"
        forged, original = read(forged_path), read(path)
        ends = read(forged_path.with_name(f"{path.stem}_t_mask.bmp"))[..., 0] > 127
        mask = copy_alone(forged, original, ends)
        if mask is None:
            left_out.append(forged_path.name)
        else:
            name = f"masks/{path.stem}.png"
            cv2.imwrite(str(output / name), 255 * mask.astype(np.uint8))
            rows.append((_store(forged_path, forged, output, quality), name, 1, "copy-move"))
        rows.append((_store(path, original, output, quality), "", 0, "authentic"))
    with open(output / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "mask", "label", "technique"), *rows])
    return left_out


def _store(path: Path, image: np.ndarray, output: Path, quality: int | None) -> str:
    """The path for the manifest, of the file itself or of its JPEG."""
    if quality is None:
        return os.path.relpath(path, output)
    (output / "images").mkdir(exist_ok=True)
    name = f"images/{path.stem}.jpg"
    cv2.imwrite(str(output / name), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return name


def main() -> int:
    """Prints what was left out."""
    arguments = parse_arguments()
    try:
        left_out = prepare(arguments.folder, arguments.output, arguments.quality)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.output / 'manifest.csv'}; left out: {', '.join(left_out) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
