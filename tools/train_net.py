#!/usr/bin/env python
"""The door to loupe.commands.train, for those who know Detectron2's tools."""

import sys

from loupe.commands.train import main, parse_arguments
from loupe.trainer.processes import launch

if __name__ == "__main__":
    launch(main, parse_arguments())
    sys.exit(0)
