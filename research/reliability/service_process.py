"""A `loupe serve` of its own for the runs on the service: started, watched, stopped or killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx


class ServiceProcess:
    """A service in a process of its own, ready when the block begins.

    Args:
        store: Folder of its results.
        options: Further words of the command line.
    """

    def __init__(self, store: Path, *options: str) -> None:
        self.store = store
        self._options = options
        self._log = (store.parent / f"{store.name}.log").open("a")

    def __enter__(self) -> ServiceProcess:
        """Starts it and waits until it predicts."""
        command = [sys.executable, "-W", "ignore", "-m", "loupe", "serve", "--port", "0"]
        command += ["--store", str(self.store), *self._options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self.process.stdout is not None
        found = re.match(r"(http://\S+?)[ /]", self.process.stdout.readline())
        assert found, "the service does not start; see its log"
        self.address = found[1]
        while True:
            try:
                if httpx.get(f"{self.address}/v1/health", timeout=60).status_code == 200:
                    return self
            except httpx.ConnectError:
                pass
            assert self.process.poll() is None, "the service ended; see its log"
            time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        """Stops it as a system does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)
        self._log.close()

    def kill(self) -> None:
        """Ends it as the power does."""
        self.process.kill()
        self.process.wait()

    def processes(self) -> list[int]:
        """The server and its workers."""
        number = self.process.pid
        tasks = Path(f"/proc/{number}/task")
        children = [int(c) for t in tasks.iterdir() for c in (t / "children").read_text().split()]
        return [number, *children]

    def megabytes(self) -> dict[str, float]:
        """Resident memory of server and workers; pages that both share count in both."""
        sizes = []
        for number in self.processes():
            status = Path(f"/proc/{number}/status").read_text()
            resident = re.search(r"VmRSS:\s+(\d+)", status)
            sizes.append(int(resident[1]) / 1024 if resident else 0.0)
        return {"server": sizes[0], "workers": sum(sizes[1:])}
