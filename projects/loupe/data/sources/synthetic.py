"""Synthetic forgeries as a data set that lies on no disk.

A data set is named `synthetic://SPLIT?size=S&seed=N&count=M`, SPLIT being train, valid or test,
perhaps with

- `&difficulty=D`, 0 to 100 per cent (100 by default, see `make_forgery`);
- `&uncropped=U`, per cent of hosts whose JPEG blocks start at the image's corner (0 by default);
- `&reshared=R`, per cent of images that were shrunk, stored as JPEG once more, or both (0 by
  default);
- `&views=1`, views of photographs as people meet them, in place of the draws that difficulty,
  uncropped and reshared steer; an even index and the next one are authentic and forged twins
  (`loupe.synthesis.views`);
- `&classes=3`: authentic images, those generated as a whole and forged ones in turn, in place of
  authentic and forged ones (not with views);
- `&techniques=splice+splice+copy-move`, those to take in turn, instead of all but `clone`;
- `&without=removal+generated`, those to leave out;
- `&photographs=PATH`, further photographs: a folder, or a manifest, of which the authentic ones
  count.

One image of it has the same name with `index=I` for the count. An image depends on its name alone
(and on the photographs named), so that every worker and every epoch sees the same one. Even indices
are authentic, odd ones forged, the techniques in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np

from loupe.data.sources.entries import DatasetDict, DatasetError, make_dataset_dict
from loupe.data.sources.photographs import SPLITS, gather_photographs
from loupe.synthesis import (
    AUTHENTIC,
    DEFAULT_TECHNIQUES,
    SMALLEST,
    TECHNIQUES,
    SyntheticSample,
    make_forgery,
    make_view,
    regenerate,
)

SCHEME = "synthetic://"
_NUMBERS = {
    **{"size": 256, "seed": 0, "difficulty": 100, "uncropped": 0, "reshared": 0, "views": 0},
    "classes": 2,
}
_PERCENT = ("difficulty", "uncropped", "reshared")
# Those that a name mentions only where they are not the default.
_RARE = {"views", "classes"}
# Of the middle one of three classes: the whole image went through a generator's last layers.
GENERATED_WHOLE = "generated-whole"
_WORDS = ("techniques", "without", "photographs")


class _Name(NamedTuple):
    """What a stream's or an image's name says.

    Attributes:
        split: one of SPLITS.
        numbers: size, seed, difficulty, uncropped, reshared, views, classes, and count or index.
        techniques: those to take in turn.
        photographs: further ones, a folder or a manifest; "" = none.
    """

    split: str
    numbers: dict[str, int]
    techniques: tuple[str, ...]
    photographs: str


def is_synthetic(name: str) -> bool:
    """Whether a data set's or an image's name means this stream."""
    return name.startswith(SCHEME)


def list_synthetic(name: str) -> list[DatasetDict]:
    """Dataset dicts of a named synthetic data set; nothing is drawn yet.

    Raises:
        DatasetError: the name is malformed, or the photographs that it names are not there.
    """
    parsed = _parse(name, {"count": 1000})
    gather_photographs(parsed.split, parsed.photographs)
    numbers, techniques = parsed.numbers, parsed.techniques
    stem = f"{SCHEME}{parsed.split}?" + "".join(
        f"{key}={numbers[key]}&"
        for key, default in _NUMBERS.items()
        if key not in _RARE or numbers[key] != default
    )
    if techniques != DEFAULT_TECHNIQUES:
        stem += f"techniques={'+'.join(techniques)}&"
    if parsed.photographs:
        stem += f"photographs={quote(parsed.photographs)}&"
    return [
        make_dataset_dict(
            f"{stem}index={index}",
            f"{parsed.split}-{numbers['seed']}-{index:07d}",
            label=int(index % numbers["classes"] > 0),
            technique=technique_of(index, techniques, numbers["classes"]),
            source=f"synthetic-{parsed.split}",
            wholly_forged=technique_of(index, techniques, numbers["classes"]) == GENERATED_WHOLE,
        )
        for index in range(numbers["count"])
    ]


def technique_of(
    index: int, techniques: Sequence[str] = DEFAULT_TECHNIQUES, classes: int = 2
) -> str:
    """Even images are authentic, odd ones forged by each technique in turn; or three in turn."""
    kind = index % classes
    if kind == 0:
        return AUTHENTIC
    return (
        techniques[index // classes % len(techniques)] if kind == classes - 1 else GENERATED_WHOLE
    )


def make_sample(
    split: str,
    seed: int,
    index: int,
    size: int,
    difficulty: int = 100,
    techniques: Sequence[str] = DEFAULT_TECHNIQUES,
    photographs: str = "",
    uncropped: int = 0,
    reshared: int = 0,
    views: int = 0,
    classes: int = 2,
) -> SyntheticSample:
    """The sample with that index: a pure function of its arguments.

    Args:
        split: one of SPLITS.
        seed: of the stream.
        index: even = authentic, odd = forged.
        size: side in pixels.
        difficulty: 0 to 100, see `make_forgery`.
        techniques: those of the stream, in turn.
        photographs: a folder or a manifest of further ones.
        uncropped: 0 to 100, see `make_forgery`.
        reshared: 0 to 100, see `make_forgery`.
        views: 0, or 1 for views (`make_view`).
        classes: 2, or 3 with images that are generated as a whole.

    Raises:
        DatasetError: the further photographs cannot be read.
    """
    technique = technique_of(index, techniques, classes)
    if views:
        # An authentic image and the forged one behind it are twins.
        twins = (SPLITS.index(split), seed, index // 2)
        return make_view(twins, gather_photographs(split, photographs), size, technique)
    rng = np.random.default_rng((SPLITS.index(split), seed, index))
    is_whole = technique == GENERATED_WHOLE
    sample = make_forgery(
        rng,
        gather_photographs(split, photographs),
        size,
        DEFAULT_TECHNIQUES if is_whole else (technique,),
        forged=technique != AUTHENTIC and not is_whole,
        difficulty=difficulty / 100,
        uncropped=uncropped / 100,
        reshared=reshared / 100,
    )
    if not is_whole:
        return sample
    image = regenerate(rng, sample.image, easy=rng.random() >= difficulty / 100)
    whole = np.ones_like(sample.mask)
    return SyntheticSample(image, whole, label=1, technique=GENERATED_WHOLE)


def render(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(S, S, 3) uint8 image and (S, S) float32 mask of one image's name.

    Raises:
        DatasetError: the name is malformed, or the photographs that it names cannot be read.
    """
    parsed = _parse(name, {"index": 0})
    numbers = parsed.numbers
    sample = make_sample(
        parsed.split,
        numbers["seed"],
        numbers["index"],
        numbers["size"],
        numbers["difficulty"],
        parsed.techniques,
        parsed.photographs,
        numbers["uncropped"],
        numbers["reshared"],
        numbers["views"],
        numbers["classes"],
    )
    return sample.image, sample.mask.astype(np.float32)


def _parse(name: str, last: dict[str, int]) -> _Name:
    """Reads a name; `last` is the number that only this kind of name has, with its default."""
    parts = urlsplit(name)
    split = parts.netloc
    defaults = _NUMBERS | last
    query = parse_qs(parts.query, keep_blank_values=True)
    given = {key: values[-1] for key, values in query.items()}
    words = {key: given.pop(key) for key in _WORDS if key in given}
    unknown = [key for key in given if key not in defaults]
    wrong = [f"{key}={value}" for key, value in given.items() if not value.isdecimal()]
    if split not in SPLITS or unknown or wrong or parts.fragment:
        raise DatasetError(
            f"{name}: synthetic data are named {SCHEME}SPLIT?size=256&seed=0&count=1000, "
            f"SPLIT is one of {', '.join(SPLITS)}; all values are whole numbers except those of "
            f"{', '.join(_WORDS)}; write #, & and + in a path as %23, %26, %2B"
        )
    numbers = defaults | {key: int(value) for key, value in given.items()}
    for key in _PERCENT:
        if numbers[key] > 100:
            raise DatasetError(f"{name}: {key} is {numbers[key]}; it must be from 0 to 100")
    if numbers["size"] < SMALLEST:
        raise DatasetError(f"{name}: size is {numbers['size']}; it must be at least {SMALLEST}")
    if numbers["classes"] not in (2, 3) or (numbers["classes"] == 3 and numbers["views"]):
        raise DatasetError(f"{name}: classes must be 2, or 3 without views")
    return _Name(split, numbers, _choose(name, words), words.get("photographs", ""))


def _choose(name: str, words: dict[str, str]) -> tuple[str, ...]:
    """The techniques that a name asks for; a plus sign stands for a space in it."""
    chosen, left_out = (
        tuple(words[key].replace("+", " ").split()) if key in words else None
        for key in ("techniques", "without")
    )
    unknown = {*(chosen or ()), *(left_out or ())} - set(TECHNIQUES)
    wanted = DEFAULT_TECHNIQUES if chosen is None else chosen
    kept = tuple(t for t in wanted if t not in (left_out or ()))
    if unknown or not kept:
        raise DatasetError(
            f"{name}: synthetic data are named with techniques=... or without=..., some of "
            f"{'+'.join(TECHNIQUES)}; unknown: {', '.join(sorted(unknown)) or 'none'}, "
            f"left: {len(kept)}"
        )
    return kept
