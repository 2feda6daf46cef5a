"""Says what is installed: versions, which operator runs and why, devices and threads.

    loupe info
    loupe info --json

A report of a fault should hold what it prints.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from functools import partial
from importlib import metadata

from loupe.commands.command_line import run_command

PACKAGES = ("loupe", "torch", "torchvision", "detectron2", "timm", "numpy", "opencv", "pillow")


def version_of(package: str) -> str:
    """Version of a package; "not installed" where there is none."""
    if package == "opencv":  # It comes under several names.
        import cv2

        return cv2.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints what there is."""
    import torch

    from loupe.model_zoo import FOLDER
    from loupe.ops.backends import describe

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {name: version_of(name) for name in PACKAGES} | {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "threads": torch.get_num_threads(),
        "CUDA devices": ", ".join(devices) or "none",
        "weights": str(FOLDER),
        "operator": describe(),
    }
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return 0
    for name, value in facts.items():
        print(f"{name:<14}{value}" if name != "operator" else f"\n{value}")
    return 0


main = partial(run_command, "info", __doc__, add_arguments, run)
