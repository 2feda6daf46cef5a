#!/usr/bin/env python
"""The door to loupe.commands.synthesize, for those who know Detectron2's tools."""

from loupe.commands.synthesize import main

if __name__ == "__main__":
    main()
