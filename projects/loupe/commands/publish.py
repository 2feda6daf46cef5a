"""Writes a checkpoint in half precision to `weights/` and its SHA-256 to `weights/SHA256SUMS`.

    loupe publish output/loupe_tiny/stage2/model_best.pth loupe_tiny_views.safetensors

`--verdict FILE.json` stores a rule for verdicts (`research.detector.calibrate`) with the weights.
`loupe://loupe_tiny_views.safetensors` then means that file, and is refused if it changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from loupe.commands.command_line import UsageError, run_command
from loupe.model_zoo import FOLDER, SUMS
from loupe.writing import write_text

_NAME = re.compile(r"\w[\w.-]*\.safetensors")
LARGEST_HALF = 65504.0


def publish(
    source: Path, name: str, folder: Path = FOLDER, metadata: Mapping[str, str] | None = None
) -> str:
    """Writes the file and its line; returns the hash.

    Args:
        source: Checkpoint of training.
        name: Of the file to write.
        folder: Where.
        metadata: Words that the file carries beside its tensors.

    Raises:
        UsageError: It is no name of a file in the folder.
        CheckpointError: The source is unreadable, or a weight does not fit half precision.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a file in {folder.name}/; give a name of letters, digits, _, "
            "- and ., without a folder, that ends in .safetensors"
        )
    from loupe.checkpoint import CheckpointError, load_weights, save_weights

    weights = load_weights(source)
    too_large = [key for key, value in weights.items() if value.abs().max() > LARGEST_HALF]
    if too_large:
        raise CheckpointError(f"{source}: not in half precision: {', '.join(too_large)}")
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    save_weights(half, folder / name, metadata)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    sums = folder / SUMS
    lines = sums.read_text().splitlines() if sums.exists() else []
    lines = [line for line in lines if line.split()[1:] != [name]] + [f"{digest}  {name}"]
    write_text(sums, "\n".join(sorted(lines, key=lambda line: line.split()[1])) + "\n")
    return digest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("source", type=Path, help="checkpoint of training")
    parser.add_argument("name", help="file name in weights/, ending in .safetensors")
    parser.add_argument("--verdict", type=Path, help="JSON file with a rule for verdicts")


def run(arguments: argparse.Namespace) -> int:
    """Publishes one file."""
    from loupe.inference.verdict import VerdictRule

    metadata = None
    if arguments.verdict:
        try:
            values = json.loads(arguments.verdict.read_text(encoding="utf-8"))
            metadata = VerdictRule.of(values).as_metadata()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UsageError(
                f"--verdict {arguments.verdict}: is no rule for verdicts ({error}); give a file of "
                "research.detector.calibrate"
            ) from error
    digest = publish(arguments.source, arguments.name, metadata=metadata)
    size = (FOLDER / arguments.name).stat().st_size / 1e6
    print(f"{FOLDER / arguments.name}: {size:.1f} MB, SHA-256 {digest}")
    return 0


main = partial(run_command, "publish", __doc__, add_arguments, run)
