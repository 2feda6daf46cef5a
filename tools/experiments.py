#!/usr/bin/env python3
"""Runs the paper's experiments and writes their tables: Markdown, CSV and JSON.

    tools/experiments.py table2 table3 --seeds 3 --output output/experiments
    tools/experiments.py condition queries patches targets
    tools/experiments.py loo --setting safe "ADAPTATION.MODE offline ADAPTATION.BASE_LR 1e-4"

A run that is finished is not repeated, one that was interrupted goes on from its last checkpoint
(at quick size there is none: it starts over), one that fails does not end the rest. All runs are
judged on the same test set, by their last weights. docs/experiments.md says what the rows are and
what the intervals mean.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # The package `experiments` stands beside this folder; it is no part of the installed Loupe.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from experiments.command import main

    main(None, __doc__)
