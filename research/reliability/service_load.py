#!/usr/bin/env python3
"""Sends a service many requests from many clients, bad files and bombs among them.

Every good image must come back with what `loupe.predict` says of it, every bad one with a status of
4xx and a sentence; nothing may be a 5xx. With more clients than places in the queue it overflows:
what is refused must say when to come back, and clients come back until they are served.

Example:
    python -m research.reliability.service_load --requests 200 --clients 32
    python -m research.reliability.service_load --originals originals.csv --weigh
    python -m research.reliability.service_load --requests 2000 --largest 0.1 --smallest 0.02
    python -m research.reliability.service_load --requests 100 --clients 60 --queue 6
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image
from skimage import data

from research.measuring import machine, parser_of, write_results
from research.reliability.bomb_files import BOMBS
from research.reliability.service_process import ServiceProcess

# Bombs that are small to send; each is refused or read within the reader's limits.
SENT_BOMBS = (
    "png_announced",
    "jpeg_announced",
    "tiff_announced",
    "webp_announced",
    "gif_announced",
)
BAD = 0.25
MOST_MEGABYTES = 3000
# Of an 8-bit map, against a float one.
HALF_A_LEVEL = 0.5 / 255 + 1e-4


def photographs(count: int, smallest: float, largest: float, seed: int) -> list[bytes]:
    """JPEGs of scikit-image's photographs, from `smallest` to `largest` megapixels."""
    rng = np.random.default_rng(seed)
    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    made = []
    for number in range(count):
        pixels = 1e6 * smallest * (largest / smallest) ** (number / max(count - 1, 1))
        source = Image.fromarray(sources[number % len(sources)])
        ratio = source.width / source.height
        size = (round((pixels * ratio) ** 0.5), round((pixels / ratio) ** 0.5))
        noise = rng.normal(0, 3, (size[1], size[0], 1))
        grown = np.asarray(source.resize(size, Image.Resampling.BICUBIC)) + noise
        stream = io.BytesIO()
        Image.fromarray(np.clip(grown, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        made.append(stream.getvalue())
    return made


def originals(table: Path, count: int, smallest: float, largest: float) -> list[bytes]:
    """Photographs of a list, as they are stored, from `smallest` to `largest` megapixels.

    For each size the original that is nearest; where that is more than a fifth larger, it is shrunk
    to the size and stored as JPEG 90.

    Args:
        table: CSV with a column `image`, paths beside it.
        count: Of photographs, their sizes in equal ratios.
        smallest: Megapixels.
        largest: Megapixels.
    """
    with table.open(newline="") as lines:
        files = [table.parent / row["image"] for row in csv.DictReader(lines)]
    sizes = {}
    for file in files:
        with Image.open(file) as image:
            sizes[file] = image.width * image.height / 1e6
    made: list[bytes] = []
    for wanted in np.geomspace(smallest, largest, count):
        if not sizes:
            break
        # Each original once; those that are too large for all sizes stay out.
        file = min(sizes, key=lambda one: abs(np.log(sizes[one] / wanted)))
        size = sizes.pop(file)
        content = file.read_bytes()
        if size > 1.2 * wanted:
            image = Image.open(io.BytesIO(content))
            scale = (wanted / size) ** 0.5
            stream = io.BytesIO()
            shrunk = image.resize((round(image.width * scale), round(image.height * scale)))
            shrunk.convert("RGB").save(stream, "JPEG", quality=90)
            content = stream.getvalue()
        made.append(content)
    return made


def drawn(count: int, contents: list[bytes], weights: np.ndarray) -> Iterator[bytes]:
    """All contents once, then as many as are left by their weights, in a random order."""
    rng = np.random.default_rng(2)
    numbers = [*range(len(contents))][:count]
    left = count - len(numbers)
    numbers += list(rng.choice(len(contents), left, p=weights / weights.sum()))
    for number in rng.permutation(numbers):
        yield contents[number]


def bad_files() -> list[bytes]:
    """Text, nothing, bombs; a torn JPEG is no bad file: it is read, and its warning says so."""
    return [b"this is text", b"", *(BOMBS[name]() for name in SENT_BOMBS)]


class Run:
    """What came of all requests."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.wrong: list[str] = []
        self.results: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def send(self, number: int, content: bytes, good: bool) -> None:
        """Sends one image until it is not refused for want of a place."""
        kind = "good" if good else "bad"
        with httpx.Client(base_url=self.address, timeout=1200) as client:
            start = time.monotonic()
            while True:
                got = client.post(
                    "/v1/predictions", files={"file": (f"{number}.jpg", content)},
                    params={"wait": 1000},
                )  # fmt: skip
                with self._lock:
                    self.statuses[f"{kind} {got.status_code}"] += 1
                if got.status_code != 429:
                    break
                time.sleep(min(int(got.headers["Retry-After"]), 5))
        with self._lock:
            self.seconds.append(time.monotonic() - start)
            told = got.json()
            if good and got.status_code == 201:
                self.results[number] = told
            elif good or not (400 <= got.status_code < 500 and told.get("error")):
                self.wrong.append(f"{kind} {number}: {got.status_code} {got.text[:200]}")


def compare(run: Run, sent: list[bytes]) -> tuple[float, float]:
    """Largest differences of probability and map from `loupe.predict`."""
    import loupe

    known: dict[bytes, Any] = {}
    most = [0.0, 0.0]
    for number, told in run.results.items():
        content = sent[number]
        if content not in known:
            known[content] = loupe.predict(content)
            stored = httpx.get(run.address + told["links"]["map"], timeout=600).content
            values = np.asarray(Image.open(io.BytesIO(stored)), np.float32) / 255
            most[1] = max(most[1], float(np.abs(values - known[content].forgery_map).max()))
        most[0] = max(most[0], abs(told["result"]["probability"] - known[content].score))
    return most[0], most[1]


def _megapixels(content: bytes) -> float:
    with Image.open(io.BytesIO(content)) as image:
        return image.width * image.height / 1e6


def sizes_of(contents: list[bytes]) -> dict[str, int]:
    """How many images have at most so many megapixels."""
    bounds = (0.1, 0.5, 1, 2, 4, 8, 16)
    found = Counter(next(b for b in bounds if _megapixels(c) <= b) for c in contents)
    return {f"up to {bound}": found[bound] for bound in bounds if found[bound]}


def memory(sizes: list[dict[str, float]]) -> dict[str, Any]:
    """The most, and the growth: means over fifths of the run."""
    series = np.array([[size["server"], size["workers"]] for size in sizes])
    fifths = [part.mean(axis=0) for part in np.array_split(series, 5) if len(part)]
    return {
        "most megabytes": {"server": series[:, 0].max(), "workers": series[:, 1].max()},
        "most megabytes together": series.sum(axis=1).max(),
        "mean megabytes of server and workers by fifths": np.round(fifths, 1).tolist(),
    }


def watch(service: ServiceProcess, sizes: list[dict[str, float]], stop: threading.Event) -> None:
    """Notes the memory once a second."""
    while not stop.wait(1.0):
        sizes.append(service.megabytes())


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--different", type=int, default=24, help="different photographs")
    parser.add_argument("--smallest", type=float, default=0.2, help="megapixels")
    parser.add_argument("--largest", type=float, default=12.0, help="megapixels")
    parser.add_argument("--originals", type=Path, help="CSV of photographs, in place of the own")
    parser.add_argument(
        "--weigh", action="store_true",
        help="every photograph once, then with weights of 1 / pixels squared",
    )  # fmt: skip
    parser.add_argument("--queue", type=int, default=32)
    parser.add_argument("--no-compare", action="store_true", help="do not ask loupe.predict")
    parser.add_argument("--options", nargs="*", default=[], help="of loupe serve")
    return parser


class Served(NamedTuple):
    """A run that has ended: its seconds, the service's memory, and differences if asked for."""

    run: Run
    seconds: float
    before: dict[str, float]
    sizes: list[dict[str, float]]
    differences: tuple[float, float] | None


def serve(arguments: argparse.Namespace, sent: list[bytes], is_good: np.ndarray) -> Served:
    """Sends everything to a service of its own."""
    sizes: list[dict[str, float]] = []
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        options = ["--queue", str(arguments.queue), *arguments.options]
        with ServiceProcess(Path(folder) / "store", *options) as service:
            run = Run(service.address)
            before = service.megabytes()
            watcher = threading.Thread(target=watch, args=(service, sizes, stop))
            watcher.start()
            start = time.monotonic()
            with ThreadPoolExecutor(arguments.clients) as pool:
                list(pool.map(run.send, range(len(sent)), sent, map(bool, is_good)))
            seconds = time.monotonic() - start
            stop.set()
            watcher.join()
            differences = None if arguments.no_compare else compare(run, sent)
    return Served(run, seconds, before, sizes, differences)


def main(words: list[str] | None = None) -> int:
    """Prints what came of it as JSON; the exit status is 1 if anything was wrong."""
    arguments = make_parser().parse_args(words)
    wanted = (arguments.different, arguments.smallest, arguments.largest)
    table = arguments.originals
    good = photographs(*wanted, 0) if table is None else originals(table, *wanted)
    bad = bad_files()
    rng = np.random.default_rng(1)
    is_good = rng.random(arguments.requests) >= BAD
    pixels = np.array([_megapixels(content) for content in good])
    weights = pixels**-2 if arguments.weigh else np.ones_like(pixels)
    good_ones = drawn(int(is_good.sum()), good, weights)
    bad_ones = drawn(int((~is_good).sum()), bad, np.ones(len(bad)))
    sent = [next(good_ones if ok else bad_ones) for ok in is_good]
    run, seconds, before, sizes, differences = serve(arguments, sent, is_good)
    photographs_sent = [content for content, ok in zip(sent, is_good, strict=True) if ok]
    told = {
        "machine": machine(),
        "requests": arguments.requests,
        "clients": arguments.clients,
        "seconds": round(seconds, 1),
        "good photographs sent, by megapixels": sizes_of(photographs_sent),
        "different ones among them": len(set(photographs_sent)),
        "statuses": dict(run.statuses),
        "median seconds": round(float(np.median(run.seconds)), 2),
        "slowest seconds": round(max(run.seconds), 2),
        "megabytes before": before,
        **memory(sizes),
        "largest difference of probability and map": differences,
        "wrong": run.wrong[:20],
    }
    failed = bool(run.wrong) or any(" 5" in status for status in run.statuses)
    failed |= told["most megabytes together"] > MOST_MEGABYTES
    if differences is not None:
        failed |= differences[0] > 1e-6 or differences[1] > HALF_A_LEVEL
    print(json.dumps(told, indent=1))
    write_results(told, arguments.output)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
