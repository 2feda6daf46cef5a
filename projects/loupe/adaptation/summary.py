"""What an adaptation did, in a few numbers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class AdaptationSummary:
    """Counts and sums; `as_json` gives means.

    Attributes:
        mode: "offline", "online" or "episodic".
        images: Readable images that were met.
        images_taught: Of these, images that taught something when they were met, in a step that
            was taken and kept; further steps on them (ADAPTATION.STEPS) do not count.
        steps: Optimiser steps that were taken and kept.
        skipped_nothing_to_learn: Steps not taken because no image was sure enough.
        skipped_not_finite: Steps not taken because loss or gradient was not finite.
        rolled_back: Times that weights were taken back.
        stopped: Whether so many rollbacks ended the adaptation.
        first_loss: Of the first step; NaN without one.
        last_loss: Of the last step.
        before: Sum of the disagreements of masks with patch maps when images were met.
        measured_before: Number of images in that sum.
        after: The same when they were answered.
        measured_after: Number of images in that sum.
    """

    mode: str = ""
    images: int = 0
    images_taught: int = 0
    steps: int = 0
    skipped_nothing_to_learn: int = 0
    skipped_not_finite: int = 0
    rolled_back: int = 0
    stopped: bool = False
    first_loss: float = math.nan
    last_loss: float = math.nan
    before: float = 0.0
    measured_before: int = 0
    after: float = 0.0
    measured_after: int = 0

    def note_before(self, disagreements: list[float]) -> None:
        """Adds images that were met."""
        self.before += sum(disagreements)
        self.measured_before += len(disagreements)

    def note_after(self, disagreements: list[float]) -> None:
        """Adds images that were answered."""
        self.after += sum(disagreements)
        self.measured_after += len(disagreements)

    def note_loss(self, loss: float) -> None:
        """Remembers the loss of a step."""
        if math.isnan(self.first_loss):
            self.first_loss = loss
        self.last_loss = loss

    def as_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`; null for what there is not."""
        return {
            "mode": self.mode,
            "images": self.images,
            "images_taught": self.images_taught,
            "steps": self.steps,
            "skipped_nothing_to_learn": self.skipped_nothing_to_learn,
            "skipped_not_finite": self.skipped_not_finite,
            "rolled_back": self.rolled_back,
            "stopped": self.stopped,
            "first_loss": _finite(self.first_loss),
            "last_loss": _finite(self.last_loss),
            "disagreement_before": _mean(self.before, self.measured_before),
            "disagreement_after": _mean(self.after, self.measured_after),
        }

    def __str__(self) -> str:
        """One line for the log."""
        return ", ".join(
            f"{name.replace('_', ' ')} {round(value, 4) if isinstance(value, float) else value}"
            for name, value in self.as_json().items()
        )

    def write(self, path: str | Path) -> None:
        """Writes `as_json` to a file."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(total: float, number: int) -> float | None:
    return _finite(total / number) if number else None
