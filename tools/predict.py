#!/usr/bin/env python
"""The door to loupe.commands.predict, for those who know Detectron2's tools."""

import sys

from loupe.commands.predict import main, parse_arguments

if __name__ == "__main__":
    try:
        sys.exit(main(parse_arguments()))
    except ValueError as error:
        sys.exit(f"error: {error}")
