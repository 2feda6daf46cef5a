#!/usr/bin/env python3
"""Scoring one-megapixel maps: Loupe's evaluator against scikit-learn on the same pixels.

    python -m research.benchmarks.scoring [--maps 12] [--memory-maps 400] [--output FILE]
    python -m research.benchmarks.scoring --run 10000 [--distinct 200] [--output FILE]

Per map, scikit-learn computes what most scorers do: ROC AUC, average precision, best F1, F1, IoU.
Loupe computes those, adds the map to the pooled curves with their bootstrap, and (second line)
every peer's protocol. They take turns, one map each, on one core; processor time, medians and
quartiles of the maps' ratios.
Memory: the peak of a fresh process that scores `--memory-maps` maps, and what it had when half of
them were done; the growth over the second half, per map, extrapolates to 10,000 maps.

`--run N` extrapolates nothing of Loupe: `tools/score.py` itself scores N saved 8-bit maps, all
protocols, one process. `--distinct` different PNG files lie under N names (symbolic links); every
tenth image is authentic. scikit-learn takes ten of the forged maps, from memory, and its time is
multiplied by the number of forged ones: reading is not counted for it, but is for Loupe.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from research.measuring import machine, parser_of, peak_megabytes, seconds, write_results

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


def processor_seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Processor time of one call."""
    return seconds(function, *arguments)[0].processor


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
            "scikit-learn": processor_seconds(score_with_scikit_learn, scores, mask),
            "own": processor_seconds(add, own, index, scores, mask),
            "all protocols": processor_seconds(add, full, index, scores, mask),
        }
        if index:
            for name, value in taken.items():
                times[name].append(value)
        else:
            record = own.shard().table.columns()
            expected = score_with_scikit_learn(scores, mask)
            found = record.pixel_auc[0], record.best_f1[0]
            difference = max(abs(found[0] - expected[0]), abs(found[1] - expected[2]))
    report_seconds = processor_seconds(full.evaluate)
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


def _fill(maps: int, kind: str, answer: Any) -> None:
    """Scores maps in a process of its own and tells its peak memory at two moments."""
    evaluator = make_evaluator(PROTOCOLS)
    peaks = [peak_megabytes()]
    # A few maps are made once and shown again and again under new names.
    shown = list(make_maps(8, kind))
    for index in range(maps):
        add(evaluator, index, *shown[index % len(shown)])
        if index + 1 == maps // 2:
            peaks.append(peak_megabytes())
    peaks.append(peak_megabytes())
    evaluator.evaluate()
    answer.put([*peaks, peak_megabytes()])


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


def plant(folder: Path, names: int, distinct: int) -> None:
    """Writes a set of saved maps: few files, many names."""
    for name in ("files", "predictions", "masks"):
        (folder / name).mkdir(parents=True)
    for number, (scores, mask) in enumerate(make_maps(distinct, "8-bit")):
        cv2.imwrite(str(folder / f"files/{number}.png"), scores)
        cv2.imwrite(str(folder / f"masks/{number}.png"), mask.astype(np.uint8) * 255)
    generator = np.random.default_rng(1)
    rows, scores = ["image,mask,label"], ["file,probability"]
    for number in range(names):
        forged = number % 10 != 9
        file = number % distinct
        link = folder / f"predictions/{number:05d}.png"
        link.symlink_to(f"../files/{file}.png")
        rows.append(f"{number:05d}.jpg,{f'masks/{file}.png' if forged else ''},{int(forged)}")
        scores.append(f"{link.name},{np.clip(generator.normal(0.3 + 0.3 * forged, 0.2), 0, 1):.4f}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    (folder / "predictions/scores.csv").write_text("\n".join(scores) + "\n")


def _run_tool(folder: Path, answer: Any) -> None:
    """Runs `loupe score` in this process and tells its seconds and peak memory."""
    from loupe.commands.score import main
    from loupe.evaluation import scoring  # noqa: F401  Its imports are not to be timed.

    cv2.setNumThreads(1)
    imports = peak_megabytes()
    words = [str(folder / "predictions"), str(folder / "manifest.csv"), "--processes", "1"]
    taken, status = seconds(main, [*words, "--output", str(folder / "scores")])
    answer.put((status, taken.wall, taken.processor, imports, peak_megabytes()))


def measure_run(names: int, distinct: int) -> dict[str, Any]:
    """Scores that many saved maps for real; scikit-learn's time on ten of them."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plant(folder, names, distinct)
        answer = context.Queue()
        process = context.Process(target=_run_tool, args=(folder, answer))
        process.start()
        status, wall, own, imports, peak = answer.get()
        process.join()
        counts = json.loads((folder / "scores/scores.json").read_text())["counts"]
    reference = [
        processor_seconds(score_with_scikit_learn, *one)
        for one in islice(make_maps(11, "8-bit"), 1, None)
    ]
    forged = names - names // 10
    expected = float(np.mean(reference)) * forged
    return {
        "maps": names,
        "distinct files": distinct,
        "exit status": status,
        "counts": counts,
        "wall seconds": wall,
        "processor seconds": own,
        "peak MB after imports": imports,
        "peak MB": peak,
        "scikit-learn seconds per map, of ten": quartiles(reference),
        "scikit-learn processor seconds, extrapolated": expected,
        "ratio": expected / own,
    }


def main() -> None:
    """Measures, prints, writes."""
    parser = parser_of(__doc__)
    parser.add_argument("--maps", type=int, default=12)
    parser.add_argument("--memory-maps", type=int, default=400)
    parser.add_argument("--run", type=int, default=0, help="score that many saved maps for real")
    parser.add_argument("--distinct", type=int, default=200, help="files for --run")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    results: dict[str, Any] = {
        "machine": machine(),
        "pixels": SIDE * SIDE,
    }
    if arguments.run:
        results["run"] = measure_run(arguments.run, arguments.distinct)
    for kind in () if arguments.run else ("8-bit", "float"):
        results[kind] = measure_speed(arguments.maps, kind)
        results[kind]["memory MB"] = measure_memory(arguments.memory_maps, kind)
    print(json.dumps(results, indent=1))
    write_results(results, arguments.output)


if __name__ == "__main__":
    main()
