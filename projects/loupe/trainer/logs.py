"""Logs and seeds of a run."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from loupe.writing import keep_logs_printable, write_text


def setup_run(cfg: CfgNode, arguments: Namespace) -> None:
    """Sets up logging and seeds, and writes the config to OUTPUT_DIR.

    It is Detectron2's `default_setup`, but our own log (metrics with intervals, skipped images)
    joins Detectron2's, and config.yaml is written whole.

    Args:
        cfg: The frozen config.
        arguments: for the log; `eval_only` is read.
    """
    keep_logs_printable()
    rank = comm.get_rank()
    for name in ("fvcore", "detectron2", "loupe"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    logger = logging.getLogger(__name__)
    logger.info("Process %d of %d\n%s", rank, comm.get_world_size(), collect_env_info())
    logger.info("Command line arguments: %s", arguments)
    logger.info("Configuration:\n%s", cfg.dump())
    if comm.is_main_process():
        write_text(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump())
    # Each process has a seed of its own, as in Detectron2.
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    # Looking for the fastest algorithm is worth its time in training alone.
    if not arguments.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
