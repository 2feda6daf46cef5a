"""A table of weights, and the error of one that does not fit."""

from __future__ import annotations

from torch import Tensor

Weights = dict[str, Tensor]


class CheckpointError(ValueError):
    """A file that does not fit; the message names every key at fault."""
