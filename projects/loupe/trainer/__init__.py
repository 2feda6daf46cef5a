"""Training: the step, its data order, checkpoints, evaluation and processes."""

from loupe.trainer.logs import setup_run
from loupe.trainer.processes import launch
from loupe.trainer.trainer import LoupeTrainer

__all__ = ["LoupeTrainer", "launch", "setup_run"]
