#!/usr/bin/env python3
"""Reads small files that announce or unpack to a great deal, as images and as masks.

Each is made here and read in a child process; the table shows what came of it, the largest memory
of the child and its seconds of one core, the start of both included. A file is refused, or
read, below 1 GB and within 10 s of one core.

Example:
    python -m research.reliability.bombs
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from research.measuring import parser_of
from research.reliability.bomb_files import BOMBS

MOST_MEGABYTES, MOST_SECONDS = 1000, 10
# Far above what is allowed, so that what goes wrong is measured and ends nothing.
_ADDRESS_SPACE = 12 << 30
_CHILD = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
# Of the processor's clock: other work on the machine is no fault of the file.
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
from loupe.data.images.decoding import read_picture
from loupe.data.images.masks import read_mask
read = read_mask if sys.argv[2] == "mask" else read_picture
try:
    read(sys.argv[1])
    print("read")
except ValueError as error:
    print("refused:", error.problem)
print(time.process_time())
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def measure(path: Path, kind: str) -> tuple[str, int, float]:
    """What came of reading, megabytes and seconds."""
    command = [sys.executable, "-c", _CHILD.format(limit=_ADDRESS_SPACE), str(path), kind]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    except subprocess.TimeoutExpired:
        return "hangs", 0, time.monotonic() - start
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != 3:
        return f"ended with status {done.returncode}: {done.stderr[-80:]}", 0, 0.0
    return lines[0], int(lines[2]), float(lines[1])


def main(words: list[str] | None = None) -> int:
    """Prints the table; the exit status is 1 if a file took too much or ended its process."""
    parser = parser_of(__doc__, output=False)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BOMBS)}; all by default")
    parser.add_argument("--output", type=Path, help="JSON file of the table")
    arguments = parser.parse_args(words)
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names or BOMBS:
            path = Path(folder) / name
            path.write_bytes(BOMBS[name]())
            for kind in ("image", "mask"):
                outcome, megabytes, seconds = measure(path, kind)
                bad = not outcome.startswith(("read", "refused"))
                bad |= megabytes > MOST_MEGABYTES or seconds > MOST_SECONDS
                failed += bad
                size = path.stat().st_size
                rows.append([name, kind, size, outcome, megabytes, round(seconds, 2)])
                mark = "!!" if bad else "  "
                print(
                    f"{mark}{name:38}{kind:6}{size:11}{megabytes:6} MB{seconds:7.2f} s  {outcome}"
                )
            path.unlink()
    print(f"{len(BOMBS)} kinds; worst {max(r[4] for r in rows)} MB, {max(r[5] for r in rows)} s")
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
