"""Linear layers in float32 on processors for which MKL has no fast kernels.

PyTorch multiplies float32 matrices on x86 with MKL, which runs its fast kernels on Intel's
processors alone. oneDNN, which PyTorch carries as well and uses for convolutions and bfloat16,
is 1.5 to 2.3 times as fast on AMD's. Decided once, when this module is imported:

    LOUPE_LINEAR=torch     never oneDNN
    LOUPE_LINEAR=onednn    oneDNN on any processor

N rows, C inputs, K outputs.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Products below which a call of oneDNN costs more than it saves: about 320 rows of 64 to 64 here.
SMALLEST = 1 << 22


class LinearBackend(NamedTuple):
    """Whether float32 linear layers go to oneDNN, and why, in words."""

    onednn: bool
    reason: str


class FastLinear(nn.Linear):
    """`nn.Linear` with the same names, weights and results to rounding; see `use_fast_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., K)."""
        if _suits(x, self.weight):
            return _OneDnnLinear.apply(x, self.weight, self.bias)
        return super().forward(x)


def use_fast_linear(module: nn.Module) -> int:
    """Turns the plain `nn.Linear` inside `module` into `FastLinear` where that is faster.

    Parameters, names of the state dict and hooks stay as they are. Attention that PyTorch
    implements itself (`nn.MultiheadAttention`) keeps its projections.

    Returns:
        How many were turned.
    """
    if not LINEAR_BACKEND.onednn:
        return 0
    plain = [layer for layer in module.modules() if type(layer) is nn.Linear]
    for layer in plain:
        layer.__class__ = FastLinear
    return len(plain)


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        # What no gradient needs is not kept: adaptation freezes most weights.
        to_x, to_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if to_weight else None, weight if to_x else None)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            _multiply(gradient, weight.t()) if to_x else None,
            _multiply(rows.t(), x.reshape(-1, x.shape[-1]).t()) if to_weight else None,
            rows.sum(dim=0) if to_bias else None,
        )


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., C) times the transpose of (K, C), plus (K,)."""
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        LINEAR_BACKEND.onednn
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= SMALLEST
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )


def _decide() -> LinearBackend:
    requested = os.environ.get("LOUPE_LINEAR", "auto")
    if requested not in ("auto", "torch", "onednn"):
        raise ValueError(f"LOUPE_LINEAR is {requested!r}; set it to 'auto', 'torch' or 'onednn'")
    if requested == "torch":
        return LinearBackend(False, "LOUPE_LINEAR=torch asks for it")
    if not (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return LinearBackend(False, "this torch has no oneDNN")
    if requested == "onednn":
        return LinearBackend(True, "LOUPE_LINEAR=onednn asks for it")
    vendor = _processor_vendor()
    if torch.backends.mkl.is_available() and vendor == "AuthenticAMD":
        return LinearBackend(True, "MKL is slow on AMD's processors")
    return LinearBackend(False, f"processor {vendor or 'unknown'}: PyTorch's own choice")


def _processor_vendor() -> str:
    """`GenuineIntel`, `AuthenticAMD`, or what else the processor calls itself; empty: unknown."""
    description = Path("/proc/cpuinfo")
    if description.exists():
        # Line by line: the kernel takes long to write all of it on a machine of many cores.
        with description.open() as lines:
            for line in lines:
                if line.startswith("vendor_id"):
                    return line.partition(":")[2].strip()
    return platform.processor()


LINEAR_BACKEND = _decide()
