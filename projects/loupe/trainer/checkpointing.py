"""Checkpoints of a run: written whole, read without running code, checked, loaded strictly."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from torch import nn

from loupe.checkpoint import CheckpointError, load_into, read_torch, save_weights, write_torch
from loupe.trainer.signals import Stopped, StopRequest
from loupe.writing import write_text

# A checkpoint of the full model with its optimiser is gigabytes; the last one may be damaged by
# the very failure that it should help with.
KEPT_CHECKPOINTS = 2
LAST = "last_checkpoint"
FINAL = "model_final.pth"
_NUMBERED = re.compile(r"model_(\d{7,})\.pth")

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """What a checkpoint holds besides the weights."""

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors, numbers and text, in containers."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes them over."""


class LoupeCheckpointer:
    """The checkpoints of one run, in its folder; only the main process writes.

    All weights are kept, the frozen ones too. The last two periodic checkpoints stay; one that a
    signal has caused goes when a later one is there.

    Args:
        model: whose weights are saved.
        folder: of the run.
        trainer: everything else that a resumed run needs.
        period: steps from one periodic checkpoint to the next.

    Attributes:
        saved: iteration of the newest checkpoint; None = there is none.
    """

    def __init__(
        self, model: nn.Module, folder: str | Path, trainer: Stateful, *, period: int
    ) -> None:
        self.model = model
        self.folder = Path(folder)
        self.trainer = trainer
        self.period = period
        self.saved: int | None = None
        self._own: set[int] = set()

    def save(self, iteration: int, *, final: bool = False) -> None:
        """Writes the state after an iteration, then deletes the checkpoints that it replaces."""
        name = FINAL if final else f"model_{iteration:07d}.pth"
        logger.info("Saving checkpoint to %s", self.folder / name)
        content = {
            "model": self.model.state_dict(),
            "trainer": self.trainer.state_dict(),
            "iteration": iteration,
        }
        write_torch(content, self.folder / name)
        write_text(self.folder / LAST, name)
        self.saved = iteration
        if not final:
            self._own.add(iteration)
        self._delete_replaced()

    def _delete_replaced(self) -> None:
        """Deletes checkpoints of this run alone: the folder may hold those of another."""
        periodic = [number for number in sorted(self._own) if (number + 1) % self.period == 0]
        keep = {self.saved, *periodic[-KEPT_CHECKPOINTS:]}
        for number in self._own - keep:
            (self.folder / f"model_{number:07d}.pth").unlink(missing_ok=True)
        self._own &= keep

    def _numbered(self) -> dict[int, Path]:
        """The periodic checkpoints by iteration."""
        matches = ((_NUMBERED.fullmatch(path.name), path) for path in self.folder.glob("model_*"))
        return {int(match[1]): path for match, path in matches if match}

    def save_weights(self, name: str) -> None:
        """Writes the model's weights alone to `name`.pth; no run resumes from that file."""
        path = self.folder / f"{name}.pth"
        logger.info("Saving weights to %s", path)
        save_weights(self.model.state_dict(), path)

    def has_checkpoint(self) -> bool:
        """Whether there is a run to resume."""
        return (self.folder / LAST).exists() or any(self._candidates())

    def resume(self) -> None:
        """Loads the last checkpoint that is whole, with all its state.

        A damaged one is named in the log, and the one before it is loaded.

        Raises:
            CheckpointError: None is whole, or the one that is does not fit the model.
        """
        reasons, unusable = [], set()
        for path in self._candidates():
            try:
                content = read_torch(path)
                if not isinstance(content, dict) or not {"model", "trainer"} <= content.keys():
                    raise CheckpointError(f"{path}: holds weights alone, not the state of a run")
            except (CheckpointError, OSError) as error:
                logger.warning("Cannot resume from this checkpoint, trying one before: %s", error)
                reasons.append(str(error))
                unusable.add(path)
                continue
            load_into(self.model, content["model"], source=str(path))
            self.trainer.load_state_dict(content["trainer"])
            self.saved = content["iteration"]
            # Later ones are of another run, or will be written again when this one gets there.
            self._own = {
                number
                for number, path in self._numbered().items()
                if number <= self.saved or path in unusable
            }
            logger.info("Resuming from %s after iteration %d", path, self.saved)
            return
        raise CheckpointError(
            f"no checkpoint in {self.folder} can be resumed from. Start again without --resume, or "
            "with MODEL.WEIGHTS set to a file of weights.\n" + "\n".join(reasons)
        )

    def _candidates(self) -> Iterator[Path]:
        """Checkpoints to resume from: the one that was last, then the others, newest first."""
        paths = [*self._numbered().values()]
        if (self.folder / FINAL).is_file():
            paths.append(self.folder / FINAL)
        # By time, not by number: a longer run may have used the same folder before.
        paths.sort(key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
        last = self._last()
        if last is not None:
            paths.sort(key=lambda path: path.name != last)
        yield from paths

    def _last(self) -> str | None:
        """The name in `last_checkpoint`; None, and said, if there is no such checkpoint."""
        path = self.folder / LAST
        if not path.is_file():
            return None
        name = path.read_bytes().decode("utf-8", "replace").strip()
        fits = name == FINAL or _NUMBERED.fullmatch(name)
        if fits and (self.folder / name).is_file():
            return name
        logger.warning("%s names no checkpoint (%.40r); looking for the newest", path, name)
        return None


class Checkpoints(HookBase):
    """Saves periodically, at the end, and when a signal asks the run to stop.

    It comes before the evaluation, so that a failure there costs no training. A resumed run does
    the rest of its checkpoint's iteration again: evaluation, best weights and rows.

    Args:
        checkpointer: of the run.
        stop: says whether a signal has come.
    """

    def __init__(self, checkpointer: LoupeCheckpointer, stop: StopRequest) -> None:
        self.checkpointer = checkpointer
        self.stop = stop

    def after_step(self) -> None:
        """Saves if this iteration is due.

        Raises:
            Stopped: A signal has come; the checkpoint is written.
        """
        iteration = self.trainer.iter
        number = self.stop.agreed()
        last = iteration == self.trainer.max_iter - 1
        due = (iteration + 1) % self.checkpointer.period == 0
        if comm.is_main_process():
            if due or (number is not None and not last):
                self.checkpointer.save(iteration)
            if last:
                self.checkpointer.save(iteration, final=True)
        if number is not None:
            # Who leaves first may have the others killed by the launcher, while one writes.
            comm.synchronize()
            raise Stopped(number)
