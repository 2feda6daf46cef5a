"""A table of weights, and the error of one that does not fit."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Weights = dict[str, Tensor]

# A wrong file has hundreds of wrong keys, and the first say which file it is.
MOST_NAMED = 3


class CheckpointError(ValueError):
    """A file that does not fit; the message counts the keys at fault and names the first."""


def first_of(keys: Sequence[str]) -> str:
    """The first keys, and how many follow.

    Example:
        >>> first_of(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    more = len(keys) - MOST_NAMED
    return ", ".join(keys[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
