#!/usr/bin/env python3
"""Kills a service in the middle of its work, starts it anew on the same folder, and looks.

Finished predictions must be there with all their pictures, whole; all others must be marked, and no
half file may be left.

Example:
    python -m research.reliability.service_kill --rounds 5
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from loupe.service.store import PICTURES, State
from research.measuring import parser_of
from research.reliability.service_load import photographs
from research.reliability.service_process import ServiceProcess

IMAGES = 12


def one_round(store: Path, seconds: float, options: list[str]) -> Counter[str]:
    """Sends images, kills the service after so many seconds, and counts what a new one says."""
    found: Counter[str] = Counter()
    with ServiceProcess(store, *options) as service:
        names = []
        with httpx.Client(base_url=service.address, timeout=600) as client:
            for content in photographs(IMAGES, 0.02, 0.1, 0):
                got = client.post(
                    "/v1/predictions", files={"file": ("a.jpg", content)}, params={"wait": 0}
                )
                names.append(got.json()["id"])
            time.sleep(seconds)
        service.kill()
    with (
        ServiceProcess(store, *options) as service,
        httpx.Client(base_url=service.address, timeout=600) as client,
    ):
        for name in names:
            told = client.get(f"/v1/predictions/{name}").json()
            found[told["state"]] += 1
            if told["state"] != State.DONE.value:
                continue
            for picture in PICTURES:
                content = client.get(f"/v1/predictions/{name}/{picture}").content
                np.asarray(Image.open(io.BytesIO(content)))
    found["half files"] += len(list((store / "files").glob("*/.unfinished-*")))
    return found


def main(words: list[str] | None = None) -> int:
    """Prints the counts; the exit status is 1 if a prediction was neither finished nor marked."""
    parser = parser_of(__doc__, output=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--options", nargs="*", default=[], help="of loupe serve")
    arguments = parser.parse_args(words)
    total: Counter[str] = Counter()
    rng = np.random.default_rng(0)
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            total += one_round(Path(folder) / "store", rng.uniform(0.2, 5), arguments.options)
    print(json.dumps(total))
    wrong = set(total) - {State.DONE.value, State.INTERRUPTED.value}
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
