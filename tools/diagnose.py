#!/usr/bin/env python
"""The door to `loupe diagnose`, for those who know Detectron2's tools."""

import sys

from loupe.commands.diagnose import main

if __name__ == "__main__":
    sys.exit(main())
