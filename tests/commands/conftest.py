"""Fixtures of the commands: those of the trainer, too."""

from tests.trainer.conftest import folder

__all__ = ["folder"]
