"""What a run tells: rows of metrics.json, curves and pictures of TensorBoard, lines of the log.

A resumed run goes on from its checkpoint, so what was written after that is taken back and written
again: rows are cut off the file, and TensorBoard is told to forget the steps.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.engine.train_loop import HookBase
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    get_event_storage,
)
from torch.utils.tensorboard import SummaryWriter

from loupe.writing import plain

# Noisy values are shown as their median over so many steps, as in Detectron2.
WINDOW = 20
PERIOD = 20
# Detectron2 tells the remaining time from so many steps.
ETA_WINDOW = 1000
# Seconds are of one process, so they do not pass into a checkpoint.
CLOCK = ("time", "data_time", "eta_seconds")


class RunWriter(EventWriter):
    """Writes `metrics.json`, one row for each step that is written, and TensorBoard's events.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.rows = self.folder / "metrics.json"
        self.written = -1
        self._purge_step: int | None = None
        self._curves: SummaryWriter | None = None

    @property
    def curves(self) -> SummaryWriter:
        """TensorBoard's writer, made when it is first used: it makes a file at once."""
        if self._curves is None:
            self._curves = SummaryWriter(str(self.folder), purge_step=self._purge_step)
        return self._curves

    def write(self) -> None:
        """Writes the latest values that have not been written yet."""
        rows: dict[int, dict[str, Any]] = defaultdict(dict)
        for name, (value, step) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if step > self.written:
                rows[step][name] = value
                self.curves.add_scalar(name, value, step)
        if not rows:
            return
        self.written = max(rows)
        lines = [
            json.dumps(plain(row | {"iteration": step}), sort_keys=True) + "\n"
            for step, row in sorted(rows.items())
        ]
        with self.rows.open("a") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())

    def show(self, tag: str, picture: np.ndarray, step: int) -> None:
        """Gives TensorBoard a picture, (H, W, 3) uint8 RGB."""
        self.curves.add_image(tag, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Writes the rest of TensorBoard's events to the disk."""
        if self._curves is not None:
            self._curves.close()

    def state_dict(self) -> dict[str, int]:
        """Returns up to where all is written, and sees to it that it is."""
        if self._curves is not None:
            self._curves.flush()
        size = self.rows.stat().st_size if self.rows.is_file() else 0
        return {"written": self.written, "size": size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes back what was written since then."""
        self.written = state["written"]
        self._purge_step = self.written + 1
        if self.rows.is_file() and self.rows.stat().st_size > state["size"]:
            os.truncate(self.rows, state["size"])


class Writing(HookBase):
    """Writes every 20 steps, after each evaluation and at the end.

    Args:
        writer: of rows and curves.
        evaluation_period: steps from one evaluation to the next; 0 = only at the end.
        max_iter: of the run.
    """

    def __init__(self, writer: RunWriter, *, evaluation_period: int, max_iter: int) -> None:
        self.writer = writer
        self.evaluation_period = evaluation_period
        self.log = CommonMetricPrinter(max_iter)

    def after_step(self) -> None:
        """Writes if this step is due."""
        done = self.trainer.iter + 1
        # A writer keeps the latest value alone, so an evaluation is written at once.
        period = min(PERIOD, self.evaluation_period or PERIOD)
        evaluated = self.evaluation_period and done % self.evaluation_period == 0
        if done % period == 0 or evaluated or done == self.trainer.max_iter:
            self.write()

    def write(self) -> None:
        """Writes the values that are new."""
        self.log.write()
        self.writer.write()

    def after_train(self) -> None:
        """Writes what the last evaluation measured."""
        self.write()
        self.writer.close()


def forget_old_values(storage: EventStorage) -> None:
    """Keeps of each name the values that smoothing asks for.

    Detectron2 keeps the last million, a kilobyte for each step of a run with ten losses.
    """
    for name, history in storage.histories().items():
        # fvcore gives its own list, so this shortens it.
        del history.values()[: -(ETA_WINDOW if name == "time" else WINDOW)]


def storage_state(storage: EventStorage) -> dict[str, Any]:
    """The last values of each name: what smoothing and the next rows depend on."""
    hints = storage.smoothing_hints()
    return {
        name: {"smooth": hints[name], "values": [list(pair) for pair in history.values()[-WINDOW:]]}
        for name, history in storage.histories().items()
        if name not in CLOCK
    }


def restore_storage(storage: EventStorage, state: dict[str, Any]) -> None:
    """Puts the values of `storage_state` into a storage that is empty."""
    now = storage.iter
    for name, entry in state.items():
        for value, step in entry["values"]:
            storage.iter = step
            storage.put_scalar(name, value, smoothing_hint=entry["smooth"])
    storage.iter = now
