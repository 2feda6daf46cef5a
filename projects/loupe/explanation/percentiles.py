"""How unusual a measurement is: its percentile among regions of authentic photographs.

`percentiles.json` holds, for each measurement and size of region, quantiles over regions drawn in
photographs that nobody forged (`research/explanation/calibrate.py` fits it and says on what).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("percentiles.json")


@cache
def reference() -> dict[str, list[float]]:
    """Quantiles from 0 to 100 per cent, evenly spaced, by `measurement/size`."""
    return json.loads(FILE.read_text(encoding="utf-8"))["quantiles"]


def percentile_of(name: str, size: str, difference: float) -> float | None:
    """The percentage of authentic regions of this size that differ less; None = not calibrated.

    Args:
        name: Of the measurement.
        size: One of `vocabulary.SIZES`.
        difference: `Measured.difference`.
    """
    quantiles = reference().get(f"{name}/{size}")
    if not quantiles:
        return None
    # Equal values, such as a difference of 0 that most regions have, do not count as less.
    below = int(np.searchsorted(quantiles, difference, side="left"))
    return min(99.9, 100.0 * below / len(quantiles))
