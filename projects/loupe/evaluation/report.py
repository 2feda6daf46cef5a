"""Results as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator

from loupe.evaluation.metrics import METRICS
from loupe.evaluation.results import Estimate, Results
from loupe.writing import guard_cell, markdown_table, markdown_text, plain

# More names of unreadable files than this are counted, not printed.
NAMED_FILES = 20
CSV_COLUMNS = ("group", "metric", "value", "low", "high", "images", "reason")
_OF_GROUPS = (
    "image/AUC",
    "pixel/F1-pooled",
    "pixel/F1-image",
    "pixel/IoU-image",
    "pixel/AUC-image",
)


def _interval(metric: Estimate) -> str:
    return "" if math.isnan(metric.low) else f"{metric.low:.4f} to {metric.high:.4f}"


def _value(metric: Estimate) -> str:
    return "undefined" if math.isnan(metric.value) else f"{metric.value:.4f}"


def _counts_line(results: Results) -> str:
    return ", ".join(f"{name} {count}" for name, count in results.counts.items() if count)


def _remarks(results: Results) -> list[str]:
    """Notes, and the first files that could not be used."""
    lines = [f"{name}: {note}" for name, note in results.notes.items()]
    names = list(results.unreadable.items())
    lines += [f"unreadable: {name}: {error}" for name, error in names[:NAMED_FILES]]
    if len(names) > NAMED_FILES:
        lines.append(f"... and {len(names) - NAMED_FILES} more")
    return lines


def text_table(results: Results) -> str:
    """Aligned columns for a terminal or a log: name, value, interval, images, reason."""
    rows = [("metric", "value", "95% interval", "images", "")]
    for name, metric in results.metrics.items():
        rows.append((name, _value(metric), _interval(metric), str(metric.images), metric.reason))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[4]])
        for row in rows
    ]
    lines += [_counts_line(results), *_remarks(results)]
    return "\n".join(line.rstrip() for line in lines)


def csv_table(results: Results) -> str:
    """One row for each metric of the whole set and of every group."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows([guard_cell(cell) for cell in row] for row in _rows(results))
    return stream.getvalue()


def _rows(results: Results) -> Iterator[list[object]]:
    groups = {"": results.metrics}
    groups |= {f"technique={name}": group for name, group in results.by_technique.items()}
    groups |= {f"source={name}": group for name, group in results.by_source.items()}
    for group, metrics in groups.items():
        for name, metric in metrics.items():
            yield [group, name, *map(plain, metric[:3]), metric.images, metric.reason]


def _markdown_groups(title: str, groups: dict[str, dict[str, Estimate]]) -> list[str]:
    if not groups:
        return []
    rows = [
        (name, group["pixel/F1-image"].images, *(_value(group[metric]) for metric in _OF_GROUPS))
        for name, group in groups.items()
    ]
    return [f"## By {title}\n", markdown_table((title, "images", *_OF_GROUPS), rows)]


def markdown_report(results: Results, title: str) -> str:
    """Every protocol side by side with its definition, then groups, notes and faults."""
    rows = []
    for name, metric in results.metrics.items():
        reason = f" ({metric.reason})" if metric.reason else ""
        words = f"`{name}`: {METRICS[name].definition}{reason}"
        rows.append((words, _value(metric), _interval(metric), metric.images))
    parts = [
        f"# {markdown_text(title)}\n",
        f"Images: {_counts_line(results)}.\n",
        markdown_table(("metric", "value", "95% interval", "images"), rows),
        *_markdown_groups("technique", results.by_technique),
        *_markdown_groups("source", results.by_source),
    ]
    remarks = [f"- {markdown_text(line)}\n" for line in _remarks(results)]
    return "\n".join([*parts, "".join(remarks)]).rstrip() + "\n"
