"""Tables as people read them (Markdown) and as programs do (CSV, JSON)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from loupe.writing import write_csv, write_json, write_text
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


def write_report(
    folder: Path, name: str, text: str, lines: list[dict[str, Any]], content: dict[str, Any]
) -> None:
    """Writes NAME.md, NAME.csv (one line per row and metric) and NAME.json, failures last."""
    if content["failures"]:
        text += "\nFailed:\n\n" + "".join(f"- {failure}\n" for failure in content["failures"])
    write_text(folder / f"{name}.md", text)
    fields = list(dict.fromkeys(key for line in lines for key in line))
    rows = ([line.get(field) for field in fields] for line in lines)
    write_csv(folder / f"{name}.csv", fields, rows)
    write_json(folder / f"{name}.json", content | {"lines": lines})
