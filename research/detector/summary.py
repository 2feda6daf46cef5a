"""The table of a measured detector, with 95% intervals over source photographs.

    python -m research.detector.summary output/measured/images.csv [--rule output/verdict.json]

Of weights that carry a rule, scores are calibrated and verdicts are the rule's. Of others, `--rule`
gives both; without it forged means a score of at least 0.5. Intervals resample groups of images
that share a source photograph.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from loupe.evaluation.calibration import calibration_error
from loupe.inference.verdict import VerdictRule

RESAMPLES = 500
# The longest side of what the network sees (INPUT.SIZE of configs/loupe_tiny.yaml).
LONGEST = 1024


class Rows(NamedTuple):
    """Columns of a table of measured images."""

    columns: dict[str, np.ndarray]

    def text(self, name: str) -> np.ndarray:
        """(n,) of str."""
        return self.columns[name]

    def number(self, name: str) -> np.ndarray:
        """(n,) of float."""
        return self.columns[name].astype(float)

    def where(self, chosen: np.ndarray) -> Rows:
        """Some of the rows."""
        return Rows({name: values[chosen] for name, values in self.columns.items()})

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.columns["score"])


def read_rows(path: Path) -> Rows:
    """The table of `research.detector.measure`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return Rows({name: np.array([row[name] for row in rows]) for name in rows[0]})


def network_pixels(rows: Rows) -> np.ndarray:
    """(n,) pixels that the network saw of each image."""
    height, width = rows.number("height"), rows.number("width")
    scale = np.minimum(1.0, LONGEST / np.maximum(height, width))
    return np.round(height * scale) * np.round(width * scale)


def with_rule(rows: Rows, rule: VerdictRule) -> Rows:
    """The rows with calibrated scores."""
    pixels = network_pixels(rows)
    scores = [
        rule.probability(score, int(size))
        for score, size in zip(rows.number("score"), pixels, strict=True)
    ]
    return Rows(rows.columns | {"score": np.array(scores)})


def interval(rows: Rows, metric: Callable[[Rows], float]) -> str:
    """A metric with its 95% interval, as text."""
    low, high = resampled_ends(rows.text("group"), lambda chosen: metric(rows.where(chosen)))
    return f"{metric(rows):.3f} [{low:.3f}, {high:.3f}]"


def resampled_ends(
    groups: np.ndarray, value: Callable[[np.ndarray], float], resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Ends of the 95% interval of a value, drawing whole groups of images.

    Args:
        groups: (n,) names of the images' groups.
        value: Of the images with these numbers.
        resamples: How often groups are drawn.
    """
    members = [np.flatnonzero(groups == name) for name in sorted(set(groups))]
    generator = np.random.default_rng(0)
    values = []
    for _ in range(resamples):
        drawn = generator.choice(len(members), len(members))
        values.append(value(np.concatenate([members[i] for i in drawn])))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return low, high


def image_auc(rows: Rows) -> float:
    """AUC of the scores; not a number where all images are of one kind."""
    labels = rows.number("label")
    return roc_auc_score(labels, rows.number("score")) if 0 < labels.mean() < 1 else np.nan


def forged_mean(name: str) -> Callable[[Rows], float]:
    """The mean of a column over the forged images."""

    def metric(rows: Rows) -> float:
        values = rows.number(name)[rows.number("label") == 1]
        return float(np.nanmean(values)) if len(values) else np.nan

    return metric


def with_verdicts(rows: Rows, rule: VerdictRule | None) -> Rows:
    """The rows with calibrated scores and a column `verdict`.

    Raises:
        SystemExit: There is a rule, and the scores were calibrated when they were measured.
    """
    own = rows.columns.get("verdict")
    if own is not None and (own != "").any():
        if rule is not None:
            raise SystemExit("error: the weights carried a rule: their scores are calibrated")
        return rows
    forged = undecided = 0.5
    if rule is not None:
        rows, forged, undecided = with_rule(rows, rule), rule.forged_from, rule.authentic_below
    score = rows.number("score")
    named = np.where(score >= undecided, "undecided", "authentic")
    return Rows(rows.columns | {"verdict": np.where(score >= forged, "forged", named)})


def _called(verdict: str) -> Callable[[Rows], float]:
    return lambda rows: float((rows.text("verdict") == verdict).mean())


def balanced_accuracy(*verdicts: str) -> Callable[[Rows], float]:
    """The balanced accuracy of taking these verdicts for forged and the others for authentic."""

    def metric(rows: Rows) -> float:
        forged = np.isin(rows.text("verdict"), verdicts)
        labels = rows.number("label") == 1
        return float((forged[labels].mean() + (~forged[~labels]).mean()) / 2)

    return metric


def _ece(rows: Rows) -> float:
    return float(
        calibration_error(rows.number("score"), rows.number("label"), np.ones((1, len(rows))))[0]
    )


def table(rows: Rows, rule: VerdictRule | None) -> list[str]:
    """Lines of Markdown."""
    rows = with_verdicts(rows, rule)
    lines = ["| camera photographs | n | called forged | undecided | median |", "|" + "---|" * 5]
    cameras = rows.where(rows.text("set") == "cameras")
    for version in dict.fromkeys(cameras.text("version")):
        part = cameras.where(cameras.text("version") == version)
        called = " | ".join(interval(part, _called(name)) for name in ("forged", "undecided"))
        lines.append(
            f"| {version} | {len(part)} | {called} | {np.median(part.number('score')):.2f} |"
        )
    metrics = {
        "image/AUC": image_auc,
        "bAcc": balanced_accuracy("forged"),
        "bAcc, undecided as forged": balanced_accuracy("forged", "undecided"),
        "ECE": _ece,
        "pixel/AUC-image": forged_mean("pixel_auc"),
        "F1-best-image": forged_mean("best_f1"),
        "F1-image": forged_mean("f1"),
    }
    names = ["set", "forged / authentic", *metrics, "alarm"]
    lines += ["", f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    others = rows.where(rows.text("set") != "cameras")
    for name in dict.fromkeys(zip(others.text("set"), others.text("version"), strict=True)):
        part = others.where((others.text("set") == name[0]) & (others.text("version") == name[1]))
        forged = int(part.number("label").sum())
        cells = [interval(part, metric) for metric in metrics.values()]
        authentic = part.where(part.number("label") == 0)
        alarm = f"{(authentic.number('alarm') >= 0.01).mean():.2f}" if len(authentic) else "-"
        cells.append(alarm)
        title = name[0] if name[1] == "as is" else f"{name[0]}, {name[1]}"
        lines.append(f"| {title} | {forged} / {len(part) - forged} | " + " | ".join(cells) + " |")
    return lines


def main(words: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--rule", type=Path, help="JSON file with a rule for verdicts")
    arguments = parser.parse_args(words)
    rule = None
    if arguments.rule:
        rule = VerdictRule.of(json.loads(arguments.rule.read_text(encoding="utf-8")))
    print("\n".join(table(read_rows(arguments.images), rule)))


if __name__ == "__main__":
    main()
