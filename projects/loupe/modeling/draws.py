"""Random numbers that belong to an image, whatever batch and process it meets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor


def image_generators(
    items: Sequence[dict[str, Any]], device: torch.device
) -> list[Generator | None]:
    """One generator for each item, seeded by its `seed`; None where it has no seed."""
    seeds = [item.get("seed") for item in items]
    return [None if seed is None else Generator(device).manual_seed(seed) for seed in seeds]


def draw_uniform(
    generators: Sequence[Generator | None], *shape: int, device: torch.device
) -> Tensor:
    """Draws each row with a generator of its own.

    Args:
        generators: One for each row; None = PyTorch's global one.
        shape: Of a row.
        device: The generators' and the result's.

    Returns:
        (len(generators), *shape) in [0, 1).
    """
    if not any(generators):
        return torch.rand(len(generators), *shape, device=device)
    rows = [torch.rand(shape, generator=one, device=device) for one in generators]
    return torch.stack(rows)
