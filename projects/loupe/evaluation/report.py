"""Results as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math

from loupe.evaluation.metrics import METRICS
from loupe.evaluation.results import Estimate, Results

# More names of unreadable files than this are counted, not printed.
NAMED_FILES = 20


def _interval(metric: Estimate) -> str:
    return "" if math.isnan(metric.low) else f"{metric.low:.4f} to {metric.high:.4f}"


def _value(metric: Estimate) -> str:
    return "undefined" if math.isnan(metric.value) else f"{metric.value:.4f}"


def _counts_line(results: Results) -> str:
    return ", ".join(f"{name} {count}" for name, count in results.counts.items() if count)


def _unreadable_lines(results: Results) -> list[str]:
    names = list(results.unreadable.items())
    lines = [f"unreadable: {name}: {error}" for name, error in names[:NAMED_FILES]]
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
    lines += [_counts_line(results)]
    lines += [f"{name}: {note}" for name, note in results.notes.items()]
    return "\n".join(line.rstrip() for line in lines + _unreadable_lines(results))


def csv_table(results: Results) -> str:
    """One row for each metric of the whole set and of every group."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["group", "metric", "value", "low", "high", "images", "reason"])
    groups = {"": results.metrics}
    groups |= {f"technique={name}": group for name, group in results.by_technique.items()}
    groups |= {f"source={name}": group for name, group in results.by_source.items()}
    for group, metrics in groups.items():
        for name, metric in metrics.items():
            numbers = ["" if math.isnan(x) else repr(x) for x in metric[:3]]
            writer.writerow([group, name, *numbers, metric.images, metric.reason])
    return stream.getvalue()


def _markdown_groups(title: str, groups: dict[str, dict[str, Estimate]]) -> list[str]:
    if not groups:
        return []
    names = ["image/AUC", "pixel/F1-pooled", "pixel/F1-image", "pixel/IoU-image", "pixel/AUC-image"]
    lines = ["", f"## By {title}", "", "| | images | " + " | ".join(names) + " |"]
    lines.append("|---|---:|" + "---:|" * len(names))
    for group, metrics in groups.items():
        cells = [_value(metrics[name]) for name in names]
        images = metrics["pixel/F1-image"].images
        lines.append(f"| {group} | {images} | " + " | ".join(cells) + " |")
    return lines


def markdown_report(results: Results, title: str) -> str:
    """Every protocol side by side with its definition, then groups, notes and faults."""
    lines = [f"# {title}", "", f"Images: {_counts_line(results)}.", ""]
    lines += ["| metric | value | 95% interval | images | definition |", "|---|---:|---:|---:|---|"]
    for name, metric in results.metrics.items():
        words = METRICS[name].definition + (f" ({metric.reason})" if metric.reason else "")
        lines.append(
            f"| `{name}` | {_value(metric)} | {_interval(metric)} | {metric.images} | {words} |"
        )
    lines += _markdown_groups("technique", results.by_technique)
    lines += _markdown_groups("source", results.by_source)
    lines += [""] + [f"- {name}: {note}" for name, note in results.notes.items()]
    return "\n".join(lines + [f"- {line}" for line in _unreadable_lines(results)]).rstrip() + "\n"
