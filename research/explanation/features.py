"""Renders synthetic forgeries and computes an explainer's features, on all cores.

    python -m research.explanation.features --count 8000 --workers 15 --output output/explain/train
    python -m research.explanation.features --count 600 --split test --guided --seed 1 \
        --output output/explain/test

Each example: a view of a photograph, forged or not, at 160 to 320 px; the region that is shown (the
truth, jittered; of authentic images a drawn one); question and explanation. With --guided region
and verdict are the detector's, as in use, and the claims are those of the truth. A folder that was
begun goes on where it stopped. See `loupe.data.explanations.features` for the format.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from loupe import load_config
from loupe.data.explanations.examples import Example, draw_example
from loupe.data.explanations.features import EXAMPLES, FEATURES
from loupe.data.explanations.truth import claims_of
from loupe.data.sources.photographs import SPLITS, gather_photographs
from loupe.explanation.prompts import question_of, verdict_word
from loupe.explanation.region_features import EncoderTower, binary_mask, masked_image
from loupe.inference import LoupePredictor
from loupe.model_zoo import CONFIGS
from loupe.structures import THRESHOLD
from loupe.synthesis import AUTHENTIC, DEFAULT_TECHNIQUES, make_view
from research.measuring import parser_of

SIZES = (160, 192, 224, 256, 320)
GRID = 8
# Of the training examples; the others are authentic.
FORGED = 0.7
PIECE = 200


class Task(NamedTuple):
    """What decides an example."""

    split: str
    seed: int
    index: int
    photographs: str
    guided: bool
    jitter: float
    forged: float


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(__doc__, output=False)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--photographs", default="", help="further ones: a manifest or a folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true", help="region and verdict by the detector")
    parser.add_argument("--jitter", type=float, default=0.6)
    parser.add_argument("--forged", type=float, default=FORGED)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after the piece then")
    return parser.parse_args(words)


@cache
def predictor() -> LoupePredictor:
    """The small explainer's detector, once for each process; on the CPU also beside a GPU."""
    on_cpu = ["MODEL.DEVICE", "cpu"]
    weights = load_config(CONFIGS / "explain_tiny.yaml", on_cpu).MODEL.EXPLAINER.GUIDE_WEIGHTS
    return LoupePredictor(load_config(CONFIGS / "loupe_tiny.yaml", on_cpu), weights)


@cache
def tells() -> bool:
    """Whether the small explainer is told in words what was measured of the region."""
    return load_config(CONFIGS / "explain_tiny.yaml").MODEL.EXPLAINER.TELL_REGION


@cache
def tower() -> EncoderTower:
    """Its encoder as a tower."""
    return EncoderTower(predictor().model.backbone, GRID)


def render(task: Task) -> tuple[np.ndarray, np.ndarray, str, np.random.Generator]:
    """Image (S, S, 3), mask (S, S) bool, technique, and the generator of all further draws."""
    rng = np.random.default_rng((SPLITS.index(task.split), task.seed, task.index))
    technique = AUTHENTIC
    if rng.random() < task.forged:
        technique = DEFAULT_TECHNIQUES[task.index % len(DEFAULT_TECHNIQUES)]
    size = int(rng.choice(SIZES))
    photographs = gather_photographs(task.split, task.photographs)
    seed = (SPLITS.index(task.split), 1000 + task.seed, task.index)
    sample = make_view(seed, photographs, size, technique)
    return sample.image, sample.mask, technique, rng


def guided_example(image: np.ndarray, mask: np.ndarray, technique: str) -> tuple[Example, Any]:
    """An example as in use: region and verdict are the detector's, the claims are the truth's."""
    prediction = predictor()(image)
    region = prediction.forgery_map > THRESHOLD
    verdict = verdict_word(prediction.score, prediction.verdict)
    forged = bool(mask.any())
    claims = (
        claims_of(image, mask, "forged", technique)
        if forged
        else claims_of(image, mask, "authentic")
    )
    shown = region if region.any() else None
    told = claims_of(image, region, "undecided") if tells() and shown is not None else None
    question = question_of(verdict, shown is not None, told)
    return Example(shown, question, "", claims), prediction


def make(task: Task) -> tuple[np.ndarray, str]:
    """Features (2, T, C) float16 and the line of an example."""
    image, mask, technique, rng = render(task)
    further = {}
    if task.guided:
        example, prediction = guided_example(image, mask, technique)
        union = np.count_nonzero(mask | (prediction.forgery_map > THRESHOLD))
        overlap = np.count_nonzero(mask & (prediction.forgery_map > THRESHOLD)) / max(1, union)
        further = {
            "score": prediction.score,
            "verdict": verdict_word(prediction.score, prediction.verdict),
            "overlap": overlap,
            "region_claims": None
            if example.region is None
            else claims_of(image, example.region, "forged")._asdict(),
        }
    else:
        example = draw_example(rng, image, mask, technique, task.jitter, tell=tells())
    line = {
        "image_id": f"{task.split}-{task.seed}-{task.index:06d}",
        "question": example.question,
        "explanation": example.explanation,
        "claims": example.claims._asdict(),
        "forged": bool(mask.any()),
        "technique": technique,
    } | further
    return encode(image, example.region), json.dumps(line)


def encode(image: np.ndarray, region: np.ndarray | None) -> np.ndarray:
    """Features of the image and of the region, (2, T, C) float16."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    whole = tower()(pixels).last_hidden_state[0]
    if region is None:
        return torch.stack([whole, whole]).half().numpy()
    mask = binary_mask(torch.from_numpy(region)[None, None], image.shape[:2])
    under = tower()(masked_image(pixels, mask)).last_hidden_state[0]
    return torch.stack([whole, under]).half().numpy()


def start_worker() -> None:
    """One thread for each process."""
    torch.set_num_threads(1)


def main(words: list[str] | None = None) -> None:
    """Makes all examples, in pieces."""
    arguments = parse_arguments(words)
    began = time.perf_counter()
    pieces = arguments.output / "pieces"
    pieces.mkdir(parents=True, exist_ok=True)
    context = get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, context, start_worker) as pool:
        for start in range(0, arguments.count, PIECE):
            path = pieces / f"{start:07d}.npz"
            if path.is_file():
                continue
            if time.perf_counter() - began > arguments.seconds:
                break
            tasks = [
                Task(
                    *(arguments.split, arguments.seed, index, arguments.photographs),
                    *(arguments.guided, arguments.jitter, arguments.forged),
                )
                for index in range(start, min(start + PIECE, arguments.count))
            ]
            made = list(pool.map(make, tasks, chunksize=5))
            unfinished = path.with_suffix(".part.npz")
            np.savez(
                unfinished,
                features=np.stack([features for features, _ in made]),
                lines=np.array([line for _, line in made]),
            )
            os.replace(unfinished, path)
            print(f"{start + len(made)} of {arguments.count}", flush=True)
    join(arguments.output)


def join(folder: Path) -> None:
    """Puts all pieces that there are into one set of features."""
    pieces = [np.load(path) for path in sorted((folder / "pieces").glob("???????.npz"))]
    np.save(folder / FEATURES, np.concatenate([piece["features"] for piece in pieces]))
    lines = [str(line) for piece in pieces for line in piece["lines"]]
    (folder / EXAMPLES).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
