"""What the command line says about size and data, and the jobs that follow from it."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import NamedTuple

from research.experiments.ablations import CONFIGS, ROOT, Row, carried_options
from research.experiments.runs import Job

SIZES = ("quick", "full")
QUICK_TRAIN = "synthetic://train?size=128&count=100000&difficulty=60"
QUICK_TEST = "synthetic://test?size=128&count=400&difficulty=60"


class Scale(NamedTuple):
    """Size and data of all runs of one command.

    Attributes:
        size: "quick" = configs/ablations as they are; "full" = their MODEL and INPUT keys on
            configs/loupe_stage1.yaml and loupe_stage2.yaml.
        train: data set to train on; "" = the configuration's.
        test: data set to test on, the same for all rows.
        limit: at most so many test images; 0 = all.
        stage1: further `KEY VALUE` pairs of stage 1.
        stage2: of stage 2.
    """

    size: str
    train: str
    test: str
    limit: int
    stage1: tuple[str, ...]
    stage2: tuple[str, ...]


def add_scale_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `scale_of` reads."""
    parser.add_argument("--size", choices=SIZES, default="quick", help="default: %(default)s")
    parser.add_argument("--train", help=f"data set; quick: {QUICK_TRAIN}; full: ddl_train")
    parser.add_argument("--test", help=f"data set; quick: {QUICK_TEST}; full: ddl_valid")
    parser.add_argument("--limit", type=int, default=0, help="at most so many test images")
    parser.add_argument("--stage1-steps", type=int, help="optimiser steps (SOLVER.MAX_ITER)")
    parser.add_argument("--stage2-steps", type=int, help="optimiser steps (SOLVER.MAX_ITER)")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of each run")
    parser.add_argument(
        "--opts", default="", metavar="'KEY VALUE ...'", help="changes to all configurations"
    )


def scale_of(arguments: argparse.Namespace) -> Scale:
    """Settles the size from the command line."""
    quick = arguments.size == "quick"
    shared = ["DATALOADER.NUM_WORKERS", str(arguments.workers), *shlex.split(arguments.opts)]
    # No test set in training: every row is judged once, by its last weights, so no row may choose.
    shared += ["DATASETS.TEST", "()", "TEST.EVAL_PERIOD", "0", "TEST.BEST_METRIC", ""]

    def stage(steps: int | None) -> tuple[str, ...]:
        length = ["SOLVER.MAX_ITER", str(steps), "SOLVER.EPOCHS", "0.0"] if steps else []
        return (*shared, *length)

    return Scale(
        size=arguments.size,
        train=arguments.train or (QUICK_TRAIN if quick else ""),
        test=arguments.test or (QUICK_TEST if quick else "ddl_valid"),
        limit=arguments.limit,
        stage1=stage(arguments.stage1_steps),
        stage2=stage(arguments.stage2_steps),
    )


def job_of(row: Row, seed: int, scale: Scale, suffix: str = "") -> Job:
    """The run of a row at a scale, and the stage 1 it starts from.

    Args:
        row: of a table.
        seed: of this run and of its stage 1.
        scale: size and data; `scale.train` counts for both stages.
        suffix: of the run's name, where data make a difference that the row does not tell.
    """
    first = None
    if row.first:
        first = job_of(Row(row.first, "", row.first, ""), seed, scale, suffix)
    stage = 2 if row.first else 1
    config, options = CONFIGS / f"{row.config}.yaml", []
    if scale.size == "full":
        options = carried_options(row.config)
        config = ROOT / "configs" / f"loupe_stage{stage}.yaml"
    if scale.train:
        options += ["DATASETS.TRAIN", f"('{scale.train}',)"]
    options += scale.stage2 if row.first else scale.stage1
    return Job(row.name + suffix, seed, Path(config), tuple(options), first)
