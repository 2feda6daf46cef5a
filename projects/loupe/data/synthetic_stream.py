"""Synthetic forgeries as a data set that lies on no disk.

A data set is named `synthetic://SPLIT?size=S&seed=N&count=M`, SPLIT being train, valid or test,
perhaps with `&difficulty=D`, 0 to 100 per cent (100 by default, see `make_forgery`); one image of
it `synthetic://SPLIT?size=S&seed=N&difficulty=D&index=I`. An image depends on its name alone, so
that every worker and every epoch sees the same one. Even indices are authentic, odd ones forged,
the techniques in turn.
"""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import numpy as np

from loupe.data.pairing import DatasetDict, DatasetError, make_dataset_dict
from loupe.data.photographs import SPLITS, load_photographs
from loupe.data.synthetic import AUTHENTIC, TECHNIQUES, SyntheticSample, make_forgery

SCHEME = "synthetic://"
_DEFAULTS = {"size": 256, "seed": 0, "count": 1000, "difficulty": 100}


def is_synthetic(name: str) -> bool:
    """Whether a data set's or an image's name means this stream."""
    return name.startswith(SCHEME)


def list_synthetic(name: str) -> list[DatasetDict]:
    """Dataset dicts of a named synthetic data set; nothing is drawn yet.

    Raises:
        DatasetError: the name is malformed.
    """
    split, options = _parse(name, _DEFAULTS)
    stem = f"{SCHEME}{split}?size={options['size']}&seed={options['seed']}"
    stem += f"&difficulty={options['difficulty']}&index="
    return [
        make_dataset_dict(
            f"{stem}{index}",
            f"{split}-{options['seed']}-{index:07d}",
            label=int(technique_of(index) != AUTHENTIC),
            technique=technique_of(index),
            source=f"synthetic-{split}",
        )
        for index in range(options["count"])
    ]


def technique_of(index: int) -> str:
    """Even images are authentic, odd ones forged by each technique in turn."""
    return TECHNIQUES[index // 2 % len(TECHNIQUES)] if index % 2 else AUTHENTIC


def make_sample(
    split: str, seed: int, index: int, size: int, difficulty: int = 100
) -> SyntheticSample:
    """The sample with that index: a pure function of its arguments."""
    rng = np.random.default_rng((SPLITS.index(split), seed, index))
    technique = technique_of(index)
    return make_forgery(
        rng,
        load_photographs(split),
        size,
        (technique,),
        forged=technique != AUTHENTIC,
        difficulty=difficulty / 100,
    )


def render(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(S, S, 3) uint8 image and (S, S) float32 mask of one image's name."""
    split, options = _parse(name, {"size": 256, "seed": 0, "index": 0, "difficulty": 100})
    sample = make_sample(
        split, options["seed"], options["index"], options["size"], options["difficulty"]
    )
    return sample.image, sample.mask.astype(np.float32)


def _parse(name: str, defaults: dict[str, int]) -> tuple[str, dict[str, int]]:
    parts = urlsplit(name)
    split = parts.netloc
    given = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    unknown = [key for key in given if key not in defaults]
    wrong = [f"{key}={value}" for key, value in given.items() if not value.isdecimal()]
    if split not in SPLITS or unknown or wrong:
        raise DatasetError(
            f"{name}: synthetic data are named {SCHEME}SPLIT?size=256&seed=0&count=1000, "
            f"SPLIT being {', '.join(SPLITS)}, all else whole numbers"
        )
    return split, defaults | {key: int(value) for key, value in given.items()}
