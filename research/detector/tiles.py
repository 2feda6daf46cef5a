"""Measures large photographs by windows and shrunk view, with forgeries pasted in.

    python -m research.detector.tiles measure output/pool/valid_originals.csv output/valid.jsonl
    python -m research.detector.tiles fit output/valid.jsonl output/tile_rule.json \
        --verdict output/verdict.json
    python -m research.detector.tiles summary output/test.jsonl --rule output/tile_rule.json

`measure` writes a line for each version of each photograph, as soon as it is measured: scores of
the overview and of all windows, and how well each map finds the forgery. Versions: the whole file;
its centre of 1536 px; that centre stored as JPEG 85. Each is authentic, and with a disc of
irregular outline of `--diameter` px pasted in, from the next photograph (splice) or from elsewhere
in the same one (copy), before the storing of the third version.

`fit` fits the numbers of a `TileRule`, half of the weight on authentic versions; the operating
point is what 5% of them reach, the lower end of the band what 20% reach, but neither lies below
that of a single view, `--verdict`.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score

from loupe.data.images.decoding import read_size
from loupe.inference import LoupePredictor
from loupe.inference.tiles import MapMaker, Span
from loupe.inference.verdict import TileRule, VerdictRule, tile_features
from loupe.synthesis.processing import save_jpeg
from research.detector.measure import read_stored

DIAMETER = 200
CENTRE = 1536
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_BINS = 1000
# Versions as a rule's statement names them.
_IN_WORDS = {
    "whole": "whole files",
    "centre": "their centres",
    "jpeg85": "their centres at JPEG 85",
}


class Cut:
    """One image with the predictions of its views; a changed part is predicted anew."""

    def __init__(self, predictor: LoupePredictor, pixels: np.ndarray, maps: bool) -> None:
        self.predictor, self.pixels, self.maps = predictor, pixels, maps
        self.places = predictor.tiles.windows(*pixels.shape[:2])
        self.overview = self._predict(pixels)
        self.windows = [self._predict(self._cut(pixels, place)) for place in self.places]

    def _cut(self, pixels: np.ndarray, place: tuple[Span, Span]) -> np.ndarray:
        row, column = place
        return pixels[row.start : row.stop, column.start : column.stop]

    def _predict(self, pixels: np.ndarray) -> tuple[float, np.ndarray | None]:
        item = self.predictor.mapper.map_image(pixels)
        height, width = item["valid_size"]
        item |= {"height": height, "width": width, "window": (0.0, 0.0, width, height)}
        with torch.no_grad():
            if not self.maps:
                return float(self.predictor.model.classify([item]).probability), None
            (output,) = self.predictor.model([item])
        return output["forgery_score"], output["forgery_map"].numpy()

    def changed(self, pixels: np.ndarray) -> Cut:
        """The same with other pixels: only windows that differ are predicted."""
        other = object.__new__(Cut)
        other.predictor, other.pixels, other.places = self.predictor, pixels, self.places
        other.maps = self.maps
        other.overview = self._predict(pixels)
        other.windows = [
            known
            if np.array_equal(self._cut(self.pixels, place), self._cut(pixels, place))
            else self._predict(self._cut(pixels, place))
            for place, known in zip(self.places, self.windows, strict=True)
        ]
        return other

    def map(self, share: float) -> np.ndarray:
        """The forgery map with this fraction of the overview."""
        maker = MapMaker(self.overview[1], self.pixels.shape[:2], self.predictor.tiles, share=share)
        for (row, column), (_, part) in zip(self.places, self.windows, strict=True):
            maker.add(row, column, part)
        return maker.result


def blob(random: np.random.Generator, diameter: int = DIAMETER) -> np.ndarray:
    """(d, d) float32 in [0, 1]: a disc of irregular outline, its border soft over two pixels."""
    side = diameter + 8
    y, x = np.mgrid[:side, :side] - side / 2
    angle = np.arctan2(y, x)
    radius = np.full(angle.shape, 0.42 * diameter)
    for order in range(2, 6):
        wave = np.cos(order * angle + random.uniform(0, 2 * np.pi))
        radius += 0.16 * diameter / order**1.5 * random.uniform(-1, 1) * wave
    inside = (np.hypot(y, x) < radius).astype(np.float32)
    return cv2.GaussianBlur(inside, (0, 0), 0.8)


def paste(
    pixels: np.ndarray,
    donor: np.ndarray,
    random: np.random.Generator,
    apart: bool,
    diameter: int = DIAMETER,
) -> tuple[np.ndarray, np.ndarray]:
    """A forged image and its mask (H, W) bool.

    Args:
        pixels: of the host.
        donor: of the photograph that the disc comes from.
        random: draws outline and places.
        apart: Whether the two places must not overlap: a copy.
        diameter: of the disc, in pixels.
    """
    alpha = blob(random, diameter)
    side = len(alpha)
    while True:
        top, left = (int(random.integers(0, s - side)) for s in pixels.shape[:2])
        y, x = (int(random.integers(0, s - side)) for s in donor.shape[:2])
        if not apart or max(abs(top - y), abs(left - x)) > 1.2 * side:
            break
    forged, mask = pixels.copy(), np.zeros(pixels.shape[:2], bool)
    host = forged[top : top + side, left : left + side]
    mixed = host + alpha[..., None] * (donor[y : y + side, x : x + side].astype(np.float32) - host)
    host[:] = mixed.round().clip(0, 255).astype(np.uint8)
    mask[top : top + side, left : left + side] = alpha > 0.5
    return forged, mask


def best_f1(forgery_map: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Best F1 over all thresholds, and area under the ROC curve, of pixels."""
    bins = (forgery_map * (_BINS - 1)).astype(np.int32)
    all_pixels = np.bincount(bins.ravel(), minlength=_BINS)[::-1]
    forged = np.bincount(bins[mask], minlength=_BINS)[::-1]
    hits, marked = np.cumsum(forged), np.cumsum(all_pixels)
    false = marked - hits
    positive, negative = hits[-1], false[-1]
    area = np.trapezoid(np.append(0, hits), np.append(0, false)) / (positive * negative)
    return float((2 * hits / (marked + positive)).max()), float(area)


def measure(
    predictor: LoupePredictor, files: list[Path], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A dict for each version of each photograph."""
    for number, file in enumerate(files):
        pixels, donor = read_stored(str(file)), read_stored(str(files[(number + 1) % len(files)]))
        versions = {"whole": pixels}
        if min(pixels.shape[:2]) > CENTRE and {"centre", "jpeg85"} & set(arguments.versions):
            top, left = ((side - CENTRE) // 16 * 8 for side in pixels.shape[:2])
            centre = pixels[top : top + CENTRE, left : left + CENTRE].copy()
            versions |= {"centre": centre, "jpeg85": centre}
        for version in arguments.versions:
            if version in versions:
                random = np.random.default_rng([arguments.seed, number])
                yield from rows_of(
                    predictor, file, version, versions[version], donor, random, arguments
                )


def rows_of(
    predictor: LoupePredictor,
    file: Path,
    version: str,
    pixels: np.ndarray,
    donor: np.ndarray,
    random: np.random.Generator,
    arguments: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Authentic, splice, copy."""
    stored = (lambda image: save_jpeg(image, 85)) if version == "jpeg85" else (lambda image: image)
    cut = Cut(predictor, stored(pixels), arguments.maps)
    yield row_of(file, version, "authentic", cut, None)
    forgeries = (("splice", donor), ("copy", pixels))
    for kind, source in forgeries[: arguments.forgeries]:
        forged, mask = paste(pixels, source, random, kind == "copy", arguments.diameter)
        yield row_of(file, version, kind, cut.changed(stored(forged)), mask)


def row_of(
    file: Path, version: str, kind: str, cut: Cut, mask: np.ndarray | None
) -> dict[str, Any]:
    """What is kept of one image."""
    rule, (score, _) = cut.predictor.rule, cut.overview
    height, width = cut.predictor.mapper.map_image(cut.pixels)["valid_size"]
    side = cut.predictor.tiles.side
    row = {
        "file": file.name,
        "version": version,
        "kind": kind,
        "size": cut.pixels.shape[:2],
        "overview": rule.logit(score, height * width),
        "windows": [round(rule.logit(one, side * side), 4) for one, _ in cut.windows],
        "scores": [round(one, 6) for one, _ in [cut.overview, *cut.windows]],
    }
    for share in SHARES if cut.maps else ():
        forgery_map = cut.map(share)
        row[f"above/{share}"] = float((forgery_map > 0.5).mean())
        if mask is not None:
            row[f"f1/{share}"], row[f"auc/{share}"] = best_f1(forgery_map, mask)
            marked = forgery_map > 0.5
            overlap = 2 * float((marked & mask).sum()) / float(marked.sum() + mask.sum())
            row[f"f1_half/{share}"] = overlap
    return row


def fit_rule(
    rows: list[dict[str, Any]], alarms: float, band: float, single: VerdictRule
) -> TileRule:
    """The rule of measured rows.

    Args:
        rows: Of `measure`.
        alarms: Fraction of the authentic ones that may be called forged.
        band: Fraction of them that may be called forged or undecided.
        single: The rule of a single view, whose ends are the lowest.
    """
    x = np.array([tile_features(row["overview"], row["windows"]) for row in rows])
    forged = np.array([row["kind"] != "authentic" for row in rows])
    rise = rise_of_highest([row["windows"] for row in rows if row["kind"] == "authentic"])
    x[:, 1] -= rise * x[:, 3]
    x[:, 3] = 0
    weights = np.where(forged, 0.5 / forged.sum(), 0.5 / (~forged).sum())

    def loss(numbers: np.ndarray) -> float:
        margin = (x @ numbers) * np.where(forged, 1, -1)
        # A little ridge: rows are few.
        return float((weights * np.logaddexp(0, -margin)).sum() + 0.002 * (numbers[:4] ** 2).sum())

    bounds = [(0, None), (0, None), (None, 0), (None, 0), (None, None)]
    numbers = minimize(loss, np.array([0.5, 0.5, 0, 0, 0.0]), method="L-BFGS-B", bounds=bounds).x
    probability = 1 / (1 + np.exp(-(x @ numbers)[~forged]))
    high, low = (float(np.quantile(probability, 1 - share)) for share in (alarms, band))
    high, low = max(high, single.forged_from), max(low, single.authentic_below)
    numbers[3] = -rise * numbers[1]
    photographs = len({row["file"] for row in rows})
    versions = sorted({_IN_WORDS.get(row["version"], row["version"]) for row in rows})
    statement = (
        f"Of camera photographs cut into windows at most {alarms:.0%} reach {high:.2f}. Fitted on "
        f"{photographs} photographs of cameras that occur nowhere in training, as "
        f"{', '.join(versions)}, and on {int(forged.sum())} forgeries of {DIAMETER} px in them"
    )
    first = [round(float(number), 4) for number in numbers]
    return TileRule(*first, round(high, 4), round(low, 4), statement)


def rise_of_highest(windows: list[list[float]], draws: int = 50) -> float:
    """By how much the highest logit of authentic windows rises with each doubling of their number.

    Args:
        windows: Logits of each photograph.
        draws: Random halves of each.
    """
    random = np.random.default_rng(0)
    rises = []
    for one in windows:
        half = [max(random.permutation(one)[: len(one) // 2]) for _ in range(draws)]
        rises.append(max(one) - np.mean(half))
    return float(np.mean(rises))


def summary(rows: list[dict[str, Any]], rule: TileRule, single: VerdictRule) -> Iterator[str]:
    """Lines of a table."""
    logits = np.array([rule.logit(row["overview"], row["windows"]) for row in rows])
    tiled = 1 / (1 + np.exp(-logits))
    shrunk = 1 / (1 + np.exp(-np.array([row["overview"] for row in rows])))
    kinds = np.array([row["kind"] for row in rows])
    authentic = kinds == "authentic"
    for name, probability, band in (("shrunk", shrunk, single), ("tiles", tiled, rule)):
        called = probability >= band.forged_from
        between = (probability >= band.authentic_below) & ~called
        yield (
            f"{name}: of {authentic.sum()} authentic {called[authentic].mean():.3f} forged, "
            f"{between[authentic].mean():.3f} undecided"
        )
        for kind in ("splice", "copy"):
            own = kinds == kind
            if own.any():
                # Against the authentic photographs that were forged.
                files = {
                    (row["file"], row["version"]) for row, k in zip(rows, own, strict=True) if k
                }
                twins = authentic & np.array([(r["file"], r["version"]) in files for r in rows])
                chosen = own | twins
                auc = roc_auc_score(own[chosen], probability[chosen])
                yield (
                    f"  {kind} ({own.sum()}): AUC {auc:.3f}, {called[own].mean():.3f} forged, "
                    f"{between[own].mean():.3f} undecided"
                )
    for kind in ("splice", "copy"):
        own = [row for row in rows if row["kind"] == kind and "f1/0.0" in row]
        for share in SHARES if own else ():
            f1, area, half = (
                np.mean([row[f"{key}/{share}"] for row in own]) for key in ("f1", "auc", "f1_half")
            )
            yield f"{kind}, overview {share}: F1-best {f1:.3f}, F1 at .5 {half:.3f}, AUC {area:.3f}"
    for share in SHARES:
        key = f"above/{share}"
        marked = [row[key] for row in rows if row["kind"] == "authentic" and key in row]
        alarms = np.mean([one > 0.001 for one in marked])
        yield f"authentic, overview {share}: {alarms:.3f} with more than 0.1% of the pixels marked"


def read(paths: list[Path]) -> list[dict[str, Any]]:
    """Rows of measured tables."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure")
    one.add_argument("manifest", type=Path)
    one.add_argument("output", type=Path)
    one.add_argument("--model", default="tiny")
    one.add_argument("--versions", nargs="+", default=["whole", "centre", "jpeg85"])
    one.add_argument("--diameter", type=int, default=DIAMETER, help="of forgeries, in pixels")
    one.add_argument("--megapixels", type=float, nargs=2, default=(0, 1e9))
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--scores-only", dest="maps", action="store_false", help="no maps")
    one.add_argument("--forgeries", type=int, default=2, help="of each photograph, at most 2")
    two = commands.add_parser("fit")
    two.add_argument("tables", type=Path, nargs="+")
    two.add_argument("output", type=Path)
    two.add_argument("--alarms", type=float, default=0.05)
    two.add_argument("--band", type=float, default=0.2)
    two.add_argument("--verdict", type=Path, required=True, help="rule of a single view")
    three = commands.add_parser("summary")
    three.add_argument("tables", type=Path, nargs="+")
    three.add_argument("--rule", type=Path, required=True)
    three.add_argument("--model", default="tiny")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Runs one of the three."""
    arguments = parse_arguments(words)
    if arguments.command == "fit":
        single = VerdictRule.of(json.loads(arguments.verdict.read_text(encoding="utf-8")))
        rule = fit_rule(read(arguments.tables), arguments.alarms, arguments.band, single)
        arguments.output.write_text(json.dumps(rule._asdict(), indent=1) + "\n", encoding="utf-8")
        print(arguments.output.read_text())
        return
    predictor = LoupePredictor.from_pretrained(arguments.model)
    if arguments.command == "summary":
        rule = TileRule(**json.loads(arguments.rule.read_text(encoding="utf-8")))
        print("\n".join(summary(read(arguments.tables), rule, predictor.rule)))
        return
    with arguments.manifest.open(newline="", encoding="utf-8") as file:
        files = [arguments.manifest.parent / row["image"] for row in csv.DictReader(file)]
    low, high = (1e6 * limit for limit in arguments.megapixels)
    files = [file for file in files if low <= int(np.prod(read_size(file))) < high]
    with arguments.output.open("a", encoding="utf-8") as file:
        for row in measure(predictor, files, arguments):
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
