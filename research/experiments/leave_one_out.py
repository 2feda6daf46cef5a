"""Leave one technique out: trained without it, tested on it, plainly and adapted.

Of every synthetic technique T: stages 1 and 2 on everything but T, then a test set whose forgeries
are all made by T (authentic images included). Optionally the same models on other data sets.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loupe.synthesis import DEFAULT_TECHNIQUES, TECHNIQUES
from loupe.writing import markdown_table
from research.experiments.ablations import Row
from research.experiments.intervals import (
    Interval,
    Pair,
    bootstrap_interval,
    mean_change,
    metric_values,
    pooled_interval,
    t_interval,
)
from research.experiments.measured import pair_of, read_measured
from research.experiments.options import Scale, job_of
from research.experiments.report import (
    ends_text,
    interval_text,
    number,
    write_report,
)
from research.experiments.runs import Evaluation, Job, RunError, Runner

PLAIN = "plain"
METRICS = ("pixel/F1-pooled", "pixel/F1-image", "pixel/FPR-authentic")
SHOWN = ("image/AUC", "pixel/F1-pooled", "pixel/F1-image", "pixel/AUC-image", "pixel/FPR-authentic")
ALL = "mean of techniques"


class Plan(NamedTuple):
    """What is trained and measured.

    Attributes:
        techniques: those left out, one after the other.
        seeds: of the trainings.
        settings: `KEY VALUE` pairs by the setting's name, on top of plain evaluation.
        transfer: further data sets.
        transfer_options: `KEY VALUE` pairs for these, such as INPUT.RESIZE.
        transfer_limit: at most so many images of each.
        row: stage 2 to train.
    """

    techniques: tuple[str, ...]
    seeds: list[int]
    settings: dict[str, tuple[str, ...]]
    transfer: tuple[str, ...]
    transfer_options: tuple[str, ...]
    transfer_limit: int
    row: Row


# Paths of evaluations by (test set's name, left-out technique, seed, setting).
Key = tuple[str, str, int, str]


def run_leave_one_out(plan: Plan, scale: Scale, runner: Runner, report: Path) -> None:
    """Trains and measures what is missing, writing the tables after each model.

    Raises:
        ValueError: the data sets are not synthetic, so that no technique can be left out.
    """
    require_synthetic(scale.train, scale.test)
    paths: dict[Key, Path] = {}
    for seed in plan.seeds:
        for technique in plan.techniques:
            try:
                paths |= measure_model(plan, scale, runner, technique, seed)
            except (RunError, ValueError) as error:
                runner.failures.append(f"without {technique}, seed {seed}: {error}")
            write_tables(plan, scale, paths, runner, report)


def require_synthetic(*datasets: str) -> None:
    """Refuses data sets from which no technique can be left out.

    Raises:
        ValueError: one is not synthetic.
    """
    for dataset in datasets:
        if not dataset.startswith("synthetic://"):
            raise ValueError(
                f"{dataset or 'the configured data set'}: leaving a technique out needs "
                "synthetic data sets; give --train and --test"
            )


def measure_model(
    plan: Plan, scale: Scale, runner: Runner, technique: str, seed: int
) -> dict[Key, Path]:
    """Trains without a technique; measures on it and on the transfer sets, in all settings."""
    job = job_without(technique, plan.row, seed, scale)
    settings = {PLAIN: (), **plan.settings}
    wanted: dict[Key, Evaluation] = {}
    tests = {technique: (f"{scale.test}&techniques={technique}", (), scale.limit)}
    for path in plan.transfer:
        tests[test_name(path)] = (path, plan.transfer_options, plan.transfer_limit)
    for test, (dataset, options, limit) in tests.items():
        for name, changes in settings.items():
            evaluation = Evaluation(name, dataset, (*options, *changes), limit)
            wanted[test, technique, seed, name] = evaluation
    found = runner.evaluate(job, list(wanted.values()))
    return {key: path for key, path in zip(wanted, found, strict=True) if path.exists()}


def job_without(technique: str, row: Row, seed: int, scale: Scale) -> Job:
    """A row trained, in both stages, on everything but a technique."""
    trained = scale._replace(train=f"{scale.train}&without={technique}")
    return job_of(row, seed, trained, f"-without-{technique}")


def test_name(path: str) -> str:
    """Short name of a transfer set: its file's or folder's."""
    place = Path(path)
    return place.parent.name if place.name == "manifest.csv" else place.stem


test_name.__test__ = False  # It is no test, whatever pytest thinks of its name.


def write_tables(
    plan: Plan, scale: Scale, paths: dict[Key, Path], runner: Runner, report: Path
) -> None:
    """Writes what can be said so far."""
    tests = list(dict.fromkeys(key[0] for key in paths))
    lines = [line for test in tests for line in plain_lines(test, paths)]
    for setting in plan.settings:
        groups = {test: pairs_by_seed(test, setting, paths) for test in tests}
        groups = {test: pairs for test, pairs in groups.items() if pairs}
        for metric in METRICS:
            lines += [change_line(test, setting, metric, g) for test, g in groups.items()]
            held = {t: g for t, g in groups.items() if t in plan.techniques}
            if len(held) > 1:
                lines.append(overall_line(setting, metric, held))
    text = markdown_text(plan, scale, lines, tests)
    content = {
        "title": "leave one technique out",
        "plan": plan._asdict() | {"row": plan.row.name},
        "scale": scale._asdict(),
        "failures": runner.failures,
    }
    write_report(report, report_name(plan.row.name), text, lines, content)


def report_name(row: str) -> str:
    """Name of the report's files: each stage 2 has its own."""
    return "loo" if row == "stage2" else f"loo-{row}"


def plain_lines(test: str, paths: dict[Key, Path]) -> list[dict[str, Any]]:
    """Means over all models of the values in each setting."""
    lines = []
    for setting in dict.fromkeys(key[3] for key in paths if key[0] == test):
        keys = [key for key in paths if key[0] == test and key[3] == setting]
        measured = [read_measured(paths[key]) for key in keys]
        values = [metric_values(one.columns) for one in measured]
        seconds = np.mean([one.about["seconds"] / one.about["images"] for one in measured])
        for metric in SHOWN:
            interval = t_interval([value[metric] for value in values])
            line = {"test": test, "setting": setting, "metric": metric, "kind": "value"}
            lines.append(
                line
                | {"mean": interval.mean, "models": len(keys)}
                | {"seconds_per_image": round(float(seconds), 4)}
            )
    return lines


def pairs_by_seed(test: str, setting: str, paths: dict[Key, Path]) -> dict[int, list[Pair]]:
    """Plain and adapted evaluations of the same models, by seed."""
    pairs: dict[int, list[Pair]] = {}
    for key, path in paths.items():
        before = paths.get((*key[:3], PLAIN))
        if key[0] == test and key[3] == setting and before is not None:
            pairs.setdefault(key[2], []).append(pair_of(before, path))
    return pairs


def change_line(
    test: str, setting: str, metric: str, groups: dict[int, list[Pair]]
) -> dict[str, Any]:
    """Change on one test set: its interval over images, and over seeds."""
    over_images = bootstrap_interval([pair for g in groups.values() for pair in g], metric)
    over_seeds = t_interval([mean_change(pairs, metric) for pairs in groups.values()])
    return _line(test, setting, metric, over_images, over_seeds)


def overall_line(
    setting: str, metric: str, groups: dict[str, dict[int, list[Pair]]]
) -> dict[str, Any]:
    """Mean change over the held-out techniques, and the one that fares worst."""
    over_images = pooled_interval(
        [[pair for pairs in group.values() for pair in pairs] for group in groups.values()], metric
    )
    # Only seeds that every technique has: the mean over techniques is one number for each.
    seeds = set.intersection(*(set(group) for group in groups.values()))
    by_seed = [
        float(np.mean([mean_change(group[seed], metric) for group in groups.values()]))
        for seed in sorted(seeds)
    ]
    means = {
        technique: float(np.mean([mean_change(pairs, metric) for pairs in group.values()]))
        for technique, group in groups.items()
    }
    worst = min(means, key=means.__getitem__)
    line = _line(ALL, setting, metric, over_images, t_interval(by_seed))
    over_techniques = t_interval(list(means.values()))
    line |= {"worst": worst, "worst_change": means[worst]}
    line |= {"techniques_low": over_techniques.low, "techniques_high": over_techniques.high}
    return line | over_models(
        [p for group in groups.values() for ps in group.values() for p in ps], metric
    )


def over_models(pairs: list[Pair], metric: str) -> dict[str, Any]:
    """Every model, of one technique and seed, as one number: how many gained, and the worst."""
    changes = [mean_change([pair], metric) for pair in pairs]
    known = [change for change in changes if not math.isnan(change)]
    return {
        "models": len(known),
        "models_gained": sum(change > 0 for change in known),
        "worst_model": min(known, default=math.nan),
    }


def _line(
    test: str, setting: str, metric: str, over_images: Interval, over_seeds: Interval
) -> dict[str, Any]:
    return {
        "test": test,
        "setting": setting,
        "metric": metric,
        "kind": "change",
        "mean": over_images.mean,
        "images_low": over_images.low,
        "images_high": over_images.high,
        "images": over_images.count,
        "seeds_mean": over_seeds.mean,
        "seeds_low": over_seeds.low,
        "seeds_high": over_seeds.high,
        "seeds": over_seeds.count,
    }


def markdown_text(plan: Plan, scale: Scale, lines: list[dict[str, Any]], tests: list[str]) -> str:
    """Two tables for each setting: values, and changes with both intervals."""
    text = "## Leave one technique out\n\n" + value_table(lines)
    text += (
        "\nChange by adaptation, adapted minus plain. First interval: 95% bootstrap over test "
        "images, drawn alike for all models (what is left to chance is the images). Second: 95% t "
        "interval over the seeds' mean changes (what is left to chance is the training).\n"
    )
    for setting, changes in plan.settings.items():
        text += f"\n### {setting}\n\n`{' '.join(changes)}`\n\n"
        rows = []
        for test in [
            *(t for t in tests if t in plan.techniques),
            ALL,
            *(t for t in tests if t not in plan.techniques),
        ]:
            cells = [
                change_cell(line)
                for metric in METRICS
                for line in lines
                if line["kind"] == "change"
                and (line["test"], line["setting"], line["metric"]) == (test, setting, metric)
            ]
            if cells:
                rows.append([test, *cells])
        text += markdown_table(["test set", *(f"`{metric}`" for metric in METRICS)], rows)
        for line in lines:
            if "worst" in line and line["setting"] == setting and line["metric"] == METRICS[0]:
                text += overall_text(line)
    return text + (
        f"\nStage 2: `{plan.row.config}`. Seeds {', '.join(map(str, plan.seeds))}. Trained on "
        f"`{scale.train}&without=T`, tested on `{scale.test}&techniques=T`.\n"
    )


def overall_text(line: dict[str, Any]) -> str:
    """What became of the worst technique and of the models, each of them one number."""
    ends = ends_text(line["techniques_low"], line["techniques_high"]).removeprefix("; ")
    return (
        f"\n`{line['metric']}`: 95% t interval over the techniques' means {ends or '-'}; worst "
        f"technique: {line['worst']}, {number(line['worst_change'], '+')}; of {line['models']} "
        f"models {line['models_gained']} gained, the worst {number(line['worst_model'], '+')}.\n"
    )


def value_table(lines: list[dict[str, Any]]) -> str:
    """Means over models, one row for each test set and setting."""
    values = [line for line in lines if line["kind"] == "value"]
    rows = []
    for test, setting in dict.fromkeys((line["test"], line["setting"]) for line in values):
        own = [line for line in values if (line["test"], line["setting"]) == (test, setting)]
        means = {line["metric"]: number(line["mean"]) for line in own}
        cost = f"{1000 * own[0]['seconds_per_image']:.0f} ms"
        rows.append(
            [test, setting, *(means[metric] for metric in SHOWN), str(own[0]["models"]), cost]
        )
    header = ["test set", "setting", *(f"`{metric}`" for metric in SHOWN), "models", "per image"]
    return markdown_table(header, rows)


def change_cell(line: dict[str, Any]) -> str:
    """Mean, interval over images; interval over seeds."""
    over_images = Interval(line["mean"], line["images_low"], line["images_high"], line["images"])
    return interval_text(over_images) + ends_text(line["seeds_low"], line["seeds_high"])


def known_techniques(names: list[str]) -> tuple[str, ...]:
    """Checks the techniques' names; none given = those that a stream takes by default.

    Raises:
        ValueError: one is unknown.
    """
    unknown = set(names) - set(TECHNIQUES)
    if unknown:
        raise ValueError(f"unknown techniques {sorted(unknown)}; known are {', '.join(TECHNIQUES)}")
    return tuple(names) or DEFAULT_TECHNIQUES
