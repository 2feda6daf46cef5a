#!/usr/bin/env python3
"""The door to loupe.install_detectron2, which runs before anything else is installed."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "projects" / "loupe" / "install_detectron2.py"

if __name__ == "__main__":
    runpy.run_path(str(SCRIPT), run_name="__main__")
