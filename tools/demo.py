#!/usr/bin/env python
"""The door to `loupe demo`, for those who know Detectron2's tools."""

import sys

from loupe.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())
