"""Authentic images stored as the forgeries of research sets are, so that storage is no clue.

    python -m research.detector.controls output/controls \
        --photographs output/pool/train_originals.csv --sets output/list/split_unseen.csv

The forgeries of MISD and lalonde were all stored as JPEG of quality 100 after other JPEGs, their
authentic images mostly not: a network can learn the storage in place of the forgery. This makes
versions of camera photographs (shrunk or cut out, stored, stored once more, often at 100) and of
the authentic images of manifests (at 100, and shrunk), and lists them in OUTPUT/train.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from loupe.synthesis.processing import draw_jpeg, save_jpeg
from loupe.writing import write_csv
from research.detector.measure import read_cases, read_stored
from research.detector.real import FIELDS

VERSIONS = 6
# Longest side of a version, drawn evenly in its logarithm.
_SIDES = (224, 800)
_RESAMPLING = (cv2.INTER_AREA, cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
# How often a version is cut out at native scale, stored at 60 to 98, and last at 100.
_CUTS, _STORES, _STORES_LAST = 0.25, 0.6, 0.5


def make_control(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """A version (h, w, 3) uint8 of a photograph (H, W, 3) uint8."""
    side = np.exp(rng.uniform(*np.log(_SIDES)))
    if rng.random() < _CUTS:
        image = cut_out(rng, image, int(side))
    else:
        image = shrink(rng, image, int(side))
    if rng.random() < _STORES:
        image = draw_jpeg(rng, image, 60, 98)
    return save_jpeg(image, 100) if rng.random() < _STORES_LAST else image


def cut_out(rng: np.random.Generator, image: np.ndarray, side: int) -> np.ndarray:
    """A window of at most side x 3/4 side px, anywhere."""
    height, width = min(side * 3 // 4, image.shape[0]), min(side, image.shape[1])
    top = rng.integers(image.shape[0] - height + 1)
    left = rng.integers(image.shape[1] - width + 1)
    return image[top : top + height, left : left + width]


def shrink(rng: np.random.Generator, image: np.ndarray, side: int) -> np.ndarray:
    """The whole image with a longest side of at most `side` px, in one step or by halves first."""
    while rng.random() < 0.5 and max(image.shape[:2]) > 3 * side:
        image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = round(scale * image.shape[1]), round(scale * image.shape[0])
    return cv2.resize(image, size, interpolation=_RESAMPLING[rng.integers(len(_RESAMPLING))])


def store_as_forged(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """An authentic image (H, W, 3) uint8 of a set as its forgeries are stored, sometimes shrunk."""
    if rng.random() < 0.5:
        image = shrink(rng, image, int(rng.uniform(0.5, 0.95) * max(image.shape[:2])))
    return save_jpeg(image, 100)


def write_versions(
    manifest: Path, count: int, make: Callable[..., np.ndarray], folder: Path, stem: str
) -> list[list[str]]:
    """Rows of `count` versions of each authentic image of a manifest, written as PNG."""
    rows = []
    authentic = [case for case in read_cases(manifest) if not case.label]
    for number, case in enumerate(authentic):
        rng = np.random.default_rng(number)
        image = read_stored(case.file)
        for version in range(count):
            name = f"{stem}_{number:05d}_{version}.png"
            cv2.imwrite(str(folder / "images" / name), make(rng, image)[..., ::-1])
            rows.append([f"images/{name}", "", "0", "authentic", Path(case.file).name])
    return rows


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--photographs", type=Path, required=True, metavar="MANIFEST")
    parser.add_argument("--sets", type=Path, nargs="*", default=[], metavar="MANIFEST")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Writes the versions and their list."""
    arguments = parse_arguments(words)
    (arguments.output / "images").mkdir(parents=True, exist_ok=True)
    rows = write_versions(
        arguments.photographs, VERSIONS, make_control, arguments.output, "photograph"
    )
    for number, manifest in enumerate(arguments.sets):
        rows += write_versions(manifest, 2, store_as_forged, arguments.output, f"set{number}")
    write_csv(arguments.output / "train.csv", FIELDS, rows)
    print(f"{len(rows)} authentic images written to {arguments.output}")


if __name__ == "__main__":
    main()
