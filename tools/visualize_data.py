#!/usr/bin/env python
"""The door to loupe.commands.visualize, for those who know Detectron2's tools."""

from loupe.commands.visualize import main

if __name__ == "__main__":
    main()
