#!/usr/bin/env python
"""The door to loupe.commands.demo, for those who know Detectron2's tools."""

from loupe.commands.demo import main, parse_arguments

if __name__ == "__main__":
    main(parse_arguments())
