"""The command line of the experiments: `python -m research.experiments`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from research.experiments.ablations import TABLES, Row
from research.experiments.families import run_families
from research.experiments.leave_one_out import (
    Plan,
    known_techniques,
    report_name,
    run_leave_one_out,
)
from research.experiments.options import add_scale_options, scale_of
from research.experiments.rows import run_table
from research.experiments.runs import Runner
from research.measuring import parser_of

LEAVE_ONE_OUT = "loo"
FAMILIES = "families"
# What `loo` measures beside plain evaluation where no --setting is given.
DEFAULT_SETTINGS = {"offline": "ADAPTATION.MODE offline", "online": "ADAPTATION.MODE online"}


def parse_arguments(words: list[str] | None, documentation: str) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(documentation, output=False)
    tables = [*TABLES, LEAVE_ONE_OUT, FAMILIES]
    parser.add_argument(
        "tables", nargs="+", choices=tables, metavar="TABLE", help=", ".join(tables)
    )
    parser.add_argument("--output", type=Path, default=Path("output/experiments"))
    parser.add_argument("--report", type=Path, help="folder of the tables; default: OUTPUT")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 to N; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of each run; default: %(default)s")
    add_scale_options(parser)
    group = parser.add_argument_group("leave-one-out (loo, families)")
    group.add_argument(
        "--techniques", nargs="+", default=[], help="left out; default: all but clone"
    )
    group.add_argument(
        "--setting",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "'KEY VALUE ...'"),
        help="one way to adapt; may be repeated; default: offline and online as configured",
    )
    group.add_argument("--row", default="stage2", help="stage 2, a file of configs/ablations")
    group.add_argument("--transfer", nargs="+", default=[], help="data sets to test on as well")
    group.add_argument("--transfer-options", default="", metavar="'KEY VALUE ...'")
    group.add_argument("--transfer-limit", type=int, default=0, help="images of each")
    arguments = parser.parse_args(words)
    if arguments.seeds < 1:
        parser.error(f"--seeds is {arguments.seeds}; at least 1")
    return arguments


def main(words: list[str] | None, documentation: str) -> None:
    """Runs the tables that were asked for, one after the other."""
    arguments = parse_arguments(words, documentation)
    scale = scale_of(arguments)
    seeds = list(range(1, arguments.seeds + 1))
    failures = []
    # One for all tables, so that a stage 1 that failed is not trained again for each.
    runner = Runner(arguments.output, arguments.threads)
    for table in arguments.tables:
        runner.failures = []
        report = arguments.report or arguments.output
        try:
            if table == LEAVE_ONE_OUT:
                run_leave_one_out(plan_of(arguments, seeds), scale, runner, report)
            elif table == FAMILIES:
                run_families(plan_of(arguments, seeds), scale, runner, report)
            else:
                run_table(table, seeds, scale, runner, report)
        except ValueError as error:
            sys.exit(f"error: {error}")
        failures += runner.failures
        name = report_name(arguments.row) if table == LEAVE_ONE_OUT else table
        path = report / f"{name}.md"
        print(f"\n{path.read_text()}\n{path} (and .csv, .json)", flush=True)
    if failures:
        sys.exit("error: some runs failed:\n" + "\n".join(failures))


def plan_of(arguments: argparse.Namespace, seeds: list[int]) -> Plan:
    """The leave-one-out plan that the command line asks for."""
    settings = dict(arguments.setting) or DEFAULT_SETTINGS
    return Plan(
        techniques=known_techniques(arguments.techniques),
        seeds=seeds,
        settings={name: tuple(shlex.split(text)) for name, text in settings.items()},
        # Absolute: runs happen in the repository's folder, wherever the command was typed.
        transfer=tuple(
            str(Path(p).resolve()) if Path(p).exists() else p for p in arguments.transfer
        ),
        transfer_options=tuple(shlex.split(arguments.transfer_options)),
        transfer_limit=arguments.transfer_limit,
        # The shipped encoder has seen all techniques.
        row=Row(arguments.row, "", arguments.row, "from_scratch_stage1"),
    )
