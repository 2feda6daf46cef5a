"""Examines data sets before a model learns their faults.

    tools/doctor.py DATASET... [--output DIR]

DATASET: a folder in a known format, a list file, or a catalogue name. A folder with several splits
is one set for each. Finds pairs that do not fit, unreadable files, masks of the wrong size or
polarity, empty, full and grey ones, labels against masks, duplicates, leakage between the sets, and
computes the alphas of the losses. Writes doctor.json and doctor.md into DIR, and facts.jsonl, which
lets an interrupted run go on.

Exit code: 0 nothing that must be repaired, 1 there are errors, 2 could not run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from tqdm import tqdm

from loupe.doctor.duplicates import MAX_DISTANCE
from loupe.doctor.examination import examine_all
from loupe.doctor.facts import Grid
from loupe.doctor.faults import Examined, check_duplicates, check_set
from loupe.doctor.findings import CHECKS, SEVERITIES, Finding
from loupe.doctor.listing import Listing, list_datasets
from loupe.doctor.report import json_report, markdown_report
from loupe.doctor.statistics import describe


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", metavar="DATASET")
    parser.add_argument("--output", type=Path, default=Path("doctor"), help="default: doctor")
    parser.add_argument("--cache", type=Path, help="default: facts.jsonl in the output")
    parser.add_argument("--size", type=int, default=336, help="INPUT.SIZE, for the alphas")
    parser.add_argument("--patch-size", type=int, default=14, help="for the alphas")
    parser.add_argument(
        "--max-distance",
        type=int,
        default=6,
        metavar="BITS",
        help=f"of 64 by which images that look alike may differ, 0 to {MAX_DISTANCE} (default 6)",
    )
    parser.add_argument(
        "--ignore", nargs="*", default=[], choices=CHECKS, metavar="CHECK", help=", ".join(CHECKS)
    )
    parser.add_argument(
        "--processes", type=int, default=min(8, os.cpu_count() or 1), help="default: up to 8"
    )
    arguments = parser.parse_args(words)
    if not 1 <= arguments.patch_size <= arguments.size:
        parser.error(f"--patch-size is {arguments.patch_size}; give 1 to --size ({arguments.size})")
    if not 0 <= arguments.max_distance <= MAX_DISTANCE:
        parser.error(f"--max-distance is {arguments.max_distance}; give 0 to {MAX_DISTANCE}")
    return arguments


def examine_sets(listings: list[Listing], grid: Grid, arguments: argparse.Namespace) -> list:
    """Facts of all sets, with a progress bar."""
    entries = [entry for listing in listings for entry in listing.entries]
    with tqdm(total=len(entries), unit="image", disable=not sys.stderr.isatty()) as bar:
        facts = examine_all(
            entries,
            grid,
            processes=arguments.processes,
            cache=arguments.cache or arguments.output / "facts.jsonl",
            report=lambda done: bar.update(done - bar.n),
        )
    sets, start = [], 0
    for name, listed, problems in listings:
        sets.append(Examined(name, listed, facts[start : start + len(listed)], problems))
        start += len(listed)
    return sets


def print_summary(findings: list[Finding]) -> None:
    """One line for each finding."""
    for finding in findings:
        title = CHECKS[finding.check].title
        count = len(finding.items)
        print(f"{finding.severity:8}{finding.check:20}{finding.dataset}: {count}: {title}")
    if not findings:
        print("nothing found")


def main(words: list[str] | None = None) -> int:
    """Examines, prints the findings, writes the reports."""
    arguments = parse_arguments(words)
    grid = Grid(arguments.size, arguments.patch_size)
    try:
        sets = examine_sets(list_datasets(arguments.datasets), grid, arguments)
        findings = [finding for examined in sets for finding in check_set(examined)]
        findings += check_duplicates(sets, arguments.max_distance)
        findings = [finding for finding in findings if finding.check not in arguments.ignore]
        findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
        options = {"max_distance": arguments.max_distance, "ignore": arguments.ignore}
        statistics = {examined.name: describe(examined) for examined in sets}
        report = json_report(findings, statistics, grid, options)
        arguments.output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
        (arguments.output / "doctor.json").write_text(text + "\n", encoding="utf-8")
        (arguments.output / "doctor.md").write_text(markdown_report(report), encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_summary(findings)
    return 0 if report["clean"] else 1
