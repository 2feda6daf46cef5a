#!/usr/bin/env python3
"""Speed of the generator of forgeries: images per second on one core.

    python -m research.benchmarks.generator [--size 128] [--images 300] [--photographs PATH]
        [--output FILE]

By technique, and for the stream as training meets it (every other image authentic, techniques in
turn); then the milliseconds per forged image that each part takes, with all that it calls, under a
profiler (which itself takes time, so that shares say more than sums). Processor time, three rounds,
their median; photographs are in memory before the first.
"""

from __future__ import annotations

import cProfile
import pstats
import statistics
from typing import Any

import cv2
import numpy as np

from loupe.data.sources.photographs import gather_photographs
from loupe.synthesis import AUTHENTIC, DEFAULT_TECHNIQUES, TECHNIQUES, make_forgery
from research.measuring import machine, parser_of, seconds, write_results

ROUNDS = 3
PARTS = (
    "take_host",
    "take_donor",
    "find_object",
    "draw_shape",
    "join",
    "inpaint",
    "enhance",
    "regenerate",
    "post_process",
)


def make_images(
    photographs: list[np.ndarray], size: int, count: int, kinds: tuple[str, ...], seed: int
) -> None:
    """Makes so many images, the kinds in turn."""
    for index in range(count):
        kind = kinds[index % len(kinds)]
        rng = np.random.default_rng((seed, index))
        make_forgery(rng, photographs, size, (kind,), forged=kind != AUTHENTIC)


def images_per_second(
    photographs: list[np.ndarray], size: int, count: int, kinds: tuple[str, ...]
) -> float:
    """Median of the rounds, by processor time."""
    speeds = []
    for seed in range(ROUNDS):
        taken, _ = seconds(make_images, photographs, size, count, kinds, seed)
        speeds.append(count / taken.processor)
    return statistics.median(speeds)


def milliseconds_by_part(
    photographs: list[np.ndarray], size: int, count: int
) -> dict[str, dict[str, float]]:
    """Of forged images of all techniques: time per image and calls per image of each part."""
    profile = cProfile.Profile()
    profile.runcall(make_images, photographs, size, count, DEFAULT_TECHNIQUES, 0)
    entries = pstats.Stats(profile).stats.items()
    return {
        name: {"milliseconds": 1000 * cumulative / count, "calls": calls / count}
        for (_, _, name), (_, calls, _, cumulative, _) in entries
        if name in PARTS
    }


def main() -> None:
    """Measures, prints, writes."""
    parser = parser_of(__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--images", type=int, default=300, help="per technique and round")
    parser.add_argument("--photographs", default="", help="a folder or manifest of further ones")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    photographs = list(gather_photographs("train", arguments.photographs))
    mixed = tuple(kind for technique in DEFAULT_TECHNIQUES for kind in (AUTHENTIC, technique))
    size, count = arguments.size, arguments.images
    make_images(photographs, size, 20, mixed, 0)
    kinds = {"stream": mixed, AUTHENTIC: (AUTHENTIC,)} | {name: (name,) for name in TECHNIQUES}
    results: dict[str, Any] = {
        "size": size,
        "images": count,
        "photographs": len(photographs),
        "machine": machine(),
        "opencv": cv2.__version__,
        "images per second": {
            name: images_per_second(photographs, size, count, turn) for name, turn in kinds.items()
        },
        "parts of a forged image": milliseconds_by_part(photographs, size, count),
    }
    print(f"{'images/s on one core':24}{size} px")
    for name, speed in results["images per second"].items():
        print(f"{name:24}{speed:.0f}")
    print(f"\n{'part of a forged image':24}ms      calls")
    parts = results["parts of a forged image"].items()
    for name, part in sorted(parts, key=lambda item: -item[1]["milliseconds"]):
        print(f"{name:24}{part['milliseconds']:.2f}{part['calls']:9.2f}")
    write_results(results, arguments.output)


if __name__ == "__main__":
    main()
