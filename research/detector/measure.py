"""Measures a detector on camera photographs in all their versions, and on sets of real forgeries.

    python -m research.detector.measure output/measured --config-file configs/loupe_tiny.yaml \
        --cameras output/pool/test_originals.csv --sets casia_s=casia_s/manifest.csv

Writes OUTPUT/images.csv, one row for each image and version, as soon as it is measured; a run that
was interrupted goes on behind the last row. `python -m research.detector.summary` reads it.

Versions of a camera photograph (pixels as stored): the whole file; windows of its centre at
native scale (224, 512, 1024 px); shrunk to 512 px; shrunk to 1024 px and stored as JPEG 90 or 75;
`--versions` also makes windows and shrunk photographs of any size (crop160, shrunk352).
Of a set: as it is and, with `--harder SET`, stored as JPEG 80 or shrunk to 0.75.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from loupe.config import load_config
from loupe.data.images.decoding import read_picture
from loupe.data.images.masks import read_mask
from loupe.data.sources.synthetic import is_synthetic, list_synthetic, render
from loupe.evaluation.measures import measure_image
from loupe.inference import LoupePredictor
from loupe.structures import GroundTruth
from loupe.synthesis.processing import save_jpeg

# At which F1 of a map is measured, to choose MODEL.SEGMENTER.MASK_FROM.
MASK_THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
FIELDS = (
    "set",
    "version",
    "file",
    "group",
    "label",
    "technique",
    "height",
    "width",
    "score",
    "verdict",
    "pixel_auc",
    "best_f1",
    "f1",
    "alarm",
    *(f"f1_from_{threshold}" for threshold in MASK_THRESHOLDS),
)
_CASIA = r"(ani|arc|art|cha|ind|nat|obj|pla|sec|txt)_?(\d{4,5})"
Version = Callable[[np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray | None] | None]


class Case(NamedTuple):
    """One image of a set.

    Attributes:
        file: of the image, or its name in a synthetic stream.
        mask: its file; None = authentic.
        label: 1 = forged.
        technique: as the set says.
        group: images of one group share a source photograph.
    """

    file: str
    mask: str | None
    label: int
    technique: str
    group: str

    @property
    def name(self) -> str:
        """What the image is called in the table."""
        return self.file if is_synthetic(self.file) else Path(self.file).name


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--config-file", default="configs/loupe_tiny.yaml")
    parser.add_argument("--weights", help="checkpoint; by default MODEL.WEIGHTS")
    parser.add_argument("--cameras", type=Path, help="manifest of camera files")
    parser.add_argument("--sets", nargs="*", default=[], metavar="NAME=MANIFEST")
    parser.add_argument(
        "--streams", nargs="*", default=[], metavar="NAME=synthetic://...", help="made on the fly"
    )
    parser.add_argument("--harder", nargs="*", default=[], metavar="NAME")
    parser.add_argument(
        "--per-camera", type=int, default=0, help="at most so many of a camera model; 0 = all"
    )
    parser.add_argument("--versions", nargs="*", help="of the camera photographs; default: all")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE")
    return parser.parse_intermixed_args(words)


def read_cases(manifest: Path, per_camera: int = 0) -> list[Case]:
    """Images of a manifest, with the source photographs that they share.

    With `per_camera`, only the first so many of each camera model, which the manifest then names.
    """
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if per_camera:
        taken: Counter[str] = Counter()
        kept = []
        for row in rows:
            taken[row["camera"]] += 1
            if taken[row["camera"]] <= per_camera:
                kept.append(row)
        rows = kept
    groups = _connected([_sources(row) for row in rows])
    return [
        Case(
            str(manifest.parent / row["image"]),
            str(manifest.parent / row["mask"]) if row["mask"] else None,
            int(row["label"]),
            row["technique"],
            str(group),
        )
        for row, group in zip(rows, groups, strict=True)
    ]


def stream_cases(name: str) -> list[Case]:
    """Images of a synthetic stream; an authentic one and its forged twin make a group."""
    return [
        Case(entry["file_name"], None, entry["label"], entry["technique"], str(number // 2))
        for number, entry in enumerate(list_synthetic(name))
    ]


def _sources(row: dict[str, str]) -> set[str]:
    """Names of the photographs that an image was made of."""
    found = {f"{kind}{int(number)}" for kind, number in re.findall(_CASIA, Path(row["image"]).name)}
    if found:
        return found
    if "<-" in row["source"]:
        return {part.strip() for part in row["source"].split("<-")[1].split(" + ")}
    return {re.sub(r"_orig(inal)?$", "", Path(row["image"]).stem)}


def _connected(members: list[set[str]]) -> list[int]:
    """Number of each set's connected component."""
    parent = list(range(len(members)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    first: dict[str, int] = {}
    for index, names in enumerate(members):
        for name in names:
            parent[root(index)] = root(first.setdefault(name, index))
    return [root(index) for index in range(len(members))]


def _as_it_is(image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    return image, mask


def _window(size: int) -> Version:
    def version(image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, None] | None:
        height, width = image.shape[:2]
        if min(height, width) < size:
            return None
        top, left = ((side - size) // 2 // 16 * 16 for side in (height, width))
        return image[top : top + size, left : left + size].copy(), None

    return version


def _shrunk(longest: int, quality: int | None = None) -> Version:
    def version(image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, None] | None:
        scale = longest / max(image.shape[:2])
        if scale > 0.8:
            return None
        size = tuple(round(scale * side) for side in image.shape[1::-1])
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return (small if quality is None else save_jpeg(small, quality)), None

    return version


def _stored(image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    return save_jpeg(image, 80), mask


def _three_quarters(
    image: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    size = tuple(round(0.75 * side) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if mask is not None:
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
    return small, mask


CAMERA_VERSIONS: dict[str, Version] = {
    "crop224": _window(224),
    "crop512": _window(512),
    "shrunk512": _shrunk(512),
    "crop1024": _window(1024),
    "jpeg90": _shrunk(1024, 90),
    "jpeg75": _shrunk(1024, 75),
    "whole": _as_it_is,
}
HARDER: dict[str, Version] = {"jpeg80": _stored, "x0.75": _three_quarters}


def camera_version(name: str) -> Version:
    """The version of a name: one of CAMERA_VERSIONS, or cropN or shrunkN of any size.

    Raises:
        ValueError: There is no such version.
    """
    sized = re.fullmatch(r"(crop|shrunk)(\d{2,5})", name)
    if sized:
        return (_window if sized[1] == "crop" else _shrunk)(int(sized[2]))
    if name not in CAMERA_VERSIONS:
        known = ", ".join(CAMERA_VERSIONS)
        raise ValueError(f"no version {name}; they are {known}, and crop and shrunk of any size")
    return CAMERA_VERSIONS[name]


def read_case(case: Case) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels (H, W, 3) uint8 as stored and, of a forged image, its mask (H, W) in [0, 1]."""
    if is_synthetic(case.file):
        image, mask = render(case.file)
        return image, mask if case.label else None
    return read_stored(case.file), read_mask(case.mask) if case.mask else None


def read_stored(path: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, without regard to the orientation tag."""
    return read_picture(path).pixels


def measure_case(
    predictor: LoupePredictor, case: Case, set_name: str, versions: dict[str, Version]
) -> Iterator[dict[str, object]]:
    """A row for each version of an image that there is."""
    image, mask = read_case(case)
    for name, version in versions.items():
        made = version(image, mask)
        if made is None:
            continue
        pixels, truth = made
        prediction = predictor(pixels)
        known = None if truth is None else truth >= 0.5
        measures, _ = measure_image(
            case.name,
            GroundTruth(case.label, known),
            prediction.score,
            prediction.forgery_map,
            protocols=(),
        )
        both = 2 * measures.true_positives + measures.false_positives + measures.false_negatives
        others = {
            f"f1_from_{threshold}": f"{_overlap(prediction.forgery_map >= threshold, known):.5f}"
            for threshold in MASK_THRESHOLDS
        }
        yield {
            "set": set_name,
            "version": name,
            "file": case.name,
            "group": case.group,
            "label": case.label,
            "technique": case.technique,
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "score": f"{prediction.score:.6f}",
            # Of weights with a rule; the score is calibrated then.
            "verdict": prediction.verdict,
            "pixel_auc": f"{measures.pixel_auc:.5f}",
            "best_f1": f"{measures.best_f1:.5f}",
            "f1": f"{2 * measures.true_positives / both if both else np.nan:.5f}",
            "alarm": f"{measures.largest_region:.5f}",
            **others,
        }


def _overlap(mask: np.ndarray, known: np.ndarray | None) -> float:
    """F1 of a mask (H, W); not a number for an authentic image."""
    if known is None:
        return np.nan
    return 2 * int((mask & known).sum()) / max(1, int(mask.sum()) + int(known.sum()))


def main(words: list[str] | None = None) -> None:
    """Measures what was not measured yet."""
    arguments = parse_arguments(words)
    predictor = LoupePredictor(
        load_config(arguments.config_file, arguments.opts), arguments.weights
    )
    work: list[tuple[str, Case, dict[str, Version]]] = []
    for entry in arguments.sets:
        name, _, manifest = entry.partition("=")
        versions = {"as is": _as_it_is} | (HARDER if name in arguments.harder else {})
        work += [(name, case, versions) for case in read_cases(Path(manifest))]
    for entry in arguments.streams:
        name, _, stream = entry.partition("=")
        work += [(name, case, {"as is": _as_it_is}) for case in stream_cases(stream)]
    if arguments.cameras:
        versions = {name: camera_version(name) for name in arguments.versions or CAMERA_VERSIONS}
        cameras = read_cases(arguments.cameras, arguments.per_camera)
        work += [("cameras", case, versions) for case in cameras]
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "images.csv"
    done = set()
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            done = {(row["set"], row["file"], row["version"]) for row in csv.DictReader(file)}
    with path.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, FIELDS)
        if not done:
            table.writeheader()
        for name, case, versions in work:
            left = {
                key: value for key, value in versions.items() if (name, case.name, key) not in done
            }
            with torch.no_grad():
                table.writerows(measure_case(predictor, case, name, left))
            file.flush()


if __name__ == "__main__":
    main()
