"""Says what is wrong with a submission to a challenge, all of it, each fault by its name.

    loupe validate SUBMISSION --format ddl2025  --images FOLDER
    loupe validate SUBMISSION --format ddlx2026 --images FOLDER

SUBMISSION: a folder or a .zip. The images are read for their names and sizes only. The formats and
the faults are in docs/challenges.md.

Exit status: 0 = valid, 1 = faults, 2 = could not be checked.
"""

from __future__ import annotations

import argparse
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loupe.commands.command_line import add_challenge_options, positive, run_command
from loupe.writing import write_json

if TYPE_CHECKING:
    from loupe.challenge.checks import Fault


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("submission", type=Path, help="a folder or a .zip")
    add_challenge_options(parser)
    parser.add_argument("--report", type=Path, help="write all faults to this .json")
    parser.add_argument(
        "--limit", type=positive, default=5, help="faults of one name to print (default 5)"
    )


def print_faults(faults: list[Fault], limit: int) -> None:
    """Prints the first faults of each name, and how many there are."""
    counts = Counter(fault.name for fault in faults)
    printed: Counter[str] = Counter()
    for fault in faults:
        printed[fault.name] += 1
        if printed[fault.name] <= limit:
            print(fault)
    print(f"{len(faults)} faults: " + ", ".join(f"{n} {name}" for name, n in counts.items()))


def run(arguments: argparse.Namespace) -> int:
    """Validates and prints."""
    from loupe.challenge.checks import image_sizes, validate

    sizes = image_sizes(arguments.images)
    faults = validate(arguments.submission, arguments.format, sizes)
    if arguments.report:
        content = {
            "submission": arguments.submission,
            "format": arguments.format,
            "images": len(sizes),
            "faults": [fault._asdict() for fault in faults],
        }
        write_json(arguments.report, content)
    if faults:
        print_faults(faults, arguments.limit)
        return 1
    print(
        f"valid: {arguments.submission} covers all {len(sizes)} images as {arguments.format} asks"
    )
    return 0


main = partial(run_command, "validate", __doc__, add_arguments, run)
