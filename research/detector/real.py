"""Lists of real forgeries to train on, in further versions, split by source photograph.

    python -m research.detector.real output/real \
        --sets lalonde=lalonde/manifest.csv:0.5 misd=output/list/split_unseen.csv:1

Of each set the given share of the images goes to training, in groups that share a source
photograph; NAME_test.csv lists the others. OUTPUT/train.csv names every training image as it is and
in versions stored again or shrunk, authentic ones as often as forged ones, so that neither the
number of images nor their storage tells a forgery.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from loupe.synthesis.processing import save_jpeg
from loupe.writing import write_csv
from research.detector.measure import Case, read_case, read_cases

VERSIONS_PER_CLASS = 4
FIELDS = ("image", "mask", "label", "technique", "source")
_QUALITIES = (60, 96)
_SCALES = (0.5, 0.95)
# How often a version is shrunk, and stored as JPEG.
_SHRINKS, _STORES = 0.4, 0.75


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--sets", nargs="+", required=True, metavar="NAME=MANIFEST:SHARE")
    return parser.parse_args(words)


def split(cases: list[Case], share: float) -> tuple[list[Case], list[Case]]:
    """Training and test images; a group goes where most images are still wanted."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.group].append(case)
    train: list[Case] = []
    test: list[Case] = []
    for group in sorted(groups.values(), key=lambda one: (-len(one), one[0].file)):
        left = share * len(cases) - len(train), (1 - share) * len(cases) - len(test)
        (train if left[0] >= left[1] else test).extend(group)
    return train, test


def make_version(
    rng: np.random.Generator, image: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """An image (H, W, 3) uint8 and its mask, shrunk and stored again at random."""
    if rng.random() < _SHRINKS:
        scale = rng.uniform(*_SCALES)
        size = round(scale * image.shape[1]), round(scale * image.shape[0])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        mask = None if mask is None else cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
    if rng.random() < _STORES:
        image = save_jpeg(image, int(rng.integers(*_QUALITIES)))
    return image, mask


def write_versions(case: Case, count: int, folder: Path, stem: str, seed: int) -> list[list[str]]:
    """Rows of an image as it is and of its further versions, written as PNG."""
    rows = [_row(case.file, case.mask, case, folder)]
    rng = np.random.default_rng(seed)
    image, mask = read_case(case)
    for number in range(1, count):
        pixels, soft = make_version(rng, image, mask)
        path = folder / "images" / f"{stem}_{number}.png"
        cv2.imwrite(str(path), pixels[..., ::-1])
        mask_path = None
        if soft is not None:
            mask_path = str(folder / "masks" / path.name)
            cv2.imwrite(mask_path, np.round(255 * soft.astype(np.float32)).astype(np.uint8))
        rows.append(_row(str(path), mask_path, case, folder))
    return rows


def _row(image: str, mask: str | None, case: Case, folder: Path) -> list[str]:
    places = [os.path.relpath(path, folder) if path else "" for path in (image, mask)]
    return [*places, str(case.label), case.technique, Path(case.file).name]


def main(words: list[str] | None = None) -> None:
    """Splits every set, and writes the versions and lists."""
    arguments = parse_arguments(words)
    for name in ("images", "masks"):
        (arguments.output / name).mkdir(parents=True, exist_ok=True)
    rows: list[list[str]] = []
    for entry in arguments.sets:
        name, _, rest = entry.partition("=")
        manifest, _, share = rest.rpartition(":")
        train, test = split(read_cases(Path(manifest)), float(share))
        forged = sum(case.label for case in train)
        authentic = len(train) - forged
        if not forged or not authentic:
            raise SystemExit(f"error: {manifest}: {forged} forged, {authentic} authentic to train")
        for number, case in enumerate(train):
            # The rarer class comes in more versions.
            most = VERSIONS_PER_CLASS * min(forged, authentic)
            count = max(1, round(most / (forged if case.label else authentic)))
            rows += write_versions(case, count, arguments.output, f"{name}_{number:05d}", number)
        tests = [_row(case.file, case.mask, case, arguments.output) for case in test]
        if tests:
            write_csv(arguments.output / f"{name}_test.csv", FIELDS, tests)
        print(f"{name}: {forged} forged, {authentic} authentic to train, {len(test)} to test")
    write_csv(arguments.output / "train.csv", FIELDS, rows)


if __name__ == "__main__":
    main()
