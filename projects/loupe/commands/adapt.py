"""Adapts a trained Loupe to unlabelled images, and predicts them.

    loupe adapt IMAGES --config-file configs/loupe_adapt.yaml --weights FILE --output DIR
    loupe adapt IMAGES --config-file ... --weights FILE --output DIR ADAPTATION.MODE online

Writes to the output folder what `loupe predict` writes (predictions.csv, maps/, masks/, overlays/),
and besides:

    adaptation.json     what was done: steps, skipped, disagreement before and after
    model_adapted.pth   the adapted weights, for `loupe predict` (not in episodic mode)

Results of an earlier run in that folder are replaced. The checkpoint given is only read. No label
is asked for or looked up. The keys of ADAPTATION say what adapts, and how (docs/adaptation.md).
Exit status: 0 = all images predicted, 1 = some were not readable (the table says which and why),
2 = nothing was done.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from loupe.commands.command_line import (
    add_config_options,
    add_image_options,
    read_config,
    run_command,
)

SUMMARY, WEIGHTS = "adaptation.json", "model_adapted.pth"

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch.utils.data import DataLoader

    from loupe.adaptation import TestTimeAdaptation
    from loupe.inference import FilePrediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_image_options(parser)
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--no-overlays", action="store_true", help="do not draw overlays")
    add_config_options(parser, required=True)


def predictions(
    cfg: CfgNode, adaptation: TestTimeAdaptation, loader: DataLoader
) -> Iterator[FilePrediction]:
    """Adapts; yields what came of each file."""
    from loupe.adaptation import adapted_predictions
    from loupe.inference import named_predictions
    from loupe.trainer.evaluation import adaptation_schedule

    pairs = adapted_predictions(
        adaptation,
        loader,
        mode=cfg.ADAPTATION.MODE,
        images_per_step=cfg.ADAPTATION.IMS_PER_BATCH,
        schedule=adaptation_schedule(cfg),
    )
    for batch, outputs in pairs:
        yield from named_predictions(batch, outputs)


def run(arguments: argparse.Namespace) -> int:
    """Adapts, predicts and writes."""
    cfg = read_config(arguments)
    from detectron2.utils.logger import setup_logger

    from loupe.adaptation import safe_target
    from loupe.adaptation.runs import adaptation_of
    from loupe.checkpoint import save_weights
    from loupe.inference import LoupePredictor, find_images, output_folder, write_predictions
    from loupe.inference.earlier import PREDICTED, remove_earlier, with_first
    from loupe.trainer.randomness import seed_everything

    setup_logger(name="loupe")
    if cfg.ADAPTATION.MODE == "none":
        raise ValueError(
            "ADAPTATION.MODE is none: add ADAPTATION.MODE offline (or online, episodic) to the "
            "command, or predict with loupe predict"
        )
    names = find_images(arguments.inputs)
    if cfg.SEED >= 0:
        seed_everything(cfg.SEED)
    base = arguments.weights or cfg.MODEL.WEIGHTS
    results = PREDICTED._replace(others=(*PREDICTED.others, SUMMARY, WEIGHTS))
    with output_folder(arguments.output, arguments.inputs, results=results) as folder:
        target = safe_target(folder / WEIGHTS, base)
        predictor = LoupePredictor(cfg, base)
        adaptation = adaptation_of(cfg, predictor.model)
        loader = predictor.loader(list(names), arguments.workers)
        start = time.perf_counter()
        pairs = with_first(predictions(cfg, adaptation, loader))
        remove_earlier(folder, results)
        done, failed = write_predictions(pairs, names, folder, overlays=not arguments.no_overlays)
        seconds = time.perf_counter() - start
        adaptation.summary.write(folder / SUMMARY)
        adapts_weights = cfg.ADAPTATION.MODE != "episodic"
        if adapts_weights:
            save_weights(predictor.model.state_dict(), target)
    if not arguments.quiet:
        if adapts_weights:
            print(f"adapted weights: {target}")
        print(f"{done} images predicted in {seconds:.1f} s, {failed} not readable: {folder}")
        print(f"adaptation: {adaptation.summary}")
    return 1 if failed else 0


main = partial(run_command, "adapt", __doc__, add_arguments, run)
