"""Logs and seeds of a run."""

from __future__ import annotations

from argparse import Namespace

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger


def setup_run(cfg: CfgNode, arguments: Namespace) -> None:
    """Sets up logging and seeds, and writes the config to OUTPUT_DIR.

    Detectron2 shows its own log alone; ours (metrics with intervals, skipped images) joins it here.

    Args:
        cfg: The frozen config.
        arguments: `config_file` and `eval_only` are read.
    """
    default_setup(cfg, arguments)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="loupe")
