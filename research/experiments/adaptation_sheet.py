#!/usr/bin/env python3
"""Shows what test-time adaptation did to a labelled data set: one picture of good and bad cases.

    python -m research.experiments.adaptation_sheet DATASET \
        --config-file configs/loupe_adapt_safe.yaml --weights FILE --output sheet.jpg

DATASET: a name, folder or list with labels and masks, as in DATASETS.TEST. It is predicted plainly,
adapted to without labels as tools/adapt.py does (the keys of ADAPTATION say how), and predicted
again. The picture has a row for each chosen image:

    image | truth | patch map (the teacher) | mask before | mask after

with the F1 at 0.5 of the three, pixel by pixel at the image's own size. Which images are shown is a
rule, nobody's choice. Forged images with a mask are ranked by what their F1 gained, equals in the
data set's order; shown are

    gained most     the first --rows of those that gained
    the middle      of all others, the --rows nearest to the middle of the ranking
    lost most       the last --rows of those that lost
    false alarms    the 2 authentic images of which the share called forged changed most

A change of less than 0.01, of F1 or of the share, is none.

Prints a line of JSON: mean F1 before and after (pixel/F1-image), how many gained, lost, and did
not change. No more than --limit images are used, evenly spaced over the data set. The
checkpoint given is only read, and adapted weights are not kept: tools/adapt.py keeps them.
Exit status: 0 = all images used, 1 = some were not readable, or have no label or mask.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from PIL import Image
from torch.utils.data import DataLoader, Subset

from loupe.adaptation import AdaptationSummary, adapt_and_evaluate
from loupe.adaptation.runs import adaptation_of
from loupe.config import load_config
from loupe.data.training.loaders import build_test_loader
from loupe.evaluation.diagnosis import f1_and_iou, on_grid
from loupe.inference import THRESHOLD, LoupePredictor
from loupe.modeling.postprocessing import paste_map
from loupe.structures import GroundTruth
from loupe.trainer.evaluation import adaptation_schedule
from loupe.trainer.randomness import seed_everything
from loupe.visualization import TRUTH_COLOUR, captioned_row, overlay, sheet, text_block

# A smaller change of F1 than this counts as none.
UNCHANGED = 0.01
AUTHENTIC_ROWS = 2
HEADING_HEIGHT = 26
LEGEND = (
    "Blue: truth. Pink: what a map calls forged, the stronger the surer, outlined where above 0.5. "
    "Score: the classifier's probability that the image is forged. Patch map: its coarse map, "
    "which teaches the mask; an image with a score below 0.5 teaches an empty mask."
)
# Of the kinds of `Choice`.
HEADINGS = (
    "Forged images whose F1 gained most",
    "Forged images in the middle",
    "Forged images whose F1 lost most",
    "Authentic images whose false alarms changed most (share of the image called forged)",
)
RULE = (
    "Chosen by a rule, not by hand: forged images are ranked by what their own F1 at 0.5 gained; "
    "shown are the top, the bottom, and those nearest to the middle of the ranking. Authentic "
    f"images: the {AUTHENTIC_ROWS} largest changes. A change below {UNCHANGED} counts as none."
)


class Answer(NamedTuple):
    """What is kept of one image and the model's answer: numbers, and maps of a tile's size.

    Attributes:
        truth: Label and technique, without the mask.
        score: Probability that the image is forged.
        f1: Of the mask at 0.5; NaN for an authentic image.
        called: Share of the image that the mask calls forged.
        patch_f1: The patch map's F1.
        patch_called: The patch map's share.
        forgery_map: (h, w) float16, the part of the image that the network sees.
        patch_map: Likewise.
    """

    truth: GroundTruth
    score: float
    f1: float
    called: float
    patch_f1: float
    patch_called: float
    forgery_map: np.ndarray
    patch_map: np.ndarray


class Choice(NamedTuple):
    """Positions of the images to show, each from the largest change to the smallest."""

    gained: list[int]
    middle: list[int]
    lost: list[int]
    authentic: list[int]


class AnswerCollector(DatasetEvaluator):
    """Keeps each image's answer, in order; None where image, label or mask is missing."""

    def __init__(self, tile: int, patch: int) -> None:
        """Takes the longest side of the maps to keep, and a patch's side, both in pixels."""
        self.tile, self.patch = tile, patch
        self.reset()

    def reset(self) -> None:
        """Forgets all answers."""
        self.answers: list[Answer | None] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Measures a batch."""
        for item, output in zip(inputs, outputs, strict=True):
            truth = item.get("ground_truth")
            known = truth is not None and (truth.label == 0 or truth.mask is not None)
            usable = "image" in item and known
            self.answers.append(self._measured(item, output, truth) if usable else None)

    def evaluate(self) -> None:
        """Gives no metrics."""

    def _measured(self, item: dict[str, Any], output: dict[str, Any], truth: GroundTruth) -> Answer:
        maps = [output["forgery_map"].numpy(), patch_pixels(item, output["patch_map"], self.patch)]
        size = tile_size(item, self.tile)
        (f1, called), (patch_f1, patch_called) = (measured(one, truth) for one in maps)
        kept = (on_grid(one, item["window"], size).astype(np.float16) for one in maps)
        score = output["forgery_score"]
        return Answer(truth._replace(mask=None), score, f1, called, patch_f1, patch_called, *kept)


def measured(forgery_map: np.ndarray, truth: GroundTruth) -> tuple[float, float]:
    """F1 at 0.5 (NaN for an authentic image), and the share called forged."""
    called = forgery_map > THRESHOLD
    f1 = f1_and_iou(called, truth.mask)[0] if truth.label else math.nan
    return f1, float(called.mean())


def patch_pixels(item: dict[str, Any], patch_map: torch.Tensor, patch: int) -> np.ndarray:
    """(height, width) at the image's own size: each patch as a block of pixels.

    Args:
        item: Of the batch.
        patch_map: (h, w) patches of the batch's canvas.
        patch: Side of a patch in pixels of the canvas.
    """
    blocks = patch_map.repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    size = (item["height"], item["width"])
    return paste_map(blocks, item["valid_size"], item["window"], size).numpy()


def tile_size(item: dict[str, Any], tile: int) -> tuple[int, int]:
    """(height, width) of an image's pictures; the longer one is `tile`."""
    height, width = item["valid_size"]
    longest = max(height, width)
    return max(1, round(tile * height / longest)), max(1, round(tile * width / longest))


def choose(changes: Sequence[float], alarms: Sequence[float], rows: int) -> Choice:
    """Applies the rule of the module's docstring.

    Args:
        changes: What each image's F1 gained; NaN leaves an image out (an authentic one).
        alarms: What each image's share called forged gained; NaN leaves it out (a forged one).
        rows: Of each kind.
    """
    ranking = sorted(
        (index for index, change in enumerate(changes) if not math.isnan(change)),
        key=lambda index: -changes[index],
    )
    gained = [index for index in ranking if changes[index] >= UNCHANGED][:rows]
    lost = [index for index in ranking if changes[index] <= -UNCHANGED][-rows:]
    others = [rank for rank, index in enumerate(ranking) if index not in gained + lost]
    nearest = sorted(others, key=lambda rank: abs(2 * rank - len(ranking) + 1))[:rows]
    middle = [ranking[rank] for rank in sorted(nearest)]
    moved = [index for index, alarm in enumerate(alarms) if abs(alarm) >= UNCHANGED]
    authentic = sorted(moved, key=lambda index: -abs(alarms[index]))[:AUTHENTIC_ROWS]
    return Choice(gained, middle, lost, authentic)


def evenly_spaced(loader: DataLoader, limit: int) -> DataLoader:
    """The loader of at most so many images, spread over the data set, whatever its order."""
    total = len(loader.dataset)
    if total <= limit:
        return loader
    return DataLoader(
        Subset(loader.dataset, [index * total // limit for index in range(limit)]),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
    )


def before_and_after(
    predictor: LoupePredictor, loader: DataLoader, tile: int
) -> tuple[list[Answer | None], list[Answer | None], AdaptationSummary]:
    """Predicts, adapts the predictor's model, predicts again.

    Returns:
        Answers before and after, in the loader's order, and what the adaptation did.

    Raises:
        ValueError: No forged image has a mask; or the model cannot adapt.
    """
    cfg, model = predictor.cfg, predictor.model
    adaptation = adaptation_of(cfg, model)
    collector = AnswerCollector(tile, model.backbone.size_divisibility)
    # A loader draws random numbers, too: adaptation is to meet those that it meets alone.
    with torch.random.fork_rng():
        inference_on_dataset(model, loader, collector)
    before = collector.answers
    if not any(answer and answer.truth.label for answer in before):
        raise ValueError(
            f"of {len(before)} images none is readable, labelled forged and has a mask, so there "
            "is no F1 to compare; give a data set with masks (tools/adapt.py needs none)"
        )
    adapt_and_evaluate(cfg, adaptation, loader, collector, adaptation_schedule(cfg))
    return before, collector.answers, adaptation.summary


def differences(
    before: list[Answer | None], after: list[Answer | None]
) -> tuple[list[float], list[float]]:
    """What F1 gained, NaN but for forged images; and the share called, NaN but for authentic."""
    changes, alarms = [], []
    for old, new in zip(before, after, strict=True):
        label = old and old.truth.label
        changes.append(new.f1 - old.f1 if label == 1 else math.nan)
        alarms.append(new.called - old.called if label == 0 else math.nan)
    return changes, alarms


def facts_of(before: list[Answer | None], after: list[Answer | None]) -> dict[str, Any]:
    """The numbers that are printed."""
    changes = np.array([c for c in differences(before, after)[0] if not math.isnan(c)])

    def mean(answers: list[Answer | None], label: int, name: str) -> float | None:
        values = [getattr(one, name) for one in answers if one and one.truth.label == label]
        return round(float(np.mean(values)), 4) if values else None

    gained, lost = int((changes >= UNCHANGED).sum()), int((changes <= -UNCHANGED).sum())
    return {
        "images": len(before),
        "left_out": before.count(None),
        "forged": len(changes),
        "patch_map_f1": mean(before, 1, "patch_f1"),
        "f1_before": mean(before, 1, "f1"),
        "f1_after": mean(after, 1, "f1"),
        "gained": gained,
        "lost": lost,
        "unchanged": len(changes) - gained - lost,
        "authentic_called_before": mean(before, 0, "called"),
        "authentic_called_after": mean(after, 0, "called"),
    }


def captions_of(before: Answer, after: Answer) -> list[str]:
    """What stands above patch map, mask before and mask after."""
    if before.truth.label:
        change = f"{after.f1 - before.f1:+.2f}"
        values = [f"F1 {f1:.2f}" for f1 in (before.patch_f1, before.f1, after.f1)]
    else:
        change = f"{after.called - before.called:+.1%}"
        values = [f"{share:.1%}" for share in (before.patch_called, before.called, after.called)]
    return [f"patch map: {values[0]}", f"before: {values[1]}", f"after: {values[2]} ({change})"]


def draw_row(item: dict[str, Any], before: Answer, after: Answer, tile: int) -> np.ndarray:
    """Draws one image's pictures side by side, each under its number."""
    rows, columns = tile_size(item, tile)
    height, width = item["valid_size"]
    pixels = item["image"][:, :height, :width].permute(1, 2, 0).numpy()
    image = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_CUBIC)
    truth = item["ground_truth"]
    name = share = "authentic"
    mask = np.zeros((rows, columns), bool)
    if truth.label:
        name, share = truth.technique or "forged", f"{truth.mask.mean():.1%} forged"
        mask = on_grid(truth.mask, item["window"], (rows, columns)) >= 0.5
    maps = [before.patch_map, before.forgery_map, after.forgery_map]
    cells = [
        (f"{name}, score {before.score:.2f}", image),
        (f"truth: {share}", overlay(image, mask, colour=TRUTH_COLOUR)),
    ]
    for caption, one in zip(captions_of(before, after), maps, strict=True):
        cells.append((caption, overlay(image, one.astype(np.float32))))
    return captioned_row(cells)


def draw_sheet(
    loader: DataLoader,
    answers: tuple[list[Answer | None], list[Answer | None]],
    chosen: Choice,
    title: tuple[str, str],
    tile: int,
) -> np.ndarray:
    """Draws the chosen images, read once more, under the headings of their kind."""
    width = 5 * tile
    parts = [text_block(title[0], width, HEADING_HEIGHT), text_block(title[1], width)]
    for heading, indices in zip(HEADINGS, chosen, strict=True):
        if indices:
            parts.append(text_block(heading, width, HEADING_HEIGHT))
        for index in indices:
            parts.append(draw_row(loader.dataset[index], *(each[index] for each in answers), tile))
    return sheet([*parts, text_block(RULE, width)])


def title_of(facts: dict[str, Any], dataset: str, mode: str) -> tuple[str, str]:
    """The picture's headline, and what stands below it."""
    headline = (
        f"Test-time adaptation without labels ({mode}): mean F1 of forged images "
        f"{facts['f1_before']:.3f} before, {facts['f1_after']:.3f} after"
    )
    return headline, (
        f"{facts['images']} images of {dataset}, {facts['forged']} of them forged: F1 of "
        f"{facts['gained']} gained, of {facts['lost']} lost, of {facts['unchanged']} changed by "
        f"less than {UNCHANGED}. {LEGEND}"
    )


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="data set with labels and masks")
    parser.add_argument("--output", required=True, type=Path, help="the picture, .jpg or .png")
    parser.add_argument("--config-file", required=True, help="configuration of the adaptation")
    parser.add_argument("--weights", help="checkpoint to start from; by default MODEL.WEIGHTS")
    parser.add_argument("--rows", type=int, default=3, help="images of each kind (default 3)")
    parser.add_argument("--limit", type=int, default=400, help="most images used (default 400)")
    parser.add_argument("--tile", type=int, default=176, help="side of a tile in pixels")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the configuration")
    return parser.parse_intermixed_args(words)


def check(arguments: argparse.Namespace, cfg: CfgNode) -> None:
    """Refuses what cannot lead to a picture, before anything takes time.

    Raises:
        ValueError: Says what, and the remedy.
    """
    if cfg.ADAPTATION.MODE == "none":
        raise ValueError(
            "ADAPTATION.MODE is none, so nothing would change: add ADAPTATION.MODE offline (or "
            "online, episodic) to the command"
        )
    if not cfg.MODEL.CLASSIFIER.PATCH_PREDICTION:
        raise ValueError("MODEL.CLASSIFIER.PATCH_PREDICTION is False: no patch map could teach")
    if min(arguments.rows, arguments.limit) < 1 or arguments.tile < 32:
        raise ValueError("--rows and --limit must be at least 1, --tile at least 32")
    if arguments.output.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{arguments.output}: name a picture, such as sheet.jpg or sheet.png")


def main(arguments: argparse.Namespace) -> int:
    """Predicts, adapts, predicts, draws; returns the exit status."""
    cfg = load_config(arguments.config_file, arguments.opts)
    check(arguments, cfg)
    if cfg.SEED >= 0:
        seed_everything(cfg.SEED)
    predictor = LoupePredictor(cfg, arguments.weights)
    loader = evenly_spaced(build_test_loader(predictor.cfg, arguments.dataset), arguments.limit)
    before, after, summary = before_and_after(predictor, loader, arguments.tile)
    facts = facts_of(before, after)
    chosen = choose(*differences(before, after), arguments.rows)
    title = title_of(facts, arguments.dataset, cfg.ADAPTATION.MODE)
    picture = draw_sheet(loader, (before, after), chosen, title, arguments.tile)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(arguments.output, quality=80)
    print(json.dumps(facts | {"adaptation": summary.as_json()}, allow_nan=False))
    return 1 if facts["left_out"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main(parse_arguments()))
    except ValueError as error:
        sys.exit(f"error: {error}")
