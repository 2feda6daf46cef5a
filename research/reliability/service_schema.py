#!/usr/bin/env python3
"""Calls a service as its OpenAPI document allows, and as it does not, thousands of times.

schemathesis draws the calls, and service_schema_hooks.py gives it images and identifiers that
exist. No call may end in a status of 5xx, in a status, header, kind of content or body other than
announced, or in another method than announced being accepted.

Example:
    pip install schemathesis
    python -m research.reliability.service_schema --examples 1100    # of 5 operations
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from research.measuring import machine, parser_of, write_results
from research.reliability.bomb_files import BOMBS
from research.reliability.service_load import SENT_BOMBS
from research.reliability.service_process import ServiceProcess

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
_HEALTH = "GET health"


def small_images() -> list[bytes]:
    """Images of all formats that cost little to predict, whole and torn."""
    rng = np.random.default_rng(0)
    made = []
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"):
        for height, width in ((48, 64), (70, 40)):
            stream = io.BytesIO()
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(stream, kind)
            made.append(stream.getvalue())
    return made + [content[: 2 * len(content) // 3] for content in made]


def write_files(folder: Path) -> None:
    """Writes the images, and bombs, which the hooks send."""
    folder.mkdir()
    contents = [*small_images(), *(BOMBS[name]() for name in SENT_BOMBS)]
    for number, content in enumerate(contents):
        (folder / f"{number:03d}").write_bytes(content)


def known_identifiers(address: str) -> list[str]:
    """Predicts a few images; their identifiers."""
    with httpx.Client(base_url=address, timeout=600) as client:
        answers = [
            client.post("/v1/predictions", files={"file": ("a.png", content)})
            for content in small_images()
        ]
    return [answer.json()["id"] for answer in answers if answer.status_code == 201]


def calls_by_status(log: Path) -> dict[str, dict[str, int]]:
    """Requests in a service's log: method and group of routes -> status -> count."""
    groups = {"predictions": "v1", "health": "v1", "model": "v1", "metrics": "", "openapi.json": ""}
    found: dict[str, Counter[str]] = {}
    for line in log.read_text().splitlines():
        told: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
        if told.get("event") == "request":
            _, first, *rest = [*told["path"].split("/"), ""]
            name = next((n for n, p in groups.items() if n == (rest[0] if p else first)), "other")
            kind = f"{told['method']} {name}"
            found.setdefault(kind, Counter())[str(told["status"])] += 1
    return {kind: dict(counts) for kind, counts in found.items()}


def main(words: list[str] | None = None) -> int:
    """Runs schemathesis; the exit status is 1 if a check failed or a 5xx stands in the log."""
    parser = parser_of(__doc__)
    parser.add_argument("--examples", type=int, default=1100, help="of each of the operations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", nargs="*", default=[], help="of loupe serve")
    arguments = parser.parse_args(words)
    program = Path(sys.executable).with_name("schemathesis")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        with ServiceProcess(store, *arguments.options) as service:
            known = known_identifiers(service.address)
            command = [str(program), "run", f"{service.address}/openapi.json"]
            command += ["--phases", "coverage,fuzzing", "--checks", ",".join(CHECKS)]
            command += ["--seed", str(arguments.seed), "--continue-on-failure"]
            command += ["--max-examples", str(arguments.examples)]
            command += ["--suppress-health-check", "all", "--request-timeout", "300"]
            command += ["--warnings", "off"]
            files = Path(folder) / "files"
            write_files(files)
            environment = os.environ | {
                "SCHEMATHESIS_HOOKS": str(Path(__file__).with_name("service_schema_hooks.py")),
                "LOUPE_SCHEMA_IDENTIFIERS": ",".join(known),
                "LOUPE_SCHEMA_FILES": str(files),
            }
            status = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
        calls = calls_by_status(store.with_name(f"{store.name}.log"))
    told = {
        "machine": machine(),
        "schemathesis": version("schemathesis"),
        "checks": CHECKS,
        "calls": sum(sum(counts.values()) for counts in calls.values()),
        "server errors": sum(
            count
            for kind, counts in calls.items()
            for status_code, count in counts.items()
            if status_code >= "500" and kind != _HEALTH  # 503 until the worker is ready.
        ),
        "calls by status": calls,
        "exit status of schemathesis": status,
    }
    print(json.dumps(told, indent=1))
    write_results(told, arguments.output)
    return int(bool(status or told["server errors"]))


if __name__ == "__main__":
    raise SystemExit(main())
