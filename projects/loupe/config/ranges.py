"""Which values of a setting make sense."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple


class Range(NamedTuple):
    """The values that a setting may have.

    Attributes:
        words: The range, to follow "it must be".
        holds: Whether a value lies in it.
    """

    words: str
    holds: Callable[[Any], bool]


def wrong_type(key: str, given: Any, default: Any) -> str:
    r"""Says that a value is of another type than its key's default, and how to write it.

    Example:
        >>> wrong_type("DATASETS.TRAIN", "train.csv", ())
        'DATASETS.TRAIN is train.csv; it must be a list: write "(\'train.csv\',)"'
    """
    value = given
    if isinstance(given, str):
        with suppress(ValueError, SyntaxError):
            value = ast.literal_eval(given)
    if isinstance(default, bool):
        must = "True or False"
    elif isinstance(default, int):
        must = "a whole number, such as 2"
    elif isinstance(default, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        must = f"a number with a point, such as {float(value) if whole else 0.5}"
    elif isinstance(default, str):
        must = f"text: write \"'{value}'\""
    elif isinstance(default, list | tuple):
        # A bracket that does not close: what was meant is not known.
        broken = isinstance(value, str) and value[:1] in ("(", "[")
        must = "a list" + (", such as \"('a', 'b')\"" if broken else f': write "{(value,)!r}"')
    else:
        must = f"a group of settings; give one of them, such as {key}.{next(iter(default), '')}"
    return f"{key} is {given}; it must be {must}"


def _is_number(value: Any) -> bool:
    # NaN and infinity lie in no range: nothing can be computed with them.
    return isinstance(value, int | float) and math.isfinite(value)


def above(low: float) -> Range:
    """Numbers larger than `low`."""
    return Range(f"above {low}", lambda value: _is_number(value) and value > low)


def at_least(low: float) -> Range:
    """Numbers from `low` on."""
    return Range(f"at least {low}", lambda value: _is_number(value) and value >= low)


def between(low: float, high: float) -> Range:
    """Numbers from `low` to `high`, both included."""
    return Range(f"from {low} to {high}", lambda value: _is_number(value) and low <= value <= high)


def one_of(*choices: str) -> Range:
    """One of some words."""
    return Range(f"one of {', '.join(map(repr, choices))}", lambda value: value in choices)


def some_of(*choices: str) -> Range:
    """A list of some of these words, perhaps empty."""
    return Range(
        f"a list of some of {', '.join(map(repr, choices))}",
        lambda value: not isinstance(value, str) and all(item in choices for item in value),
    )


def none_or(other: Range) -> Range:
    """None, or what lies in another range."""
    return Range(f"None or {other.words}", lambda value: value is None or other.holds(value))


def each_of_three(other: Range) -> Range:
    """A list of three values, each in another range."""
    return Range(
        f"three values, each {other.words}",
        lambda value: len(value) == 3 and all(map(other.holds, value)),
    )


def list_of(other: Range) -> Range:
    """A list, perhaps empty, of values that each lie in another range."""
    return Range(
        f"a list of values, each {other.words}",
        lambda value: not isinstance(value, str) and all(map(other.holds, value)),
    )


def multiple_of(unit: int) -> Range:
    """Positive multiples of a whole number."""
    return Range(f"a positive multiple of {unit}", lambda value: value > 0 and value % unit == 0)


ANYTHING = Range("anything", lambda value: True)
FRACTION = between(0, 1)
# Of a moving average: at 1 it would never move.
DECAY = Range("at least 0 and below 1", lambda value: _is_number(value) and 0 <= value < 1)
NUMBER = Range("a finite number", _is_number)
