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
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loupe.commands.command_line import (
    add_options,
    positive,
    read_config,
    run_command,
    whole,
)
from loupe.writing import locked_folder

if TYPE_CHECKING:
    from detectron2.config import CfgNode

NEEDS_TRUTH = "an evaluation needs truth; list the images with labels (docs/datasets.md)"
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
    parser.add_argument("--num-gpus", type=positive, default=1, help="processes of each machine")
    parser.add_argument("--num-machines", type=positive, default=1, help="machines (default: 1)")
    parser.add_argument("--machine-rank", type=whole(0), default=0, help="of this one, from 0 on")
    parser.add_argument(
        "--dist-url",
        type=meeting_place,
        default=f"tcp://127.0.0.1:{PORT}",
        help="where they meet: tcp://ADDRESS:PORT of the machine of rank 0, or file:///PATH",
    )


def meeting_place(text: str) -> str:
    """Type of --dist-url: what is no address is told before processes wait for each other."""
    try:
        url = urlsplit(text)
        usable = {
            "tcp": bool(url.hostname and url.port),
            "file": bool(url.path) and Path(url.path).parent.is_dir(),
            "env": True,
        }.get(url.scheme, False)
    except ValueError:  # A port that is no number.
        usable = False
    if not usable:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither tcp://ADDRESS:PORT nor file:///PATH of a file in a folder"
        )
    return text


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
    """Runs as many processes as asked for.

    Raises:
        ValueError: This machine is none of those that are asked for.
    """
    from loupe.trainer import launch

    if arguments.machine_rank >= arguments.num_machines:
        raise ValueError(
            f"--machine-rank {arguments.machine_rank}: of {arguments.num_machines} machines "
            f"(--num-machines) the ranks are 0 to {arguments.num_machines - 1}"
        )
    launch(work, arguments)


def is_first(arguments: argparse.Namespace) -> bool:
    """Whether this process is the first of its run: it alone locks the run's folder.

    torchrun starts a command in each process of a run, and each of several machines starts one.
    """
    return os.environ.get("RANK", "0") == "0" and arguments.machine_rank == 0


def read_lists(cfg: CfgNode, names: Sequence[str], *, with_labels: bool = False) -> None:
    """Reads the lists of data sets before a model is built and its log begins.

    So a fault in a list is told at once, and in one line. Lists of texts are left to the run.

    Raises:
        ValueError: A list cannot be used, or has no label where some are needed.
    """
    from loupe.data.sources.catalog import load_index
    from loupe.data.sources.index import UNLABELLED, labels_of

    if cfg.MODEL.META_ARCHITECTURE == "Explainer":
        return
    for name in names:
        entries = load_index(name)
        if with_labels and (labels_of(entries) == UNLABELLED).all():
            raise ValueError(f"{name}: no image has a label; {NEEDS_TRUTH}")


def run(arguments: argparse.Namespace) -> int:
    """Checks the configuration, keeps other runs out of the folder, and runs."""
    cfg = read_config(arguments)  # A mistake in it is told once, before any process starts.
    if not is_first(arguments):
        start(arguments)
        return 0
    with locked_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR"):
        training = () if arguments.eval_only else cfg.DATASETS.TRAIN
        read_lists(cfg, [*training, *cfg.DATASETS.TEST])
        start(arguments)
    return 0


main = partial(run_command, "train", __doc__, add_arguments, run)
