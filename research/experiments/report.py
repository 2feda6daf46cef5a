"""Tables as people read them (Markdown) and as programs do (CSV, JSON)."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.experiments.intervals import Interval


def number(value: float, sign: str = "") -> str:
    """Three decimals; a dash for what is not known."""
    return "-" if math.isnan(value) else f"{value:{sign}.3f}"


def interval_text(interval: Interval) -> str:
    """`+0.012 [-0.003, +0.027]`."""
    if math.isnan(interval.low):
        return number(interval.mean, "+")
    return (
        f"{number(interval.mean, '+')} [{number(interval.low, '+')}, {number(interval.high, '+')}]"
    )


def ends_text(low: float, high: float) -> str:
    """`; [-0.003, +0.027]`, a second interval; nothing where there is none."""
    return "" if math.isnan(low) else f"; [{number(low, '+')}, {number(high, '+')}]"


def duration(seconds: float) -> str:
    """`2 min 5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_report(
    folder: Path, name: str, text: str, lines: list[dict[str, Any]], content: dict[str, Any]
) -> None:
    """Writes NAME.md, NAME.csv (one line per row and metric) and NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        fields = list(dict.fromkeys(key for line in lines for key in line))
        writer = csv.DictWriter(file, fields, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    cleaned = without_nan(content | {"lines": lines})
    (folder / f"{name}.json").write_text(json.dumps(cleaned, indent=1, allow_nan=False) + "\n")


def without_nan(node: Any) -> Any:
    """The same with null for NaN, which JSON does not have."""
    if isinstance(node, dict):
        return {key: without_nan(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [without_nan(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
