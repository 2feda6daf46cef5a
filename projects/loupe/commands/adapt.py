"""Adapts a trained Loupe to a folder of unlabelled images, and predicts them.

    tools/adapt.py IMAGES --config-file configs/loupe_adapt.yaml --weights FILE --output DIR
    tools/adapt.py IMAGES --config-file ... --weights FILE --output DIR ADAPTATION.MODE online

Writes to the output folder what tools/predict.py writes (predictions.csv, maps/, masks/,
overlays/), and besides:

    adaptation.json     what was done: steps, skipped, rolled back, disagreement before and after
    model_adapted.pth   the adapted weights, for tools/predict.py (not in episodic mode)

The checkpoint given is only read. No label is asked for or looked up. What adapts, how, and how
safely is said by the keys of ADAPTATION (docs/adaptation.md).
Exit status: 0 = all images predicted, 1 = some were not readable (the table says which and why).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from torch.utils.data import DataLoader

from loupe.adaptation import TestTimeAdaptation, adapted_predictions, safe_target
from loupe.adaptation.runs import adaptation_of
from loupe.checkpoint import save_weights
from loupe.config import load_config
from loupe.inference import (
    LoupePredictor,
    find_images,
    named_predictions,
    write_predictions,
)
from loupe.structures import Prediction
from loupe.trainer.evaluation import adaptation_schedule
from loupe.trainer.randomness import seed_everything


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", help="an image, or a folder of images")
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    parser.add_argument("--config-file", required=True, help="configuration of the adaptation")
    parser.add_argument("--weights", help="checkpoint to start from; by default MODEL.WEIGHTS")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode (default 1)")
    parser.add_argument("--no-overlays", action="store_true", help="do not draw overlays")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the configuration")
    return parser.parse_intermixed_args(words)


def predictions(
    cfg: CfgNode, adaptation: TestTimeAdaptation, loader: DataLoader
) -> Iterator[tuple[str, Prediction | str]]:
    """Adapts; yields each file and its prediction, or the reason why it has none."""
    pairs = adapted_predictions(
        adaptation,
        loader,
        mode=cfg.ADAPTATION.MODE,
        images_per_step=cfg.ADAPTATION.IMS_PER_BATCH,
        steps=cfg.ADAPTATION.STEPS,
        schedule=adaptation_schedule(cfg),
    )
    for batch, answers in pairs:
        yield from named_predictions(batch, answers)


def main(arguments: argparse.Namespace) -> int:
    """Adapts, predicts and writes; returns the exit status."""
    setup_logger(name="loupe")
    names = find_images(arguments.images)
    cfg = load_config(arguments.config_file, arguments.opts)
    if cfg.ADAPTATION.MODE == "none":
        raise ValueError(
            "ADAPTATION.MODE is none: add ADAPTATION.MODE offline (or online, episodic) to the "
            "command, or predict with tools/predict.py"
        )
    if cfg.SEED >= 0:
        seed_everything(cfg.SEED)
    base = arguments.weights or cfg.MODEL.WEIGHTS
    target = safe_target(arguments.output / "model_adapted.pth", base)
    predictor = LoupePredictor(cfg, base)
    adaptation = adaptation_of(cfg, predictor.model)
    loader = predictor.loader(list(names), arguments.workers)
    start = time.perf_counter()
    done, failed = write_predictions(
        predictions(cfg, adaptation, loader),
        names,
        arguments.output,
        overlays=not arguments.no_overlays,
    )
    seconds = time.perf_counter() - start
    adaptation.summary.write(arguments.output / "adaptation.json")
    if cfg.ADAPTATION.MODE != "episodic":
        save_weights(predictor.model.state_dict(), target)
        print(f"adapted weights: {target}")
    print(f"{done} images predicted in {seconds:.1f} s, {failed} not readable: {arguments.output}")
    print(f"adaptation: {adaptation.summary}")
    return 1 if failed else 0
