#!/usr/bin/env python
"""The door to loupe.commands.publish, for those who know Detectron2's tools."""

import sys

from loupe.checkpoint import CheckpointError
from loupe.commands.publish import main

if __name__ == "__main__":
    try:
        main()
    except CheckpointError as error:
        sys.exit(f"error: {error}")
