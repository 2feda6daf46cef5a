#!/usr/bin/env python3
"""The index of a data set of 1.5 million images: building, loading, sharing, drawing in balance.

    python -m research.benchmarks.index [--entries 1500000] [--workers 8] [--folder DIR]
        [--output FILE]

Plants a manifest that names so many images (no image is needed), and a DDL tree of as many empty
files, as far as two minutes take them; every step runs in a process of its own. Compared with: a
list of dicts as Detectron2 serialises it. Memory of workers: /proc/self/smaps when all of them have
read a tenth of the entries; a page that n processes share counts 1/n in PSS and not at all in USS.
Whole processes have their imports, too (with spawn a copy each), whatever the index.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from research.measuring import machine, parser_of, peak_megabytes, write_results

PLANTING_SECONDS = 120.0


def plant_manifest(folder: Path, entries: int) -> Path:
    """A manifest of which every third image is forged, with names as long as they are in life."""
    folder.mkdir(parents=True)
    with open(folder / "manifest.csv", "w", encoding="utf-8") as file:
        file.write("image,mask,label,technique,source\n")
        for number in range(entries):
            stem = f"{number % 200:03d}/{number * 2_654_435_761 % 2**48:012x}_{number:07d}"
            if number % 3:
                file.write(f"real/{stem}.jpg,,0,,camera-{number % 40}\n")
            else:
                technique = f"technique-{number % 11}"
                file.write(f"fake/{stem}.jpg,masks/{stem}.png,1,{technique},model-{number % 40}\n")
    _settle(folder)
    return folder


def plant_tree(folder: Path, entries: int) -> tuple[Path, int]:
    """A DDL split of empty files, and how many images it has got in time."""
    deadline = time.perf_counter() + PLANTING_SECONDS
    for name in ("real", "fake", "masks"):
        (folder / name).mkdir(parents=True)
    planted = 0
    for number in range(entries):
        stem = f"{number * 2_654_435_761 % 2**48:012x}_{number:07d}"
        if number % 3:
            os.mknod(folder / "real" / f"{stem}.jpg")
        else:
            os.mknod(folder / "fake" / f"{stem}.jpg")
            os.mknod(folder / "masks" / f"{stem}.png")
        planted += 1
        if planted % 10_000 == 0 and time.perf_counter() > deadline:
            break
    _settle(folder)
    return folder, planted


def _settle(folder: Path) -> None:
    # What has just changed is not cached; in life a data set is older than its first use.
    hour_ago = time.time() - 3600
    for path in (folder, *folder.iterdir()):
        os.utime(path, (hour_ago, hour_ago))


def memory(source: str = "smaps_rollup", ending: str = "") -> dict[str, float]:
    """MB of this process, or of the files that it has mapped whose names end so."""
    counted, sizes = False, {"Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    for line in Path(f"/proc/self/{source}").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            counted = words[-1].endswith(ending)
        elif counted and words[0][:-1] in sizes:
            sizes[words[0][:-1]] += int(words[1]) / 1024
    return {"shared": sizes["Pss"], "own": sizes["Private_Clean"] + sizes["Private_Dirty"]}


def fresh(function: Callable[..., Any], *arguments: Any) -> Any:
    """Result of a function in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_answer, args=(answer, function, arguments))
    process.start()
    result = answer.get()
    process.join()
    return result


def _answer(answer: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    answer.put(function(*arguments))


def measure_loading(path: str) -> dict[str, float]:
    """Seconds and MB of one `load_index`; the first makes the index, the next find it."""
    from loupe.data.sources.catalog import load_index

    before, start = peak_megabytes(), time.perf_counter()
    index = load_index(path)
    loaded = time.perf_counter()
    entry = index[len(index) // 2]
    first = time.perf_counter()
    rows = np.random.default_rng(0).integers(len(index), size=100_000).tolist()
    asked = time.perf_counter()
    for row in rows:
        entry = index[row]
    assert entry["file_name"]
    return {
        "entries": len(index),
        "seconds": loaded - start,
        "first entry ms": 1000 * (first - loaded),
        "entry us": (time.perf_counter() - asked) * 1e6 / len(rows),
        "columns MB": index.nbytes / 2**20,
        "peak MB above imports": peak_megabytes() - before,
    }


def measure_list(path: str) -> dict[str, float]:
    """The same of a list of dicts, serialised as Detectron2 does."""
    from detectron2.data import DatasetFromList

    from loupe.data.sources.catalog import load_dataset

    before, start = peak_megabytes(), time.perf_counter()
    entries = load_dataset(path)
    listed = time.perf_counter()
    dataset = DatasetFromList(entries, copy=False)
    seconds, list_seconds = time.perf_counter() - start, listed - start
    count = len(entries)
    del entries
    rows = range(0, count, max(1, count // 100_000))
    asked = time.perf_counter()
    for row in rows:
        dataset[row]
    return {
        "seconds": seconds,
        "of which listing": list_seconds,
        "entry us": (time.perf_counter() - asked) * 1e6 / len(rows),
        "serialised MB": (dataset._lst.nbytes + dataset._addr.nbytes) / 2**20,
        "peak MB above imports": peak_megabytes() - before,
    }


def measure_workers(path: str, method: str, workers: int) -> dict[str, float]:
    """MB of workers that read the index at once: whole processes, and the pages of its file."""
    from loupe.data.sources.catalog import load_index

    index = load_index(path)
    context = multiprocessing.get_context(method)
    barrier, answer = context.Barrier(workers), context.Queue()
    start = time.perf_counter()
    processes = [
        context.Process(target=_work, args=(index, number, barrier, answer))
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    found = [answer.get() for _ in processes]
    for process in processes:
        process.join()
    before, after, pages = (
        {name: sum(one[place][name] for one in found) for name in ("shared", "own")}
        for place in range(3)
    )
    return {
        "workers": workers,
        "seconds": time.perf_counter() - start,
        "index pages, PSS of all": pages["shared"],
        "index pages, USS of all": pages["own"],
        "whole processes, PSS of all": after["shared"],
        "whole processes, USS of all": after["own"],
        "growth of USS by reading, one worker": (after["own"] - before["own"]) / workers,
    }


def _work(index: Any, number: int, barrier: Any, answer: Any) -> None:
    before = memory()
    # As a loader's workers do: images drawn at random, all columns of them.
    rows = np.random.default_rng(number).integers(len(index), size=len(index) // 10)
    for row in rows.tolist():
        index[row]
    barrier.wait()
    after, pages = memory(), memory("smaps", ".arrow")
    barrier.wait()
    answer.put((before, after, pages))


def measure_sampler(path: str, name: str) -> dict[str, float]:
    """Making a sampler, drawing, and going on after ten passes."""
    from loupe.data.sources.catalog import load_index
    from loupe.data.training.samplers import build_sampler

    labels = np.array(load_index(path).labels)
    # Sets the peak back to what is in use now.
    Path("/proc/self/clear_refs").write_text("5")
    before, start = peak_megabytes(), time.perf_counter()
    sampler = build_sampler(name, labels, 0)
    draws = iter(sampler)
    next(draws)
    first = time.perf_counter()
    for _ in islice(draws, 1_000_000):
        pass
    drawn = time.perf_counter()
    sampler.skip(10 * len(labels))
    next(iter(sampler))
    return {
        "first draw s": first - start,
        "draw us": drawn - first,
        "first draw after ten passes s": time.perf_counter() - drawn,
        "peak MB above before": peak_megabytes() - before,
    }


def measure(path: str, workers: int) -> dict[str, Any]:
    """All steps on one data set."""
    results: dict[str, Any] = {
        "build": fresh(measure_loading, path),
        "load": fresh(measure_loading, path),
        "list of dicts": fresh(measure_list, path),
    }
    for method in ("fork", "spawn"):
        results[method] = fresh(measure_workers, path, method, workers)
    for name in ("TrainingSampler", "BalancedSampler"):
        results[name] = fresh(measure_sampler, path, name)
    return results


def main() -> None:
    """Plants, measures, prints, writes."""
    parser = parser_of(__doc__)
    parser.add_argument("--entries", type=int, default=1_500_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where to plant; by default a temporary one")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="index-", dir=arguments.folder))
    os.environ["LOUPE_CACHE"] = str(folder / "cache")
    results: dict[str, Any] = {
        "machine": machine(),
    }
    try:
        manifest = plant_manifest(folder / "listed", arguments.entries)
        results["manifest"] = measure(str(manifest), arguments.workers)
        start = time.perf_counter()
        tree, planted = plant_tree(folder / "tree", arguments.entries)
        seconds = time.perf_counter() - start
        results["tree"] = {
            "images": planted,
            "planting seconds": seconds,
            "build": fresh(measure_loading, str(tree)),
            "load": fresh(measure_loading, str(tree)),
        }
    finally:
        shutil.rmtree(folder)
    print(json.dumps(results, indent=1))
    write_results(results, arguments.output)


if __name__ == "__main__":
    main()
