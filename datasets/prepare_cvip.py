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
import sys
from pathlib import Path

import cv2
import numpy as np

from loupe.data.images.decoding import read_image
from loupe.data.images.masks import read_mask
from loupe.data.sources.entries import make_dataset_dict
from loupe.data.sources.formats.manifest import write_manifest


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="holds `Dataset 0` and `Dataset 3`")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--quality", type=int, help="store the images as JPEG of that quality")
    return parser.parse_args(words)


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
        ValueError: The folder does not hold the data set, or an image of it cannot be read.
        FileExistsError: There is a manifest already.
    """
    originals = sorted((folder / "Dataset 3").glob("*.bmp"))
    if not originals:
        raise ValueError(f"{folder}: no `Dataset 3` with *.bmp in it; give the folder above")
    (output / "masks").mkdir(parents=True, exist_ok=True)
    entries, left_out = [], []
    for path in originals:
        forged_path = folder / "Dataset 0" / f"{path.stem}_t.bmp"
        forged, original = read_image(forged_path), read_image(path)
        ends = read_mask(forged_path.with_name(f"{path.stem}_t_mask.bmp")) > 0.5
        mask = copy_alone(forged, original, ends)
        if mask is None:
            left_out.append(forged_path.name)
        else:
            mask_path = output / "masks" / f"{path.stem}.png"
            cv2.imwrite(str(mask_path), 255 * mask.astype(np.uint8))
            stored = _store(forged_path, forged, output, quality)
            entries.append(
                make_dataset_dict(
                    stored, path.stem, label=1, mask_file_name=mask_path, technique="copy-move"
                )
            )
        stored = _store(path, original, output, quality)
        entries.append(
            make_dataset_dict(stored, f"{path.stem}_original", label=0, technique="authentic")
        )
    write_manifest(entries, output)
    return left_out


def _store(path: Path, image: np.ndarray, output: Path, quality: int | None) -> Path:
    """The file itself, or its JPEG."""
    if quality is None:
        return path
    (output / "images").mkdir(exist_ok=True)
    stored = output / "images" / f"{path.stem}.jpg"
    cv2.imwrite(str(stored), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return stored


def main() -> int:
    """Prints what was left out."""
    arguments = parse_arguments()
    try:
        left_out = prepare(arguments.folder, arguments.output, arguments.quality)
    except (ValueError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.output / 'manifest.csv'}; left out: {', '.join(left_out) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
