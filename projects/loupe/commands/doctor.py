"""Examines data sets before a model learns their faults.

    loupe doctor [--output DIR] DATASET...

DATASET: a folder in a known format, a list file, or a catalogue name. A folder with several splits
is one set for each. Finds pairs that do not fit, unreadable files, masks of the wrong size or
polarity, empty, full and grey ones, labels against masks, duplicates, leakage between the sets, and
computes the alphas of the losses. Writes doctor.json and doctor.md into DIR, and facts.jsonl, which
lets an interrupted run go on.

Exit status: 0 = nothing must be repaired, 1 = there are errors, 2 = nothing was examined.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loupe.commands.command_line import positive, run_command, some_of, whole
from loupe.threads import usable_cores
from loupe.writing import locked_folder, write_json, write_text

if TYPE_CHECKING:
    from loupe.doctor.facts import Grid
    from loupe.doctor.findings import Finding
    from loupe.doctor.listing import ListedDataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("datasets", nargs="+", metavar="DATASET")
    parser.add_argument("--output", type=Path, default=Path("doctor"), help="default: doctor")
    parser.add_argument("--cache", type=Path, help="default: facts.jsonl in the output")
    parser.add_argument("--size", type=positive, default=336, help="INPUT.SIZE, for the alphas")
    parser.add_argument("--patch-size", type=positive, default=14, help="for the alphas")
    parser.add_argument(
        "--max-distance",
        type=whole(0, 64),
        default=6,
        metavar="BITS",
        help="of 64 by which images that look alike may differ (default 6)",
    )
    parser.add_argument(
        "--ignore",
        type=some_of("loupe.doctor.findings", "CHECKS"),
        default=[],
        metavar="CHECK,...",
        help="leave these findings out",
    )
    parser.add_argument(
        "--processes", type=positive, default=min(8, usable_cores()), help="default: up to 8"
    )


def examine_sets(listings: list[ListedDataset], grid: Grid, arguments: argparse.Namespace) -> list:
    """ImageFacts of all sets, with a progress bar."""
    from tqdm import tqdm

    from loupe.doctor.examination import examine_all
    from loupe.doctor.faults import Examined

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
    from loupe.doctor.findings import CHECKS

    for finding in findings:
        title = CHECKS[finding.check].title
        count = len(finding.items)
        print(f"{finding.severity:8}{finding.check:20}{finding.dataset}: {count}: {title}")
    if not findings:
        print("nothing found")


def run(arguments: argparse.Namespace) -> int:
    """Examines, prints the findings, writes the reports."""
    from loupe.doctor.duplicates import MAX_DISTANCE
    from loupe.doctor.facts import Grid
    from loupe.doctor.faults import check_duplicates, check_set
    from loupe.doctor.findings import SEVERITIES
    from loupe.doctor.listing import list_datasets
    from loupe.doctor.report import json_report, markdown_report
    from loupe.doctor.statistics import summarise

    if arguments.patch_size > arguments.size:
        raise ValueError(
            f"--patch-size is {arguments.patch_size}; give 1 to --size ({arguments.size})"
        )
    if not 0 <= arguments.max_distance <= MAX_DISTANCE:
        raise ValueError(f"--max-distance is {arguments.max_distance}; give 0 to {MAX_DISTANCE}")
    grid = Grid(arguments.size, arguments.patch_size)
    with locked_folder(arguments.output, "--output"):
        sets = examine_sets(list_datasets(arguments.datasets), grid, arguments)
        findings = [finding for examined in sets for finding in check_set(examined)]
        findings += check_duplicates(sets, arguments.max_distance)
        findings = [finding for finding in findings if finding.check not in arguments.ignore]
        findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
        options = {"max_distance": arguments.max_distance, "ignore": arguments.ignore}
        statistics = {examined.name: summarise(examined) for examined in sets}
        report = json_report(findings, statistics, grid, options)
        write_json(arguments.output / "doctor.json", report)
        write_text(arguments.output / "doctor.md", markdown_report(report))
    print_summary(findings)
    return 0 if report["clean"] else 1


main = partial(run_command, "doctor", __doc__, add_arguments, run)
