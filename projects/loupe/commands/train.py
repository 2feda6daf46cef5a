"""Trains or evaluates a Loupe.

    tools/train_net.py --config-file configs/loupe_stage1.yaml OUTPUT_DIR output/stage1
    tools/train_net.py --config-file configs/loupe_stage2.yaml MODEL.WEIGHTS FILE
    tools/train_net.py --config-file configs/loupe_stage2.yaml --resume
    tools/train_net.py --config-file configs/loupe_stage2.yaml --eval-only MODEL.WEIGHTS FILE
    torchrun --nproc-per-node 2 tools/train_net.py --config-file FILE

`--num-gpus N` starts N processes on this machine, on the CPU where there is no GPU.
"""

from __future__ import annotations

import argparse
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from loupe.config import load_config
from loupe.trainer import LoupeTrainer, setup_run


def setup(arguments: argparse.Namespace) -> CfgNode:
    """Reads the config, sets up logging and seeds, and writes the config to OUTPUT_DIR."""
    cfg = load_config(arguments.config_file, arguments.opts)
    setup_run(cfg, arguments)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="loupe")
    return cfg


def main(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Runs in each process; returns the metrics on the main one."""
    cfg = setup(arguments)
    if arguments.eval_only:
        return LoupeTrainer.evaluate_weights(cfg)
    trainer = LoupeTrainer(cfg)
    trainer.resume_or_load(resume=arguments.resume)
    return trainer.train()


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = default_argument_parser(epilog=__doc__)
    return parser.parse_args(words)
