"""Runs the paper's experiments and writes their tables: Markdown, CSV and JSON.

    python -m research.experiments table2 table3 --seeds 3 --output output/experiments
    python -m research.experiments condition queries patches targets
    python -m research.experiments loo \
        --setting safe "ADAPTATION.MODE offline ADAPTATION.BASE_LR 1e-4"

A run that is finished is not repeated, one that was interrupted goes on from its last checkpoint
(at quick size there is none: it starts over), one that fails does not end the rest. All runs are
judged on the same test set, by their last weights. docs/experiments.md says what the rows are and
what the intervals mean.
"""

from __future__ import annotations

from research.experiments.command import main

if __name__ == "__main__":
    main(None, __doc__)
