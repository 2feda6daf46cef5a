#!/usr/bin/env python3
"""Counts and measures what an answer costs: Loupe, SAM-based systems, language models.

    python -m research.experiments.cost_command             # counts only: half a minute
    python -m research.experiments.cost_command --measure T S B L sam-base --rounds 3

Writes a JSON file (what was measured before is kept and overwritten by system), a table in Markdown
beside it, and a plot. What is counted and what is not: docs/experiments.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--measure",
        nargs="*",
        default=[],
        metavar="SYSTEM",
        help="T, S, B, L (Loupe), sam-base, sam-large, sam-huge, llama-layer",
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes of each system, in turn")
    parser.add_argument("--repeats", type=int, default=2, help="answers in each process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "research" / "benchmarks" / "results" / "cost.json"
    )
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "cost.png")
    return parser.parse_args(words)


def main(arguments: argparse.Namespace) -> None:
    """Counts, measures, writes."""
    from research.experiments.cost_report import as_json, count_all, draw, measure_all, table_text
    from research.experiments.latency import SYSTEMS

    unknown = set(arguments.measure) - set(SYSTEMS)
    if unknown:
        sys.exit(f"error: --measure {sorted(unknown)}; the systems are {', '.join(SYSTEMS)}")
    earlier = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    measured = earlier.get("measured", {})
    measured |= measure_all(
        arguments.measure, arguments.rounds, arguments.repeats, arguments.threads
    )
    content = as_json(count_all(), measured)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(content, indent=1) + "\n")
    table = table_text(content)
    arguments.output.with_suffix(".md").write_text(table)
    draw(content, arguments.plot)
    print(f"{table}\nwritten: {arguments.output} and .md, {arguments.plot}")


if __name__ == "__main__":
    main(parse_arguments())
