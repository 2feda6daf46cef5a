#!/usr/bin/env python3
"""Calls a service as its OpenAPI document allows, and as it does not, thousands of times.

schemathesis draws the calls; none may end in a status of 5xx or in another answer than announced.

Example:
    pip install schemathesis
    python -m research.reliability.service_schema --examples 900
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from research.measuring import parser_of
from research.reliability.service_process import ServiceProcess


def main(words: list[str] | None = None) -> int:
    """Runs schemathesis; its exit status is this one's."""
    parser = parser_of(__doc__, output=False)
    parser.add_argument("--examples", type=int, default=900, help="of each of the operations")
    parser.add_argument("--options", nargs="*", default=[], help="of loupe serve")
    arguments = parser.parse_args(words)
    program = Path(sys.executable).with_name("schemathesis")
    with (
        tempfile.TemporaryDirectory() as folder,
        ServiceProcess(Path(folder) / "store", *arguments.options) as service,
    ):
        command = [str(program), "run", f"{service.address}/openapi.json", "--phases", "fuzzing"]
        command += ["--checks", "not_a_server_error,status_code_conformance", "--seed", "0"]
        command += ["--max-examples", str(arguments.examples), "--continue-on-failure"]
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
