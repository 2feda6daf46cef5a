#!/usr/bin/env python3
"""Scoring one-megapixel maps: Loupe's evaluator against scikit-learn on the same pixels.

    benchmarks/scoring.py [--maps 12] [--memory-maps 200] [--output FILE]

Per map, scikit-learn computes what most scorers do: ROC AUC, average precision, best F1, F1, IoU.
Loupe computes those, adds the map to the pooled curves with their bootstrap, and (second line)
every peer's protocol. They take turns, one map each, on one core; processor time, medians and
quartiles of the maps' ratios.
Memory: the peak of a fresh process that scores `--memory-maps` maps, and what it had when half of
them were done; the growth over the second half, per map, extrapolates to 10,000 maps.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIDE = 1024
PROTOCOLS = ("benco", "trufor", "mvss", "sida")


def make_maps(count: int, kind: str, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Maps as networks give them (smooth, most pixels near 0), with masks of 2 to 20%."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        axes = generator.integers(SIDE // 10, SIDE // 4, 2)
        centre = generator.integers(SIDE // 4, 3 * SIDE // 4, 2)
        cv2.ellipse(mask, centre.tolist(), axes.tolist(), 30, 0, 360, 1, -1)
        coarse = generator.normal(0, 1.5, (64, 64)).astype(np.float32)
        logits = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) + 3 * mask - 4
        scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
        if kind == "8-bit":
            scores = (scores * 255).astype(np.uint8)
        yield scores, mask.astype(bool)


def score_with_scikit_learn(scores: np.ndarray, mask: np.ndarray) -> list[float]:
    """Five numbers of one map."""
    from sklearn.metrics import (
        average_precision_score,
        f1_score,
        jaccard_score,
        precision_recall_curve,
        roc_auc_score,
    )

    flat, truth = scores.ravel(), mask.ravel()
    called = flat > (127 if scores.dtype == np.uint8 else 0.5)
    precision, recall, _ = precision_recall_curve(truth, flat)
    best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    return [
        roc_auc_score(truth, flat),
        average_precision_score(truth, flat),
        best,
        f1_score(truth, called),
        jaccard_score(truth, called),
    ]


def make_evaluator(protocols: tuple[str, ...]) -> Any:
    """An evaluator for this process alone."""
    from loupe.evaluation import ForgeryEvaluator

    return ForgeryEvaluator("benchmark", protocols=protocols, distributed=False)


def add(evaluator: Any, index: int, scores: np.ndarray, mask: np.ndarray) -> None:
    """Scores one forged image."""
    from loupe.structures import GroundTruth

    evaluator.add(str(index), str(index), GroundTruth(1, mask), 0.5, scores)


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Processor time of one call: other programs on the machine do not count."""
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"q25": low, "median": middle, "q75": high}


def measure_speed(maps: int, kind: str) -> dict[str, Any]:
    """Times of the three, taking turns map by map; the first map warms up."""
    own, full = make_evaluator(()), make_evaluator(PROTOCOLS)
    times: dict[str, list[float]] = {"scikit-learn": [], "own": [], "all protocols": []}
    for index, (scores, mask) in enumerate(make_maps(maps + 1, kind)):
        taken = {
            "scikit-learn": seconds(score_with_scikit_learn, scores, mask),
            "own": seconds(add, own, index, scores, mask),
            "all protocols": seconds(add, full, index, scores, mask),
        }
        if index:
            for name, value in taken.items():
                times[name].append(value)
        else:
            record = own.share().table.columns()
            expected = score_with_scikit_learn(scores, mask)
            found = record.pixel_auc[0], record.best_f1[0]
            difference = max(abs(found[0] - expected[0]), abs(found[1] - expected[2]))
    report_seconds = seconds(full.evaluate)
    reference = np.array(times["scikit-learn"])
    return {
        "milliseconds": {k: quartiles([1000 * t for t in v]) for k, v in times.items()},
        "ratio": {
            k: quartiles((reference / np.array(times[k])).tolist())
            for k in ("own", "all protocols")
        },
        "largest difference": float(difference),
        "report seconds": report_seconds,
    }


def _peak_megabytes() -> float:
    # Not getrusage: its peak is inherited from the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _fill(maps: int, kind: str, answer: Any) -> None:
    """Scores maps in a process of its own and tells its peak memory at two moments."""
    evaluator = make_evaluator(PROTOCOLS)
    peaks = [_peak_megabytes()]
    # A few maps are made once and shown again and again under new names.
    shown = list(make_maps(8, kind))
    for index in range(maps):
        add(evaluator, index, *shown[index % len(shown)])
        if index + 1 == maps // 2:
            peaks.append(_peak_megabytes())
    peaks.append(_peak_megabytes())
    evaluator.evaluate()
    answer.put([*peaks, _peak_megabytes()])


def measure_memory(maps: int, kind: str) -> dict[str, float]:
    """Peak memory in MB, and what 10,000 maps would need at the measured growth."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_fill, args=(maps, kind, answer))
    process.start()
    start, early, late, reported = answer.get()
    process.join()
    growth = (late - early) / (maps - maps // 2)
    return {
        "maps": maps,
        "imports": start,
        "after half": early,
        "after all": late,
        "after the report": reported,
        "growth per map": growth,
        "extrapolated to 10,000 maps": reported + growth * (10_000 - maps),
    }


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--maps", type=int, default=12)
    parser.add_argument("--memory-maps", type=int, default=400)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    results: dict[str, Any] = {
        "machine": {"python": platform.python_version(), "numpy": np.__version__},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "pixels": SIDE * SIDE,
    }
    for kind in ("8-bit", "float"):
        results[kind] = measure_speed(arguments.maps, kind)
        results[kind]["memory MB"] = measure_memory(arguments.memory_maps, kind)
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
