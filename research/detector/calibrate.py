"""Fits the rule that turns scores into verdicts, on validation photographs and forgeries.

    python -m research.detector.calibrate output/measured_valid/images.csv output/verdict.json

The table is that of `research.detector.measure`, of weights without a rule: camera photographs in
all their versions (the set `cameras`) and streams of twins. Fitted are

- slope, offset and size term, by logistic regression on all sets, forged and authentic images
  weighing the same, and so do all sets;
- the operating point: the probability that `--alarms` of the camera photographs reach, the mean of
  all versions of them, and no version more than twice as often;
- the lower end of the undecided band: of no version more than `--band` are undecided.

Printed beside it is the threshold of the maps with the best mean F1 of forged images, sets weighing
the same: the value of MODEL.SEGMENTER.MASK_FROM (measure with the 0.5 that changes nothing).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from loupe.inference.verdict import REFERENCE_PIXELS, VerdictRule
from research.detector.measure import MASK_THRESHOLDS
from research.detector.summary import Rows, network_pixels, read_rows

_SMALLEST = 1e-6
# Of 29 photographs for calibration, shrunk to a longest side of 128, 160 and 192 px, 9, 4 and 5
# were called forged: an image with fewer pixels to a side than this is undecided.
SMALLEST_SIDE = 160
# Of pixels that equal their neighbour: photographs of the pool stay below, drawings above.
FLATTEST = 0.6


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="table of measured images")
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--alarms", type=float, default=0.05)
    parser.add_argument("--band", type=float, default=0.2)
    return parser.parse_args(words)


def features(rows: Rows) -> np.ndarray:
    """(n, 3): logit of the score, 1, doublings of the network image's pixels."""
    score = np.clip(rows.number("score"), _SMALLEST, 1 - _SMALLEST)
    doublings = np.log2(network_pixels(rows) / REFERENCE_PIXELS)
    return np.stack([np.log(score / (1 - score)), np.ones(len(score)), doublings], axis=1)


def fit(x: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficients (3,) of the likeliest logistic regression; a slope is never negative."""

    def loss(coefficients: np.ndarray) -> float:
        margin = (x @ coefficients) * np.where(labels > 0, 1, -1)
        return float((weights * np.logaddexp(0, -margin)).sum() / weights.sum())

    bounds = [(0.05, 5), (None, None), (None, None)]
    return minimize(loss, np.array([1.0, 0.0, 0.0]), method="L-BFGS-B", bounds=bounds).x


def balanced_weights(rows: Rows) -> np.ndarray:
    """(n,) so that sets weigh the same in each class, and both classes the same."""
    labels = rows.number("label")
    weights = np.zeros(len(labels))
    for label in (0, 1):
        names = rows.text("set")
        present = sorted(set(names[labels == label]))
        for name in present:
            inside = (names == name) & (labels == label)
            weights[inside] = 1 / (len(present) * inside.sum())
    return weights


def fit_rule(rows: Rows, alarms: float, band: float) -> VerdictRule:
    """The rule of a table."""
    x = features(rows)
    coefficients = fit(x, rows.number("label"), balanced_weights(rows))
    cameras = rows.text("set") == "cameras"
    probability = 1 / (1 + np.exp(-(x[cameras] @ coefficients)))
    versions = rows.text("version")[cameras]
    of_versions = [probability[versions == version] for version in sorted(set(versions))]
    high = lowest_threshold(probability, alarms, versions)
    for own in of_versions:
        # In whole photographs: 3 of 29 count as a tenth.
        part = round(2 * alarms * len(own)) / len(own)
        high = max(high, lowest_threshold(own, part))
    low = max(lower_end(own, high, band) for own in of_versions)
    photographs = len(set(rows.text("file")[cameras]))
    statement = (
        f"At most {alarms:.0%} of camera photographs reach {high:.2f}, and {2 * alarms:.0%} of any "
        f"version of them. Fitted on {photographs} photographs of cameras that occur nowhere in "
        f"training, in {len(set(versions))} versions, and on {int(rows.number('label').sum())} "
        "forgeries made of such photographs"
    )
    slope, offset, size_slope = (round(float(value), 4) for value in coefficients)
    return VerdictRule(
        slope,
        offset,
        size_slope,
        forged_from=round(high, 4),
        authentic_below=round(low, 4),
        smallest_side=SMALLEST_SIDE,
        flattest=FLATTEST,
        statement=statement,
    )


def best_mask_threshold(rows: Rows) -> float:
    """The threshold with the best mean F1 of forged images, sets weighing the same."""
    forged = rows.where(rows.number("label") > 0)
    names = forged.text("set")
    columns = {0.5: "f1"} | {value: f"f1_from_{value}" for value in MASK_THRESHOLDS}
    means = {
        value: np.mean(
            [np.nanmean(forged.number(column)[names == name]) for name in sorted(set(names))]
        )
        for value, column in columns.items()
    }
    return max(means, key=lambda value: means[value])


def lowest_threshold(values: np.ndarray, part: float, groups: np.ndarray | None = None) -> float:
    """The lowest number of four digits that at most a part of the values reach.

    Args:
        values: (n,) probabilities.
        part: fraction of the values, from 0 to less than 1.
        groups: (n,) names of groups that weigh the same; None = all values do.
    """
    weights = np.ones(len(values))
    for group in () if groups is None else set(groups):
        weights[groups == group] = 1 / (groups == group).sum()
    falling = np.argsort(-values, kind="stable")
    reached = np.cumsum(weights[falling]) / weights.sum()
    refused = values[falling][np.searchsorted(reached, part + 1e-9, side="right")]
    return float(np.floor(1e4 * refused + 1) / 1e4)


def lower_end(values: np.ndarray, high: float, part: float) -> float:
    """The lowest number that leaves at most a part of the values between itself and `high`."""
    below = values[values < high]
    undecided = int(part * len(values) + 1e-9)
    if undecided >= len(below):
        return 0.0
    return lowest_threshold(below, undecided / len(below))


def main(words: list[str] | None = None) -> None:
    """Fits and writes the rule."""
    arguments = parse_arguments(words)
    rows = read_rows(arguments.images)
    rule = fit_rule(rows, arguments.alarms, arguments.band)
    arguments.output.write_text(json.dumps(rule._asdict(), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rule._asdict(), indent=1))
    print(f"MODEL.SEGMENTER.MASK_FROM {best_mask_threshold(rows)}")


if __name__ == "__main__":
    main()
