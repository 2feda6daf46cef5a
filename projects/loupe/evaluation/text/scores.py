"""Scores of explanations: exact facts first, false claims, contradictions, with intervals.

A fact is right if the text claims exactly what is true; a text that says nothing of it is wrong. So
facts are scored over all forged images, whatever the detector found. `stated/...` counts the texts
alone that say something of it.

n images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from loupe.evaluation.bootstrap import RESAMPLES, bootstrap
from loupe.vocabulary import Claims

FACTS = ("technique", "cell", "size", "tone", "side")


class Explained(NamedTuple):
    """One explained image.

    Attributes:
        image_id: Of the image.
        text: What was written.
        complete: False = cut at the limit of tokens.
        claims: What the text claims.
        truth: What is true; its verdict is "forged" or "authentic".
        verdict: Of the detector; "" = not known.
        region: Claims that the region in use would give; None = there was no region.
        reference: What a person, or a template, wrote; "" = nothing.
    """

    image_id: str
    text: str
    complete: bool
    claims: Claims
    truth: Claims
    verdict: str
    region: Claims | None
    reference: str = ""


class Score(NamedTuple):
    """A mean over images, its 95% interval, and the number of images."""

    value: float
    low: float
    high: float
    images: int


def hits(records: Sequence[Explained]) -> dict[str, np.ndarray]:
    """For each score the images' values, (n,): 1, 0, or NaN where an image does not count."""
    columns: dict[str, list[float]] = {}
    for one in records:
        for name, value in _of_one(one).items():
            columns.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in columns.items()}


def _of_one(one: Explained) -> dict[str, float]:
    forged = one.truth.verdict == "forged"
    nan = float("nan")
    values = {"facts/verdict": float(one.claims.verdict == one.truth.verdict)}
    right = []
    for name in FACTS:
        claimed, true = getattr(one.claims, name), getattr(one.truth, name)
        known = forged and bool(true)
        hit = float(claimed == true)
        values[f"facts/{name}"] = hit if known else nan
        values[f"stated/{name}"] = hit if known and claimed else nan
        if known:
            right.append(hit)
    values["facts/all"] = min(right) if right else nan
    values["detector/verdict"] = float(one.claims.verdict == one.verdict) if one.verdict else nan
    # A region is claimed of an image that is called authentic, or of one that is.
    names_region = float(bool(one.claims.cell))
    values["false/region-called-authentic"] = names_region if one.verdict == "authentic" else nan
    values["false/region-authentic"] = nan if forged else names_region
    values["false/forged-authentic"] = nan if forged else float(one.claims.verdict == "forged")
    contradicts = one.region is not None and bool(one.claims.cell)
    values["contradiction/cell"] = (
        float(one.region is not None and one.claims.cell != one.region.cell) if contradicts else nan
    )
    values["text/complete"] = float(one.complete)
    return values


def contradictions(claims: Claims, region: Claims | None) -> tuple[str, ...]:
    """In what a text contradicts the region that it was shown: names of facts.

    Args:
        claims: Of the text.
        region: What is true of the region; None = there is none.
    """
    if region is None:
        return ("region",) if claims.cell else ()
    names = ("cell", "size", "tone", "side")
    return tuple(
        name
        for name in names
        if getattr(claims, name) and getattr(claims, name) != getattr(region, name)
    )


def score(records: Sequence[Explained], *, resamples: int = RESAMPLES) -> dict[str, Score]:
    """All scores with 95% intervals of the bootstrap over images."""
    columns = hits(records)

    def means(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: _weighted_mean(values, weights) for name, values in columns.items()}

    values = means(np.ones((1, len(records))))
    intervals = bootstrap(means, len(records), resamples=resamples)
    return {
        name: Score(float(values[name][0]), *intervals[name], int(np.isfinite(column).sum()))
        for name, column in columns.items()
    }


def difference(first: np.ndarray, second: np.ndarray) -> Score:
    """Mean of first less second over the same images, paired, with its interval.

    Args:
        first: (n,) values of one arm, or (seeds, n).
        second: The same of the other.
    """
    paired = np.atleast_2d(first - second).mean(axis=0)
    known = np.isfinite(paired)

    def mean(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"difference": _weighted_mean(paired, weights)}

    value = float(mean(np.ones((1, len(paired))))["difference"][0])
    low, high = bootstrap(mean, len(paired))["difference"]
    return Score(value, low, high, int(known.sum()))


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    total = weights[:, known].sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, weights[:, known] @ values[known] / total, np.nan)
