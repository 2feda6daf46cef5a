"""Trains a model, or evaluates one with --eval-only.

    loupe train --config-file configs/loupe_stage1.yaml OUTPUT_DIR output/stage1
    loupe train --config-file configs/loupe_stage2.yaml MODEL.WEIGHTS FILE
    loupe train --config-file configs/loupe_stage2.yaml --resume
    loupe train --config-file configs/loupe_stage2.yaml --eval-only MODEL.WEIGHTS FILE
    torchrun --nproc-per-node 2 tools/train_net.py --config-file FILE

The options are those of Detectron2's tools. `--num-gpus N` starts N processes on this machine, on
the CPU where there is no GPU.
"""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from functools import partial
from typing import Any

from loupe.commands.command_line import add_options, read_config, run_command
from loupe.writing import locked_folder

# As Detectron2: a port of each user's own, so that a run left behind is noticed.
PORT = 2**15 + 2**14 + hash(getattr(os, "getuid", lambda: 1)()) % 2**14


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `default_argument_parser`, whose module takes seconds to import."""
    parser.add_argument("--config-file", default="", metavar="FILE", help="configuration")
    parser.add_argument("--resume", action="store_true", help="go on where OUTPUT_DIR stopped")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    add_process_options(parser)
    add_options(parser)


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `loupe.trainer.launch` reads."""
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of each machine")
    parser.add_argument("--num-machines", type=int, default=1, help="machines (default: 1)")
    parser.add_argument("--machine-rank", type=int, default=0, help="of this machine, from 0 on")
    parser.add_argument("--dist-url", default=f"tcp://127.0.0.1:{PORT}", help="where they meet")


def work(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Trains or evaluates, in each process; returns the metrics on the main one."""
    from loupe.trainer import LoupeTrainer, setup_run

    cfg = read_config(arguments)
    setup_run(cfg, arguments)
    if arguments.eval_only:
        return LoupeTrainer.evaluate_weights(cfg)
    trainer = LoupeTrainer(cfg)
    trainer.resume_or_load(resume=arguments.resume)
    return trainer.train()


def start(arguments: argparse.Namespace) -> None:
    """Runs as many processes as asked for."""
    from loupe.trainer import launch

    launch(work, arguments)


def is_first(arguments: argparse.Namespace) -> bool:
    """Whether this process is the first of its run: it alone locks the run's folder.

    torchrun starts a command in each process of a run, and each of several machines starts one.
    """
    return os.environ.get("RANK", "0") == "0" and arguments.machine_rank == 0


def run(arguments: argparse.Namespace) -> int:
    """Checks the configuration, keeps other runs out of the folder, and runs."""
    cfg = read_config(arguments)  # A mistake in it is told once, before any process starts.
    with locked_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR") if is_first(arguments) else nullcontext():
        start(arguments)
    return 0


main = partial(run_command, "train", __doc__, add_arguments, run)
