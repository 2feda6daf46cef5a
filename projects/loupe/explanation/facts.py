"""Facts that are measured from an image and its prediction, without a language model.

    facts = measure(image, loupe.predict(image))
    for fact in facts:
        print(fact.sentence)

First what concerns the image (verdict, regions, agreement), then each region: its place, size,
shape and tone, and how sharpness, noise, JPEG blocks and quantisation steps inside differ from the
rest, and which other place resembles it. None of these proves a forgery: a face out of focus is
less sharp than its background, too. The percentile says how unusual a difference is.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from loupe.explanation.measurements import MEASUREMENTS, Measured
from loupe.explanation.percentiles import percentile_of
from loupe.explanation.regions import Region, find_regions, shape_of
from loupe.explanation.sentences import ENGLISH, Sentences, say
from loupe.structures import THRESHOLD, Prediction
from loupe.vocabulary import cell_of, size_of, tone_of

# Overlap of patch map and mask, as intersection over union, from which they agree.
_AGREES = 0.3
# Strength of a grid, in deviations, from which there is one; the same for a grid of its own.
_GRID = 6.0
# Largest period of an image in which no JPEG left its steps; deviations that are no chance.
_STEPS, _WORSE = 0.15, 3.0
# Correlation from which another place resembles the region.
_RESEMBLES = 0.6


class Fact(NamedTuple):
    """One measured fact.

    Attributes:
        name: What was measured, such as "cell" or "noise".
        value: The number or word; None = it cannot be measured there.
        unit: Of the number; "" = a word, or none.
        percentile: Percentage of regions of authentic photographs, of similar size, that differ
            less; None where the fact is no difference, or was not calibrated.
        sentence: The fact in plain words; stands alone.
        region: Number of the region, from 1; None = the whole image.
    """

    name: str
    value: float | str | None
    unit: str
    percentile: float | None
    sentence: str
    region: int | None


def measure(
    image: np.ndarray,
    prediction: Prediction,
    *,
    file: bytes | None = None,
    sentences: Sentences = ENGLISH,
    regions: list[Region] | None = None,
) -> list[Fact]:
    """Measures what can be said of a prediction.

    Args:
        image: (H, W, 3) uint8 RGB, as the forgery map lies.
        prediction: Of `loupe.predict`.
        file: The image's file, for the quantisation steps that a JPEG states.
        sentences: Table of sentences, for another language.
        regions: `find_regions` of both, where the caller has them.

    Raises:
        ValueError: Image and map do not fit.
    """
    if image.dtype != np.uint8 or image.shape != (*prediction.forgery_map.shape, 3):
        raise ValueError(
            f"the image is {image.dtype} {image.shape}, the forgery map "
            f"{prediction.forgery_map.shape}; give (H, W, 3) uint8 RGB of the map's size, turned "
            "upright as the map is"
        )
    if regions is None:
        regions = find_regions(image, prediction.forgery_map)
    facts = list(_of_image(prediction, regions, sentences))
    facts += _of_file(file, sentences)
    for region in regions:
        facts += _of_region(image, region, sentences)
    return facts


def _of_image(
    prediction: Prediction, regions: list[Region], sentences: Sentences
) -> Iterator[Fact]:
    verdict = prediction.verdict or "none"
    text = say(sentences, f"verdict/{verdict}", probability=prediction.score)
    yield Fact("verdict", prediction.verdict or None, "", None, text, None)
    fraction = float(np.mean(prediction.forgery_map > THRESHOLD)) if regions else 0.0
    case = "none" if not regions else "one" if len(regions) == 1 else "many"
    text = say(sentences, f"regions/{case}", count=len(regions), fraction=fraction)
    yield Fact("regions", float(len(regions)), "regions", None, text, None)
    yield _agreement(prediction, bool(regions), sentences)


def _agreement(prediction: Prediction, marked: bool, sentences: Sentences) -> Fact:
    """Whether verdict, patch map and mask say the same."""
    overlap = _overlap(prediction)
    if prediction.verdict == "authentic" and marked:
        case = "contradiction"
    elif prediction.verdict == "forged" and not marked:
        case = "without"
    elif overlap is None:
        case = "none" if prediction.patch_map is None else "empty"
    else:
        case = "good" if overlap >= _AGREES else "poor"
    values = {"overlap": overlap or 0.0, "verdict": prediction.verdict}
    text = say(sentences, f"agreement/{case}", **values)
    return Fact("agreement", overlap, "intersection over union", None, text, None)


def _overlap(prediction: Prediction) -> float | None:
    """Intersection over union of patch map and mask, on the grid of patches; None = both empty."""
    if prediction.patch_map is None:
        return None
    patches = prediction.patch_map > THRESHOLD
    mask = (prediction.forgery_map > THRESHOLD).astype(np.float32)
    size = (patches.shape[1], patches.shape[0])
    cells = cv2.resize(mask, size, interpolation=cv2.INTER_AREA) >= 0.5
    union = np.count_nonzero(patches | cells)
    return float(np.count_nonzero(patches & cells) / union) if union else None


def _of_file(file: bytes | None, sentences: Sentences) -> Iterator[Fact]:
    """The quantisation steps that a JPEG states."""
    if file is None or not file.startswith(b"\xff\xd8"):
        return
    try:
        image = Image.open(io.BytesIO(file), formats=("JPEG",))
    except (OSError, ValueError, SyntaxError):
        return
    tables = getattr(image, "quantization", None)
    if tables:
        steps = ", ".join(str(step) for step in list(next(iter(tables.values())))[:6])
        text = say(sentences, "file/match", steps=steps)
        yield Fact("file_steps", steps, "grey levels", None, text, None)


def _of_region(image: np.ndarray, region: Region, sentences: Sentences) -> Iterator[Fact]:
    number, size = region.number, size_of(region.mask)
    left, top, right, bottom = region.bounds
    cell = cell_of(region.mask)
    place = {"cell": cell, "left": left, "top": top, "right": right, "bottom": bottom}
    yield Fact("cell", cell, "", None, say(sentences, "cell", region=number, **place), number)
    fraction = float(region.mask.mean())
    text = say(sentences, "size", region=number, fraction=fraction, size=size)
    yield Fact("size", fraction, "fraction of the image", None, text, number)
    shape, solidity = shape_of(region.mask)
    text = say(sentences, "shape", region=number, shape=shape, solidity=solidity)
    yield Fact("shape", shape, "", None, text, number)
    tone = tone_of(image, region.mask)
    yield Fact("tone", tone, "", None, say(sentences, "tone", region=number, tone=tone), number)
    for name, function in MEASUREMENTS.items():
        yield _compared(name, region, size, function(region), sentences)


_UNITS = {
    "brightness": "grey levels",
    "sharpness": "binary logarithm of a ratio",
    "noise": "grey levels",
    "grid": "standard deviations",
    "steps": "standard deviations",
    "copy": "correlation",
}


def _compared(
    measurement: str, region: Region, size: str, found: Measured | None, sentences: Sentences
) -> Fact:
    """A measurement as a fact, with its rank among authentic photographs."""
    name = "brightness" if measurement == "tone" else measurement
    if found is None:
        what = sentences[f"name/{name}"]
        text = say(sentences, "unmeasured", region=region.number, name=what)
        return Fact(name, None, _UNITS[name], None, text, region.number)
    percentile = percentile_of(measurement, size, found.difference)
    case = _case(name, found)
    if case in ("grid/none", "steps/none"):
        percentile = None
    rank = "" if percentile is None else say(sentences, "rank", percentile=percentile)
    values = found.words | {"region": region.number, "rank": rank, "amount": abs(found.value)}
    if name == "copy":
        mirrored = sentences["mirrored"] if found.words["mirrored"] else ""
        values |= {"correlation": found.value, "mirrored": mirrored}
    text = say(sentences, case, **values)
    return Fact(name, found.value, _UNITS[name], percentile, text, region.number)


def _case(name: str, found: Measured) -> str:
    """Which template says it."""
    if name == "grid":
        if float(str(found.words["outside_strength"])) < _GRID:
            return "grid/none"
        same = found.words["inside"] == found.words["outside"] or found.value < _GRID
        return "grid/same" if same else "grid/other"
    if name == "steps":
        if float(str(found.words["strength"])) < _STEPS:
            return "steps/none"
        return "steps/other" if found.value > _WORSE else "steps/same"
    if name == "copy":
        return "copy/some" if found.value >= _RESEMBLES else "copy/none"
    return f"{name}/{'more' if found.value > 0 else 'less'}"
