"""Runs the rows of an ablation table and compares them, paired by seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from loupe.writing import markdown_table
from research.experiments.ablations import TABLES, Table
from research.experiments.intervals import (
    Interval,
    bootstrap_interval,
    metric_values,
    paired_t_interval,
    t_interval,
)
from research.experiments.measured import pair_of, read_measured
from research.experiments.options import Scale, job_of
from research.experiments.report import (
    duration,
    ends_text,
    interval_text,
    number,
    write_report,
)
from research.experiments.runs import Done, Evaluation, RunError, Runner


class Cell(NamedTuple):
    """One row, one seed: what was measured, and what it cost."""

    values: dict[str, float]
    done: Done
    measured: Path


def run_table(name: str, seeds: list[int], scale: Scale, runner: Runner, report: Path) -> None:
    """Runs what is missing of a table, then writes it, failed rows included."""
    table = TABLES[name]
    evaluation = Evaluation("plain", scale.test, (), scale.limit)
    cells: dict[str, dict[int, Cell]] = {row.name: {} for row in table.rows}
    # Seed by seed, so that what is there after an interruption is a whole, smaller table.
    for seed in seeds:
        for row in table.rows:
            job = job_of(row, seed, scale)
            try:
                (path,) = runner.evaluate(job, [evaluation])
                if path.exists():
                    values = metric_values(read_measured(path).columns)
                    cells[row.name][seed] = Cell(values, runner.train(job), path)
            except (RunError, ValueError) as error:
                runner.failures.append(f"{row.name}, seed {seed}: {error}")
        write_table(name, table, cells, seeds, scale, runner, report)


def write_table(
    name: str,
    table: Table,
    cells: dict[str, dict[int, Cell]],
    seeds: list[int],
    scale: Scale,
    runner: Runner,
    report: Path,
) -> None:
    """Writes a table from the cells there are."""
    lines = [
        line_of(table, row.name, row.text, metric, cells)
        for row in table.rows
        for metric in table.metrics
    ]
    text = f"## {table.title}\n\n" + markdown_text(table, cells, lines)
    text += (
        f"\nMean over seeds {', '.join(map(str, seeds))}; in brackets the difference to the first "
        "row with two 95% intervals: t over the seeds' differences (what other trainings might "
        "have given), and bootstrap over test images, drawn alike for both rows and all seeds "
        f"(what other images might have given to these very models). Test set: `{scale.test}`"
        + (f", {scale.limit} images" if scale.limit else "")
        + f". Size: {scale.size}.\n\nOne training of each row:\n\n```\n"
    )
    for row in table.rows:
        for cell in list(cells[row.name].values())[:1]:
            text += cell.done.command + "\n"
    text += "```\n"
    content = {"title": table.title, "seeds": seeds, "scale": scale._asdict()}
    write_report(report, name, text, lines, content | {"failures": runner.failures})


def line_of(
    table: Table, name: str, text: str, metric: str, cells: dict[str, dict[int, Cell]]
) -> dict[str, Any]:
    """One row and metric: mean, values by seed, difference to the reference, cost."""
    found = {seed: cell.values.get(metric, math.nan) for seed, cell in cells[name].items()}
    reference = cells[table.rows[0].name]
    base = {seed: cell.values.get(metric, math.nan) for seed, cell in reference.items()}
    difference = paired_t_interval(found, base)
    costs = [cell.done for cell in cells[name].values()]
    compared = {} if name == table.rows[0].name else cells[name]
    over_images = image_interval(compared, reference, metric)
    return {
        "row": name,
        "text": text,
        "metric": metric,
        "mean": t_interval(list(found.values())).mean,
        "by_seed": " ".join(f"{seed}:{value:.5f}" for seed, value in sorted(found.items())),
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "paired_seeds": difference.count,
        "images_low": over_images.low,
        "images_high": over_images.high,
        "train_seconds": sum(done.seconds for done in costs) / len(costs) if costs else math.nan,
        "peak_memory_gb": max((done.peak_memory_gb for done in costs), default=math.nan),
    }


def image_interval(row: dict[int, Cell], reference: dict[int, Cell], metric: str) -> Interval:
    """Interval over test images of the mean difference between the models of two rows."""
    pairs = [
        pair_of(reference[seed].measured, row[seed].measured)
        for seed in sorted(row.keys() & reference.keys())
    ]
    if not pairs:
        return Interval(math.nan, math.nan, math.nan, 0)
    return bootstrap_interval(pairs, metric)


def markdown_text(
    table: Table, cells: dict[str, dict[int, Cell]], lines: list[dict[str, Any]]
) -> str:
    """Rows by metrics; below each mean stands its difference."""
    header = ["row", *(f"`{metric}`" for metric in table.metrics), "training", "seeds"]
    rows = []
    for place, row in enumerate(table.rows):
        own = [line for line in lines if line["row"] == row.name]
        texts = []
        for line in own:
            mean = number(line["mean"])
            if place and not math.isnan(line["difference"]):
                ends = (line["low"], line["high"], line["paired_seeds"])
                over_images = ends_text(line["images_low"], line["images_high"])
                mean += f" ({interval_text(Interval(line['difference'], *ends))}{over_images})"
            texts.append(mean)
        seconds = own[0]["train_seconds"]
        cost = "failed" if math.isnan(seconds) else duration(seconds)
        rows.append([row.text, *texts, cost, str(len(cells[row.name]))])
    return markdown_table(header, rows)
