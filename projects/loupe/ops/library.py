"""Registration of the operator with PyTorch: schemas, shapes of results, gradients, autocast.

The kernels themselves are in `csrc` and registered when their libraries load. Levels travel as a
flat list of Python integers [h, w, h, w, ...], so that no call waits for a device.

Letters: B images, S pixels of all levels, Q queries, M heads, D channels of one head, L levels,
P points per level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SCHEMAS = {
    "ms_deform_attn": "(Tensor value, int[] shapes, Tensor locations, Tensor weights) -> Tensor",
    "ms_deform_attn_fused": (
        "(Tensor value, int[] shapes, Tensor reference, Tensor offsets, Tensor logits) -> Tensor"
    ),
    "ms_deform_attn_backward": (
        "(Tensor grad_output, Tensor value, int[] shapes, Tensor locations, Tensor weights, "
        "bool deterministic) -> (Tensor, Tensor, Tensor)"
    ),
    "ms_deform_attn_fused_backward": (
        "(Tensor grad_output, Tensor value, int[] shapes, Tensor reference, Tensor offsets, "
        "Tensor logits, bool deterministic) -> (Tensor, Tensor, Tensor)"
    ),
}


def compute_type(value: Tensor) -> torch.dtype:
    """The type of positions, weights and sums: a position rounded to bfloat16 is pixels off."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _output_shape(value: Tensor, shapes: list[int], points: Tensor, *rest: Tensor) -> Tensor:
    return value.new_empty(points.shape[0], points.shape[1], value.shape[2] * value.shape[3])


def _gradient_shapes(
    grad_output: Tensor, value: Tensor, shapes: list[int], *points_and_flag: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *_, positions, weights, _deterministic = points_and_flag
    return (
        value.new_empty(value.shape),
        positions.new_empty(positions.shape),
        weights.new_empty(weights.shape),
    )


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, shapes, *points = inputs
    ctx.shapes = shapes
    ctx.save_for_backward(value, *points)


def _gradient(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.loupe.ms_deform_attn_backward(
        grad_output,
        value,
        ctx.shapes,
        locations,
        weights,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_value, None, grad_locations, grad_weights


def _fused_gradient(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, reference, offsets, logits = ctx.saved_tensors
    grad_value, grad_offsets, grad_logits = torch.ops.loupe.ms_deform_attn_fused_backward(
        grad_output,
        value,
        ctx.shapes,
        reference,
        offsets,
        logits,
        torch.are_deterministic_algorithms_enabled(),
    )
    grad_reference = None
    if ctx.needs_input_grad[2]:
        # Sizes stay Python numbers: a tensor of them would make the GPU wait for the copy.
        sides = zip(ctx.shapes[1::2], ctx.shapes[::2], strict=True)  # w, h of each level
        levels = zip(grad_offsets.sum((2, 4)).unbind(2), sides, strict=True)
        scaled = [torch.stack([g[..., 0] * w, g[..., 1] * h], -1) for g, (w, h) in levels]
        grad_reference = torch.stack(scaled, 2)
    return grad_value, None, grad_reference, grad_offsets, grad_logits


def _no_second_gradient(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        "the compiled deformable attention has no second derivative; set LOUPE_OPS=pytorch, whose "
        "plain PyTorch operations have one"
    )


def _autocast_kernel(name: str, device_type: str) -> Callable[..., Tensor]:
    """Keeps the value's type, and positions and weights in float32, whatever autocast is set to."""

    def kernel(value: Tensor, shapes: list[int], *points: Tensor) -> Tensor:
        with torch.autocast(device_type, enabled=False):
            points = tuple(point.to(compute_type(value)) for point in points)
            return getattr(torch.ops.loupe, name)(value, shapes, *points)

    return kernel


def _register() -> torch.library.Library:
    library = torch.library.Library("loupe", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    for name, gradient in {
        "ms_deform_attn": _gradient,
        "ms_deform_attn_fused": _fused_gradient,
    }.items():
        torch.library.register_fake(f"loupe::{name}", _output_shape, lib=library)
        torch.library.register_autograd(
            f"loupe::{name}", gradient, setup_context=_save_inputs, lib=library
        )
        for device_type, key in {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}.items():
            library.impl(name, _autocast_kernel(name, device_type), key)
        backward = f"loupe::{name}_backward"
        torch.library.register_fake(backward, _gradient_shapes, lib=library)
        torch.library.register_autograd(backward, _no_second_gradient, lib=library)
    return library


# Held for the life of the process: a registration ends when its Library is freed.
LIBRARY = _register()
