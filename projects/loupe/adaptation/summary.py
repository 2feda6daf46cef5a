"""What an adaptation did, in a few numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from loupe.writing import plain, write_json


@dataclass
class AdaptationSummary:
    """Counts and sums; `as_json` gives means.

    Attributes:
        mode: "offline", "online" or "episodic".
        images: Readable images.
        steps: Optimiser steps that were taken.
        skipped_not_finite: Steps not taken because loss or gradient was not finite.
        left_out: Images that no step could learn from, because it failed on them.
        first_loss: Of the first step; NaN without one.
        last_loss: Of the last step.
        before: Sum over the images of the disagreement of mask and patch map before a step on them.
        measured_before: Number of images in that sum.
        after: The same when the images were predicted.
        measured_after: Number of images in that sum.
    """

    mode: str = ""
    images: int = 0
    steps: int = 0
    skipped_not_finite: int = 0
    left_out: int = 0
    first_loss: float = math.nan
    last_loss: float = math.nan
    before: float = 0.0
    measured_before: int = 0
    after: float = 0.0
    measured_after: int = 0

    def note_before(self, disagreements: list[float]) -> None:
        """Adds images that a step is about to learn from."""
        self.before += sum(disagreements)
        self.measured_before += len(disagreements)

    def note_after(self, disagreements: list[float]) -> None:
        """Adds images that were predicted."""
        self.after += sum(disagreements)
        self.measured_after += len(disagreements)

    def note_step(self, loss: float) -> None:
        """Adds a step that was taken."""
        self.steps += 1
        if math.isnan(self.first_loss):
            self.first_loss = loss
        self.last_loss = loss

    def add_up_processes(self) -> None:
        """Adds the other processes' images; steps and losses are those of all already."""
        names = ("images", "left_out", "before", "measured_before", "after", "measured_after")
        parts = comm.all_gather([getattr(self, name) for name in names])
        for name, values in zip(names, zip(*parts, strict=True), strict=True):
            setattr(self, name, sum(values))

    def as_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`; null for what is not defined."""
        return plain(
            {
                "mode": self.mode,
                "images": self.images,
                "steps": self.steps,
                "skipped_not_finite": self.skipped_not_finite,
                "left_out": self.left_out,
                "first_loss": self.first_loss,
                "last_loss": self.last_loss,
                "disagreement_before": _mean(self.before, self.measured_before),
                "disagreement_after": _mean(self.after, self.measured_after),
            }
        )

    def __str__(self) -> str:
        """One line for the log."""
        return ", ".join(
            f"{name.replace('_', ' ')} {round(value, 4) if isinstance(value, float) else value}"
            for name, value in self.as_json().items()
        )

    def write(self, path: str | Path) -> None:
        """Writes `as_json` to a file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.as_json())


def _mean(total: float, number: int) -> float | None:
    return total / number if number else None
