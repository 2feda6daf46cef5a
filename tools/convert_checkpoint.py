#!/usr/bin/env python
"""The door to loupe.commands.convert, for those who know Detectron2's tools."""

import sys

from loupe.checkpoint import CheckpointError
from loupe.commands.convert import main, parse_arguments

if __name__ == "__main__":
    try:
        main(parse_arguments())
    except CheckpointError as error:
        sys.exit(f"error: {error}")
