"""Fixtures that say which path a test exercises."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import loupe.ops
from loupe.ops.backends import runs_compiled

# The operator without the rest of the package, whose import takes seconds.
OPS_ALONE = f"""
import sys
from types import ModuleType
package = ModuleType("loupe")
package.__path__ = [{str(Path(loupe.ops.__file__).parents[1])!r}]
sys.modules["loupe"] = package
"""

needs_compiled_cpu = pytest.mark.skipif(
    not runs_compiled("cpu"), reason="the CPU operator has not been built"
)


def supported_kernels() -> list[str]:
    """Names of the CPU kernels that this processor can run."""
    if not runs_compiled("cpu"):
        return []
    # These flags are what torch itself goes by when it picks its own CPU code.
    capability = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": ["baseline", "avx2", "avx512"], "AVX2": ["baseline", "avx2"]}.get(
        capability, ["baseline"]
    )


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def cpu_kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test once with each build of the CPU kernels."""
    if request.param not in supported_kernels():
        pytest.skip(f"this processor cannot run the {request.param} kernels, or none are built")
    previous = torch.ops.loupe.use_cpu_kernels(request.param)
    yield request.param
    torch.ops.loupe.use_cpu_kernels(previous)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter: the path is chosen once per process."""
    return subprocess.run(
        [sys.executable, "-c", OPS_ALONE + code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
