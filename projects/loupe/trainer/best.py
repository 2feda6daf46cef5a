"""The weights that evaluated best."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from detectron2.utils import comm

from loupe.checkpoint import CheckpointError, load_weights
from loupe.trainer.checkpointing import LoupeCheckpointer
from loupe.writing import write_json

logger = logging.getLogger(__name__)


class BestWeights:
    """Keeps the weights that evaluated best so far in `model_best.pth`.

    `model_best.json` beside them says how good they are. A resumed run knows the score to beat from
    its checkpoint, and evaluates again what was evaluated since.

    Args:
        checkpointer: writes the weights.
        metric: name such as "image/AUC"; higher is better.
    """

    def __init__(self, checkpointer: LoupeCheckpointer, metric: str) -> None:
        self.checkpointer = checkpointer
        self.metric = metric
        self.weights = checkpointer.folder / "model_best.pth"
        self.record = checkpointer.folder / "model_best.json"
        self.best = -math.inf
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the record of the best weights so far."""
        return {"metric": self.metric, "value": self.best, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the score to beat, unless it is of another metric or its weights are gone."""
        if state["metric"] != self.metric or state["value"] == -math.inf:
            return
        try:
            load_weights(self.weights)
        except CheckpointError as error:
            logger.warning("The best weights are lost, the next evaluation is the best: %s", error)
            return
        self.best, self.steps = state["value"], state["steps"]
        # The file may be damaged, or know of an evaluation that will be done again.
        if comm.is_main_process():
            self._write_record()

    def _write_record(self) -> None:
        write_json(self.record, self.state_dict(), indent=None)

    def consider(self, results: Mapping[str, float], steps: int) -> bool:
        """Saves the model's present weights if their score is the highest; says whether it is.

        Args:
            results: flat metrics of the present weights.
            steps: number of optimiser steps that led to them.

        Raises:
            ValueError: the evaluation has no metric of that name.
        """
        if self.metric not in results:
            raise ValueError(
                f"TEST.BEST_METRIC is {self.metric!r}, but the evaluation gives {sorted(results)}. "
                'Choose one of these, or "" to keep no best checkpoint.'
            )
        value = float(results[self.metric])
        # An undefined metric, such as the AUC of images of one class, is never the best.
        if not value > self.best:
            return False
        self.best, self.steps = value, steps
        self.checkpointer.save_weights("model_best")
        self._write_record()
        return True
