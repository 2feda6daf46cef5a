#!/usr/bin/env python3
"""Sends a service ten times as many images as it can predict, and looks how it recovers.

First its rate is measured with one client that waits for each image. Then images are sent at ten
times this rate, however long the responses take. What is refused must be a 429 with Retry-After;
what is accepted must be predicted, and not later than the places of the queue explain. When the
flood ends, an image is sent every half second: the first one accepted is the recovery.

Example:
    python -m research.reliability.service_overload --seconds 20
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import httpx

from research.measuring import machine, parser_of, write_results
from research.reliability.service_load import photographs
from research.reliability.service_process import ServiceProcess

SERIAL = 8
TIMES = 10
RECOVERY_SECONDS = 10.0
# Threads that send; each may wait for its response as long as the queue is.
SENDERS = 100


class Flood:
    """Statuses and seconds of all responses."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.statuses: Counter[int] = Counter()
        self.accepted: list[float] = []
        self.without_retry_after = 0
        self._lock = threading.Lock()

    def send(self, content: bytes) -> int:
        """One image; the status."""
        start = time.monotonic()
        with httpx.Client(base_url=self.address, timeout=600) as client:
            got = client.post(
                "/v1/predictions", files={"file": ("a.jpg", content)}, params={"wait": 600}
            )
        with self._lock:
            self.statuses[got.status_code] += 1
            if got.status_code == 201:
                self.accepted.append(time.monotonic() - start)
            elif got.status_code == 429:
                self.without_retry_after += not got.headers.get("Retry-After", "").isdigit()
        return got.status_code


def recovery(flood: Flood, content: bytes) -> float:
    """Seconds until an image is accepted again."""
    start = time.monotonic()
    with httpx.Client(base_url=flood.address, timeout=600) as client:
        while True:
            got = client.post(
                "/v1/predictions", files={"file": ("a.jpg", content)}, params={"wait": 0}
            )
            if got.status_code == 202:
                return time.monotonic() - start
            time.sleep(0.5)


def main(words: list[str] | None = None) -> int:
    """Prints what came of it; the exit status is 1 if anything was not as it must be."""
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the flood")
    parser.add_argument("--queue", type=int, default=8)
    parser.add_argument("--megapixels", type=float, default=0.03)
    parser.add_argument("--options", nargs="*", default=[], help="of loupe serve")
    arguments = parser.parse_args(words)
    (content,) = photographs(1, arguments.megapixels, arguments.megapixels, 0)
    with tempfile.TemporaryDirectory() as folder:
        options = ["--queue", str(arguments.queue), *arguments.options]
        with ServiceProcess(Path(folder) / "store", *options) as service:
            flood = Flood(service.address)
            start = time.monotonic()
            for _ in range(SERIAL):
                flood.send(content)
            serial = (time.monotonic() - start) / SERIAL
            flood.statuses.clear()
            flood.accepted.clear()
            start = time.monotonic()
            with ThreadPoolExecutor(SENDERS) as pool:
                number = 0
                while time.monotonic() < start + arguments.seconds:
                    pool.submit(flood.send, content)
                    number += 1
                    time.sleep(max(0.0, start + number * serial / TIMES - time.monotonic()))
                recovered = recovery(flood, content)
            sent_in = arguments.seconds
    told = {
        "seconds of one image": round(serial, 2),
        "images sent a second": round(number / sent_in, 1),
        "times its rate": round(number / sent_in * serial, 1),
        "places in the queue": arguments.queue,
        "statuses": dict(flood.statuses),
        "refused without Retry-After": flood.without_retry_after,
        "accepted after seconds: median, most": [
            round(median(flood.accepted), 1), round(max(flood.accepted), 1),
        ],
        "accepted again after seconds": round(recovered, 1),
    }  # fmt: skip
    for name, value in told.items():
        print(name, value)
    write_results(machine() | told, arguments.output)
    good = set(flood.statuses) == {201, 429} and not flood.without_retry_after
    return int(not good or recovered > RECOVERY_SECONDS)


if __name__ == "__main__":
    raise SystemExit(main())
