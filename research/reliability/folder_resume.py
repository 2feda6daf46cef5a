"""A folder of images, some damaged, predicted with stops in between: the same table as without.

    python -m research.reliability.folder_resume PHOTOGRAPHS --faults FAULTS --output DIR

Cuts small crops from the photographs, adds the faults, predicts the folder at once, and a second
time with a SIGINT after a quarter, a SIGKILL after the half and `--resume` after each. Prints the
rows that differ, what was predicted twice, and the seconds of the processor.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from loupe.inference.folders import TABLE
from loupe.inference.journal import JOURNAL
from research.measuring import parser_of

# Shortest and longest side of a crop, in pixels.
SIDES = (64, 128)
# Files that are cut short or overwritten, beside those of `--faults`.
MADE = 40


def make_folder(photographs: Path, faults: Path | None, folder: Path, count: int) -> int:
    """Writes `count` files; returns how many of them are faults."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    damaged = [] if faults is None else [file for file in faults.rglob("*") if file.is_file()]
    for index, file in enumerate(sorted(damaged)):
        shutil.copy(file, folder / f"fault-{index:03d}-{file.name}")
    sources = sorted(file for file in photographs.rglob("*") if file.suffix in (".jpg", ".png"))
    while len(list(folder.iterdir())) < count - MADE:
        with Image.open(sources[rng.integers(len(sources))]) as image:
            height, width = (int(rng.integers(*SIDES)) for _ in range(2))
            x, y = (int(rng.integers(max(1, side - 128))) for side in image.size)
            crop = image.convert("RGB").crop((x, y, x + width, y + height))
        crop.save(folder / f"crop-{len(list(folder.iterdir())):04d}.jpg", quality=90)
    whole = sorted(folder.glob("crop-*.jpg"))[0].read_bytes()
    for index in range(MADE):
        # Cut short, or with bytes of the header overwritten.
        data = whole[: 20 + 25 * index] if index % 2 else whole[:2] + b"\0" * index + whole[9:]
        (folder / f"made-{index:02d}.jpg").write_bytes(data)
    return len(damaged) + MADE


def start(folder: Path, output: Path, *options: str) -> subprocess.Popen[bytes]:
    """Starts a prediction of the folder."""
    words = ["predict", str(folder), "--output", str(output), "--no-overlays", *options]
    return subprocess.Popen([sys.executable, "-m", "loupe", *words])


def stop_after(process: subprocess.Popen[bytes], output: Path, lines: int, number: int) -> int:
    """Sends a signal once the journal has so many lines; returns the exit status."""
    journal = output / JOURNAL
    while process.poll() is None:
        if journal.exists() and len(journal.read_bytes().splitlines()) > lines:
            process.send_signal(number)
            return process.wait()
        time.sleep(0.2)
    raise SystemExit(f"the run ended with {process.returncode} before the signal {number}")


def main() -> None:
    """Runs the comparison."""
    parser = parser_of(__doc__, output=False)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--faults", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    # Shells let what they start in the background ignore it, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    shutil.rmtree(arguments.output, ignore_errors=True)
    folder = arguments.output / "images"
    faults = make_folder(arguments.photographs, arguments.faults, folder, arguments.count)
    at_once, stopped = arguments.output / "at_once", arguments.output / "stopped"
    status = [start(folder, at_once).wait()]
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    count = arguments.count
    status.append(stop_after(start(folder, stopped), stopped, count // 4, signal.SIGINT))
    resumed = start(folder, stopped, "--resume")
    status.append(stop_after(resumed, stopped, count // 2, signal.SIGKILL))
    status.append(start(folder, stopped, "--resume").wait())
    first, second = ((place / TABLE).read_text().splitlines() for place in (at_once, stopped))
    lines = [json.loads(line) for line in (stopped / JOURNAL).read_bytes().splitlines()]
    whole = [one["file"] for one in lines if "file" in one and not one["row"]["error"]]
    differ = sum(a != b for a, b in zip(first, second, strict=True))
    print(
        f"{len(first) - 1} rows, {faults} faults; exit {status}; {differ} rows differ; "
        f"{len(whole) - len(set(whole))} predicted twice; one run "
        f"{spent.ru_utime + spent.ru_stime:.0f} core-s"
    )


if __name__ == "__main__":
    main()
