"""Checkpoints of a run: written in full, read without running pickled code, loaded strictly."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from loupe.checkpoint import load_into, save_weights


class LoupeCheckpointer(Checkpointer):
    """Writes one file per checkpoint, from the main process.

    It replaces Detectron2's `DetectionCheckpointer`, which unpickles whatever it is given and
    skips weights that do not fit. All weights are kept, the frozen ones too.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", **checkpointables: Any) -> None:
        super().__init__(model, save_dir, save_to_disk=comm.is_main_process(), **checkpointables)

    def save_weights(self, name: str) -> None:
        """Writes the model's weights alone to `name`.pth; no run resumes from that file."""
        if self.save_to_disk and self.save_dir:
            path = Path(self.save_dir) / f"{name}.pth"
            self.logger.info("Saving weights to %s", path)
            save_weights(self.model.state_dict(), path)

    def resume(self) -> None:
        """Loads the last checkpoint of the run, with all its state.

        Raises:
            ValueError: the file holds weights alone.
        """
        path = self.get_checkpoint_file()
        rest = self.load(path)
        if missing := sorted(self.checkpointables.keys() - self._loaded):
            raise ValueError(
                f"cannot resume from {path}: it has no state of {missing}. Start a new run with "
                "MODEL.WEIGHTS set to this file."
            )
        self.logger.info("Resuming after iteration %s", rest.get("iteration"))

    def _load_file(self, f: str) -> dict[str, Any]:
        try:
            checkpoint = torch.load(f, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
            raise ValueError(
                f"{f} is not a checkpoint of a Loupe run, or is damaged: {error}"
            ) from error
        self._source = f
        self._loaded = set(checkpoint)
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        load_into(self.model, checkpoint.pop("model"), source=self._source)


class BestWeights:
    """Keeps the weights that evaluated best so far in `model_best.pth`.

    The score to beat stands beside them in `model_best.json`, so that a resumed run knows it.

    Args:
        checkpointer: writes the weights.
        metric: name such as "image/AUC"; higher is better.
    """

    def __init__(self, checkpointer: LoupeCheckpointer, metric: str) -> None:
        self.checkpointer = checkpointer
        self.metric = metric
        self.record = Path(checkpointer.save_dir) / "model_best.json"
        self.best = -math.inf

    def resume(self) -> None:
        """Reads the score to beat that an earlier part of the run has left."""
        if self.record.is_file():
            record = json.loads(self.record.read_text())
            if record["metric"] == self.metric:
                self.best = record["value"]

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
        self.best = value
        self.checkpointer.save_weights("model_best")
        record = {"metric": self.metric, "value": value, "steps": steps}
        self.record.write_text(json.dumps(record) + "\n")
        return True
