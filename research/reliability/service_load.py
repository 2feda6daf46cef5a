#!/usr/bin/env python3
"""Sends a service many requests from many clients, bad files and bombs among them.

Every good image must come back with what `loupe.predict` says of it, every bad one with a status of
4xx and a sentence; nothing may be a 5xx. With more clients than places in the queue it overflows:
what is refused must say when to come back, and clients come back until they are served.

Example:
    python -m research.reliability.service_load --requests 200 --clients 32
    python -m research.reliability.service_load --requests 2000 --largest 0.1 --smallest 0.02
    python -m research.reliability.service_load --requests 100 --clients 60 --queue 6
"""

from __future__ import annotations

import io
import json
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from skimage import data

from research.measuring import machine, parser_of
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


def watch(service: ServiceProcess, sizes: list[dict[str, float]], stop: threading.Event) -> None:
    """Notes the memory once a second."""
    while not stop.wait(1.0):
        sizes.append(service.megabytes())


def main(words: list[str] | None = None) -> int:
    """Prints what came of it as JSON; the exit status is 1 if anything was wrong."""
    parser = parser_of(__doc__, output=False)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--different", type=int, default=24, help="different photographs")
    parser.add_argument("--smallest", type=float, default=0.2, help="megapixels")
    parser.add_argument("--largest", type=float, default=12.0, help="megapixels")
    parser.add_argument("--queue", type=int, default=32)
    parser.add_argument("--no-compare", action="store_true", help="do not ask loupe.predict")
    parser.add_argument("--options", nargs="*", default=[], help="of loupe serve")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args(words)
    good = photographs(arguments.different, arguments.smallest, arguments.largest, 0)
    bad = bad_files()
    rng = np.random.default_rng(1)
    is_good = rng.random(arguments.requests) >= BAD
    sent = [(good if ok else bad)[rng.integers(len(good if ok else bad))] for ok in is_good]
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
    half = max(1, len(sizes) // 2)
    told = {
        "machine": machine(),
        "requests": arguments.requests,
        "clients": arguments.clients,
        "seconds": round(seconds, 1),
        "statuses": dict(run.statuses),
        "median seconds": round(float(np.median(run.seconds)), 2),
        "slowest seconds": round(max(run.seconds), 2),
        "megabytes before": before,
        "most megabytes": {key: max(size[key] for size in sizes) for key in before},
        "megabytes at half and at the end": [sizes[half - 1], sizes[-1]],
        "largest difference of probability and map": differences,
        "wrong": run.wrong[:20],
    }
    failed = bool(run.wrong) or any(" 5" in status for status in run.statuses)
    if differences is not None:
        failed |= differences[0] > 1e-6 or differences[1] > HALF_A_LEVEL
    print(json.dumps(told, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(told, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
