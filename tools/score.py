#!/usr/bin/env python
"""The door to `loupe score`, for those who know Detectron2's tools."""

import sys

from loupe.commands.score import main

if __name__ == "__main__":
    sys.exit(main())
