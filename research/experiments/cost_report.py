"""The cost table and its plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import torch

from research.experiments.ablations import ROOT
from research.experiments.cost import ENCODERS, Cost, loupe_costs, rival_costs
from research.experiments.report import markdown_table

LAYER = "LLaMA-7B, one layer of 32"
LAYERS = 32
COLOURS = {"Loupe": "#2166ac", "SAM": "#e08214", "LLaVA": "#b2182b"}


def count_all() -> list[Cost]:
    """Counts every system."""
    return [cost for size in ENCODERS for cost in loupe_costs(size)] + rival_costs()


def measure_all(systems: list[str], rounds: int, repeats: int, threads: int) -> dict[str, Any]:
    """Measures the systems in turn, round by round, so that a busy spell strikes all alike.

    Returns:
        By name of the step: medians of seconds and CPU seconds, all of them, peak memory in GB. A
        system that fails is reported on standard error and left out.
    """
    found: dict[str, dict[str, Any]] = {}
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    for turn in range(rounds):
        for system in systems:
            print(f"round {turn + 1} of {rounds}: {system}", flush=True)
            command = [sys.executable, "-W", "ignore", "-m", "experiments.latency", system]
            done = subprocess.run(
                [*command, "--repeats", str(repeats)],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                print(f"{system} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
                continue
            for result in json.loads(done.stdout.splitlines()[-1]):
                name, peak = result.pop("system"), result.pop("peak_memory_gb")
                entry = found.setdefault(name, {"threads": threads, "peak_memory_gb": 0.0})
                for key, values in result.items():
                    entry[key] = entry.get(key, []) + [round(value, 3) for value in values]
                entry["peak_memory_gb"] = max(entry["peak_memory_gb"], round(peak, 2))
    for entry in found.values():
        entry["median_seconds"] = round(statistics.median(entry["seconds"]), 3)
        entry["median_cpu_seconds"] = round(statistics.median(entry["cpu_seconds"]), 3)
    return found


def as_json(costs: list[Cost], measured: dict[str, Any]) -> dict[str, Any]:
    """Everything, with what it was measured on; each measurement has its own threads."""
    return {
        "counted": [cost._asdict() for cost in costs],
        "measured": measured,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "precision": "float32",
            "batch": 1,
        },
    }


def table_text(content: dict[str, Any]) -> str:
    """Markdown: counts of all systems, and measurements of those that ran."""
    measured = content["measured"]
    unit = measured.get("Loupe PE-L", {}).get("median_cpu_seconds")
    rows = []
    for cost in content["counted"]:
        entry = measured.get(cost["system"], {})
        seconds = entry.get("median_cpu_seconds")
        ratio = f"{seconds / unit:.2f}" if seconds and unit else "-"
        rows.append(
            [
                cost["system"],
                f"{cost['parameters'] / 1e6:,.1f}",
                f"{cost['operations'] / 1e9:,.1f}",
                f"{entry['median_seconds']:.2f}" if entry else "-",
                f"{seconds:.2f}" if entry else "-",
                ratio,
                f"{entry['peak_memory_gb']:.2f}" if entry else "-",
                str(entry["threads"]) if entry else "-",
            ]
        )
    header = ["system", "parameters (M)", "GFLOP per image", "seconds", "CPU seconds"]
    header += ["CPU seconds / PE-L", "peak memory (GB)", "threads"]
    text = markdown_table(header, rows)
    if LAYER in measured:
        layer = measured[LAYER]["median_cpu_seconds"]
        text += (
            f"\nOne layer of LLaMA-7B, measured on the prompt: {layer:.2f} CPU s; 32 of them, by "
            f"multiplication: {LAYERS * layer:.0f} s, without encoder and answer.\n"
        )
    return text


def draw(content: dict[str, Any], path: Path) -> None:
    """Bars of operations per image, on a logarithmic axis, with parameters and seconds."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    costs = content["counted"]
    figure, axes = pyplot.subplots(figsize=(8.5, 0.33 * len(costs) + 1.2))
    for place, cost in enumerate(costs):
        colour = next(c for name, c in COLOURS.items() if cost["system"].startswith(name))
        operations = cost["operations"] / 1e9
        axes.barh(place, operations, color=colour, alpha=0.85, height=0.7)
        entry = content["measured"].get(cost["system"])
        text = f" {operations:,.0f} GFLOP, {cost['parameters'] / 1e6:,.0f} M"
        text += f", {entry['median_cpu_seconds']:.1f} s" if entry else ""
        axes.text(operations, place, text, va="center", fontsize=8)
    axes.set_yticks(range(len(costs)), [cost["system"] for cost in costs], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(right=40 * max(cost["operations"] / 1e9 for cost in costs))
    axes.set_xlabel("GFLOP per image; parameters; CPU seconds where measured")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
