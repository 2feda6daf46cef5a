"""Which code runs the operator on each device: compiled kernels, or plain PyTorch.

Decided once, when this module is imported, from what has been built and from two environment
variables, and never by trying and catching an error:

    LOUPE_OPS=pytorch         plain PyTorch, even where kernels are built
    LOUPE_CPU_KERNELS=avx2    the CPU kernels baseline, avx2 or avx512, not the fastest here
"""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from typing import NamedTuple

import torch

# The kernels use torch's stable interface alone, which this version brought.
OLDEST_TORCH = (2, 10)
REMEDY = "build it in a clone of the repository: pip install --no-build-isolation -e ."


class Backend(NamedTuple):
    """What runs the operator on one kind of device.

    Attributes:
        compiled: True for our kernels, False for `grid_sample`.
        reason: why, in words.
    """

    compiled: bool
    reason: str


def _built_library(name: str) -> str | None:
    specification = find_spec(f"loupe.ops.{name}")
    return specification.origin if specification is not None else None


def _load(path: str) -> None:
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"{path} was built but does not load ({error}). Rebuild it for torch "
            f"{torch.__version__} (pip install --no-build-isolation -e .), delete it, or set "
            "LOUPE_OPS=pytorch to run without it."
        ) from error


def _too_old() -> Backend | None:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= OLDEST_TORCH:
        return None
    wanted = ".".join(map(str, OLDEST_TORCH))
    return Backend(False, f"compiled kernels need torch {wanted}, this is {torch.__version__}")


def _cpu_backend() -> Backend:
    path = _built_library("_C")
    if path is None:
        return Backend(False, f"the extension loupe.ops._C has not been built; {REMEDY}")
    _load(path)
    kernels = os.environ.get("LOUPE_CPU_KERNELS")
    if kernels:
        torch.ops.loupe.use_cpu_kernels(kernels)
    chosen = "chosen by LOUPE_CPU_KERNELS" if kernels else "the fastest for this processor"
    return Backend(True, f"{torch.ops.loupe.cpu_kernels()} kernels: {chosen}")


def _cuda_backend() -> Backend:
    path = _built_library("_C_cuda")
    if path is None:
        reason = "the extension loupe.ops._C_cuda has not been built"
        return Backend(False, f"{reason}; set LOUPE_BUILD_CUDA=1 and {REMEDY}")
    if torch.version.cuda is None:
        return Backend(False, "this torch is a build without CUDA")
    _load(path)
    return Backend(True, f"kernels in {os.path.basename(path)}")


def _decide() -> dict[str, Backend]:
    requested = os.environ.get("LOUPE_OPS", "auto")
    if requested not in ("auto", "pytorch"):
        raise ValueError(f"LOUPE_OPS is {requested!r}; set it to 'auto' or 'pytorch'")
    if requested == "pytorch":
        plain = Backend(False, "chosen by LOUPE_OPS=pytorch")
        return {"cpu": plain, "cuda": plain}
    too_old = _too_old()
    backends = {"cpu": too_old or _cpu_backend(), "cuda": too_old or _cuda_backend()}
    # device_count asks the driver's monitor: unlike is_available it leaves CUDA uninitialised, so
    # that processes may still be forked after the import.
    wanted = ["cpu", "cuda"] if torch.cuda.device_count() > 0 else ["cpu"]
    missing = [f"{name}: {backends[name].reason}" for name in wanted if not backends[name].compiled]
    if missing:
        warnings.warn(
            "deformable attention runs in plain PyTorch, many times slower. " + "; ".join(missing),
            stacklevel=2,
        )
    return backends


BACKENDS = _decide()
HAS_COMPILED_OP = any(backend.compiled for backend in BACKENDS.values())


def runs_compiled(device_type: str) -> bool:
    """Whether tensors on such a device go to compiled kernels."""
    return device_type in BACKENDS and BACKENDS[device_type].compiled


def describe() -> str:
    """One line for each kind of device: the path taken and why."""
    lines = [f"torch {torch.__version__}, CUDA devices: {torch.cuda.device_count()}"]
    for name, backend in BACKENDS.items():
        path = "compiled kernels" if backend.compiled else "plain PyTorch (grid_sample)"
        lines.append(f"{name}: {path}; {backend.reason}")
    return "\n".join(lines)
