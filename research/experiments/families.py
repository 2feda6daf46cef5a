"""What each family of forgeries in training adds: encoders trained on all but one, side by side.

Stage 1 alone, encoder and classifier from scratch: its patch map answers "where". Runs are shared
with leave-one-out, which trains the same stage 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loupe.writing import markdown_table
from research.experiments.ablations import Row
from research.experiments.intervals import (
    Interval,
    bootstrap_interval,
    mean_change,
    metric_values,
    t_interval,
)
from research.experiments.leave_one_out import Plan, job_without, require_synthetic, test_name
from research.experiments.measured import pair_of, read_measured
from research.experiments.options import Scale, job_of
from research.experiments.report import (
    ends_text,
    interval_text,
    number,
    write_report,
)
from research.experiments.runs import Evaluation, RunError, Runner

EVERYTHING = "everything"
STAGE_1 = Row("from_scratch_stage1", "", "from_scratch_stage1", "")
METRICS = ("image/AUC", "pixel/AUC-image", "pixel/F1-best-image", "pixel/F1-pooled")

# Paths of evaluations by (test set's name, what was left out, seed).
Key = tuple[str, str, int]


def run_families(plan: Plan, scale: Scale, runner: Runner, report: Path) -> None:
    """Trains and measures what is missing, writing the table after each model.

    Raises:
        ValueError: the training set is not synthetic, so that nothing can be left out.
    """
    require_synthetic(scale.train)
    tests = {"synthetic" if "://" in scale.test else test_name(scale.test): scale.test}
    evaluations = {
        name: Evaluation("plain", test, (), scale.limit) for name, test in tests.items()
    } | {
        test_name(path): Evaluation("plain", path, plan.transfer_options, plan.transfer_limit)
        for path in plan.transfer
    }
    paths: dict[Key, Path] = {}
    for seed in plan.seeds:
        for left_out in (EVERYTHING, *plan.techniques):
            job = (
                job_of(STAGE_1, seed, scale)
                if left_out == EVERYTHING
                else job_without(left_out, STAGE_1, seed, scale)
            )
            try:
                found = runner.evaluate(job, list(evaluations.values()))
                for test, path in zip(evaluations, found, strict=True):
                    if path.exists():
                        paths[test, left_out, seed] = path
            except (RunError, ValueError) as error:
                runner.failures.append(f"without {left_out}, seed {seed}: {error}")
            write_families(plan, scale, paths, runner, report)


def write_families(
    plan: Plan, scale: Scale, paths: dict[Key, Path], runner: Runner, report: Path
) -> None:
    """Writes what can be said so far."""
    lines = []
    text = "## What each family of forgeries adds\n"
    for test in dict.fromkeys(key[0] for key in paths):
        rows = []
        for left_out in dict.fromkeys(key[1] for key in paths if key[0] == test):
            own = [line_of(test, left_out, metric, paths) for metric in METRICS]
            lines += own
            name = left_out if left_out == EVERYTHING else f"without {left_out}"
            rows.append([name, *(cell(line) for line in own), str(own[0]["models"])])
        text += f"\n### {test}\n\n"
        text += markdown_table(["trained on", *(f"`{m}`" for m in METRICS), "models"], rows)
    text += (
        "\nMean over models (seeds); in brackets the difference to everything, same seeds, its 95% "
        "bootstrap interval over test images and, from two seeds on, its 95% t interval over "
        "seeds.\n"
        f"\nTrained on `{scale.train}`; synthetic test set `{scale.test}`.\n"
    )
    content = {"plan": plan._asdict(), "scale": scale._asdict(), "failures": runner.failures}
    write_report(report, "families", text, lines, content)


def line_of(test: str, left_out: str, metric: str, paths: dict[Key, Path]) -> dict[str, Any]:
    """One row and metric: the mean over models, and the difference to those that saw everything."""
    own = {seed: path for (t, name, seed), path in paths.items() if (t, name) == (test, left_out)}
    values = [metric_values(read_measured(path).columns)[metric] for path in own.values()]
    line = {"test": test, "left_out": left_out, "metric": metric, "models": len(values)}
    line["mean"] = float(np.mean(values))
    pairs = [
        pair_of(paths[test, EVERYTHING, seed], path)
        for seed, path in own.items()
        if left_out != EVERYTHING and (test, EVERYTHING, seed) in paths
    ]
    if pairs:
        difference, low, high, images = bootstrap_interval(pairs, metric)
        line |= {"difference": difference, "low": low, "high": high, "images": images}
        over_seeds = t_interval([mean_change([pair], metric) for pair in pairs])
        line |= {"seeds_low": over_seeds.low, "seeds_high": over_seeds.high, "pairs": len(pairs)}
    return line


def cell(line: dict[str, Any]) -> str:
    """The value and, in brackets, the difference."""
    text = number(line["mean"])
    if "difference" not in line:
        return text
    interval = Interval(line["difference"], line["low"], line["high"], line["images"])
    over_seeds = ends_text(line["seeds_low"], line["seeds_high"])
    return f"{text} ({interval_text(interval)}{over_seeds})"
