"""Says what is wrong with a submission to a challenge, all of it, each fault by its name.

    tools/validate_submission.py SUBMISSION --format ddl2025  --images FOLDER
    tools/validate_submission.py SUBMISSION --format ddlx2026 --images FOLDER

SUBMISSION: a folder or a .zip. The images are read for their names and sizes only. The formats and
the faults are in docs/challenges.md.

Exit status: 0 = valid, 1 = faults, 2 = could not be checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from loupe.challenge.checks import Fault, image_sizes, validate
from loupe.challenge.writers import FORMATS


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("submission", type=Path, help="a folder or a .zip")
    parser.add_argument("--format", choices=FORMATS, required=True, help="which challenge")
    parser.add_argument("--images", type=Path, required=True, help="the challenge's images")
    parser.add_argument("--report", type=Path, help="write all faults to this .json")
    parser.add_argument(
        "--limit", type=int, default=5, help="faults of one name to print (default 5)"
    )
    return parser.parse_args(words)


def print_faults(faults: list[Fault], limit: int) -> None:
    """Prints the first faults of each name, and how many there are."""
    counts = Counter(fault.name for fault in faults)
    printed: Counter[str] = Counter()
    for fault in faults:
        printed[fault.name] += 1
        if printed[fault.name] <= limit:
            print(fault)
    print(f"{len(faults)} faults: " + ", ".join(f"{n} {name}" for name, n in counts.items()))


def main(words: list[str] | None = None) -> int:
    """Validates and prints; returns the exit status."""
    arguments = parse_arguments(words)
    try:
        sizes = image_sizes(arguments.images)
        faults = validate(arguments.submission, arguments.format, sizes)
        if arguments.report:
            content = {
                "submission": str(arguments.submission),
                "format": arguments.format,
                "images": len(sizes),
                "faults": [fault._asdict() for fault in faults],
            }
            arguments.report.write_text(json.dumps(content, indent=1) + "\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if faults:
        print_faults(faults, arguments.limit)
        return 1
    print(
        f"valid: {arguments.submission} answers all {len(sizes)} images as {arguments.format} asks"
    )
    return 0
