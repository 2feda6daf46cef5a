"""What programs of research share: their command line, clocks that take turns, one JSON file."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from loupe.writing import write_json

ROOT = Path(__file__).parents[1]


class Taken(NamedTuple):
    """Seconds of one call, by the processor's clock (of this process alone) and by the wall's."""

    processor: float
    wall: float


def parser_of(documentation: str | None, *, output: bool = True) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring; with `--output` for the JSON file, if wanted."""
    parser = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if output:
        parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


def machine() -> dict[str, Any]:
    """What figures depend on beside the code. Above a load of 0.5 distrust the wall's clock."""
    import numpy as np

    return {
        "date": date.today().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def processor() -> str:
    """The processor's name."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def peak_megabytes() -> float:
    """Largest resident memory of this process so far.

    Not `getrusage`: its peak is inherited from the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def seconds(function: Callable[..., Any], *arguments: Any) -> tuple[Taken, Any]:
    """Times one call; returns its result, too."""
    begun = Taken(time.process_time(), time.perf_counter())
    result = function(*arguments)
    ended = Taken(time.process_time(), time.perf_counter())
    return Taken(ended.processor - begun.processor, ended.wall - begun.wall), result


def output_of(command: Sequence[str], purpose: str, environment: Mapping[str, str]) -> str:
    """What a command prints, run in the repository's root.

    Raises:
        RuntimeError: It failed; the message holds the end of what it wrote to stderr.
    """
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{purpose}: {done.stderr[-2000:]}")
    return done.stdout


def take_turns(
    functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1
) -> dict[str, list[Taken]]:
    """Times functions call by call in turn, so that a busy machine slows all of them alike."""
    times: dict[str, list[Taken]] = {name: [] for name in functions}
    for number in range(warm_up + rounds):
        for name, function in functions.items():
            taken, _ = seconds(function)
            if number >= warm_up:
                times[name].append(taken)
    return times


def ratios(times: list[Taken], reference: list[Taken]) -> list[float]:
    """Processor time against that of the reference, round by round.

    Example:
        >>> ratios([Taken(2.0, 9.0)], [Taken(1.0, 1.0)])
        [2.0]
    """
    return [own.processor / other.processor for own, other in zip(times, reference, strict=True)]


def milliseconds(times: list[Taken]) -> float:
    """Median of the processor's clock."""
    return 1000 * median(taken.processor for taken in times)


def write_results(results: dict[str, Any], output: Path | None) -> None:
    """Writes the JSON file, if one was asked for."""
    if output is not None:
        write_json(output, results)
        print(f"written: {output}")
