"""Does the mask help an explainer? Arms with the same seeds and budget, measured by exact facts.

    python -m research.explanation.experiment data --photographs A.csv --held B.csv --workers 14
    python -m research.explanation.experiment run --workers 14          # all arms, three seeds
    python -m research.explanation.experiment table --output results.json

A LLaVA of 0.6 M parameters is trained from scratch in each run, tower and all, on views of 128 px
that it sees at 64 px; it must judge the verdict itself. Test images come from other photographs.
Every image has a region in every arm but `none` and `as released`, authentic ones too, so that the
mask's presence tells nothing: the detector's is what lies above half of its map's maximum.

Fixed before any run: the primary measures are `facts/cell`, then `facts/technique`, of `predicted`
less `none`, over forged images, mean of three seeds, with the paired bootstrap's 95% interval over
images; the control is `shuffled` less `none`.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from loupe.data.explanations.truth import all_texts, claims_of, write_claims
from loupe.data.sources.photographs import gather_photographs
from loupe.evaluation.text.overlap import overlap_scores
from loupe.evaluation.text.parsing import parse
from loupe.evaluation.text.scores import Explained, difference, hits, score
from loupe.explanation.explainer import Explainer
from loupe.explanation.prompts import QUESTION
from loupe.explanation.region_features import RegionTower, jittered
from loupe.explanation.word_tokenizer import IMAGE, word_tokenizer
from loupe.synthesis import AUTHENTIC, DEFAULT_TECHNIQUES, make_view
from loupe.synthesis.regions import draw_shape
from loupe.vocabulary import Claims
from loupe.writing import write_json
from research.explanation.features import predictor, start_worker
from research.measuring import parser_of

DRAWN, SEEN = 128, 64
TRAINED, TESTED = 6000, 600
STEPS, BATCH, RATE = 500, 32, 2e-3
SEEDS = (0, 1, 2)
PRIMARY = ("facts/cell", "facts/technique")


class Arm(NamedTuple):
    """What a model is shown.

    Attributes:
        alpha: Weight of the whole image.
        trained: Mask in training.
        tested: Mask in the test, by the name of its results.
        words: Whether the question names the mask's place and size.
    """

    alpha: float
    trained: str
    tested: dict[str, str]
    words: bool = False


ARMS = {
    "none": Arm(1.0, "white", {"none": "white"}),
    "predicted": Arm(0.5, "predicted", {"predicted": "predicted"}),
    "truth": Arm(0.5, "truth", {"truth": "truth", "truth, then predicted": "predicted"}),
    "shuffled": Arm(0.5, "shuffled", {"shuffled": "shuffled"}),
    "jittered": Arm(0.5, "jittered", {"jittered": "jittered"}),
    "region only": Arm(0.0, "truth", {"region only": "truth"}),
    "words": Arm(1.0, "predicted", {"words": "predicted"}, words=True),
    "as released": Arm(0.5, "released", {"as released": "released"}),
}


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = parser_of(__doc__, output=False)
    parser.add_argument("part", choices=("data", "run", "table"))
    parser.add_argument("--folder", type=Path, default=Path("output/explain/experiment"))
    parser.add_argument("--photographs", default="")
    parser.add_argument("--held", default="")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--trained", type=int, default=TRAINED)
    parser.add_argument("--tested", type=int, default=TESTED)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(words)


# ---- Data


def make(task: tuple[str, int, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Image (S, S, 3), truth and predicted region (S, S) bool at SEEN px, and claims as JSON."""
    split, index, photographs = task
    technique = DEFAULT_TECHNIQUES[index // 5 % len(DEFAULT_TECHNIQUES)]
    technique = AUTHENTIC if index % 5 == 0 else technique
    seed = (2 if split == "test" else 0, 77, index)
    image, mask, _, _ = make_view(seed, gather_photographs(split, photographs), DRAWN, technique)
    forgery_map = predictor()(image).forgery_map
    predicted = forgery_map > 0.5 * forgery_map.max()
    verdict = "authentic" if technique == AUTHENTIC else "forged"
    claims = claims_of(image, mask, verdict, technique)
    if technique == AUTHENTIC:  # A region for the arms that show the truth.
        mask = draw_shape(np.random.default_rng((5, index)), DRAWN)
    size = (SEEN, SEEN)
    masks = (
        cv2.resize(one.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
        for one in (mask, predicted)
    )
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return small, *masks, json.dumps(claims._asdict())


def write_data(arguments: argparse.Namespace) -> None:
    """Renders both parts."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    parts = (
        ("train", arguments.trained, arguments.photographs),
        ("test", arguments.tested, arguments.held),
    )
    with ProcessPoolExecutor(arguments.workers, get_context("spawn"), start_worker) as pool:
        for split, count, photographs in parts:
            tasks = [(split, index, photographs) for index in range(count)]
            images, truth, predicted, claims = zip(
                *pool.map(make, tasks, chunksize=20), strict=True
            )
            np.savez_compressed(
                arguments.folder / f"{split}.npz",
                image=np.stack(images),
                truth=np.stack(truth),
                predicted=np.stack(predicted),
                claims=np.array(claims),
            )
            print(f"{split}: {count}", flush=True)


class Part:
    """Images with both masks and the truth."""

    def __init__(self, path: Path) -> None:
        """Reads a part."""
        with np.load(path) as content:
            self.image, self.truth = content["image"], content["truth"]
            self.predicted = content["predicted"]
            self.claims = [Claims(**json.loads(str(line))) for line in content["claims"]]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image)

    def region(self, kind: str, index: int, rng: np.random.Generator) -> np.ndarray | None:
        """The region that an arm shows of an image; None = the whole image."""
        if kind == "white":
            return None
        if kind == "released":
            return self.truth[index] if self.claims[index].verdict == "forged" else None
        if kind == "predicted":
            return self.predicted[index]
        if kind == "shuffled":
            return self.truth[int(rng.integers(len(self)))]
        return jittered(self.truth[index], rng) if kind == "jittered" else self.truth[index]

    def item(self, kind: str, words: bool, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The item of an image."""
        region = self.region(kind, index, rng)
        question = QUESTION
        shown = None if words else region
        if words and region is not None and region.any():
            told = claims_of(self.image[index], region, "forged")
            question += f" The region is {told.size}, in the {told.cell}."
        return {
            "image": torch.from_numpy(self.image[index].transpose(2, 0, 1).copy()),
            "valid_size": (SEEN, SEEN),
            "region": None if shown is None or not shown.any() else shown,
            "question": question,
            "explanation": write_claims(self.claims[index], rng),
        }


# ---- One run


def build(alpha: float, seed: int) -> Explainer:
    """A LLaVA from scratch: CLIP 3 x 96, Llama 2 x 128, words."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    tokenizer = word_tokenizer([*all_texts(), QUESTION, "The region is small, in the : . , ;"])
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SEEN,
        patch_size=8,
        # One over the root of the width: with the 0.02 of large models, 300 steps read no mask.
        initializer_range=96**-0.5,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=128**-0.5,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_id)
    vlm = LlavaForConditionalGeneration(config)
    vlm.model.vision_tower = RegionTower(vlm.model.vision_tower, alpha)
    return Explainer(
        vlm=vlm,
        tokenizer=tokenizer,
        guide=None,
        template="words",
        image_id=image_id,
        image_tokens=(SEEN // 8) ** 2,
        trained=[f"vlm.{name}" for name, _ in vlm.named_parameters()],
        settings={"alpha": alpha},
        background="mean",
        mask_source="item",
        max_new_tokens=60,
        patch_size=8,
        pixel_mean=(127.5,) * 3,
        pixel_std=(64.0,) * 3,
    )


def run_one(task: tuple[str, int, argparse.Namespace]) -> str:
    """Trains and tests one arm with one seed; writes what it claims of each test image."""
    name, seed, arguments = task
    arm, runs = ARMS[name], arguments.folder / "runs"
    if all((runs / f"{one}-{seed}.json").is_file() for one in arm.tested):
        return f"{name} {seed}: there already"
    model = build(arm.alpha, seed).to(arguments.device).train()
    train, test = (Part(arguments.folder / f"{part}.npz") for part in ("train", "test"))
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, arguments.steps, pct_start=0.05, anneal_strategy="cos"
    )
    # All arms see the same images in the same order.
    order = np.random.default_rng(seed)
    for step in range(arguments.steps):
        rng = np.random.default_rng((seed, step))
        batch = [
            train.item(arm.trained, arm.words, int(index), rng)
            for index in order.integers(len(train), size=BATCH)
        ]
        loss = model(batch)["loss_tokens"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    for shown, kind in arm.tested.items():
        texts = write_texts(model, test, kind, arm.words, seed)
        content = {"arm": shown, "seed": seed, "loss": loss.item(), "texts": texts}
        write_json(runs / f"{shown}-{seed}.json", content)
    return f"{name} {seed}: loss {loss.item():.3f}"


def write_texts(model: Explainer, test: Part, kind: str, words: bool, seed: int) -> list[str]:
    """What a trained model says of each test image."""
    texts: list[str] = []
    for start in range(0, len(test), 100):
        rng = np.random.default_rng((9, seed, start))
        rows = range(start, min(start + 100, len(test)))
        written = model.write([test.item(kind, words, i, rng) for i in rows])
        texts += [one.text for one in written]
    return texts


def run_all(arguments: argparse.Namespace) -> None:
    """All arms; what was done before is kept."""
    # The arms that the primary measures need come first.
    tasks = [(name, seed, arguments) for seed in arguments.seeds for name in arguments.arms]
    with ProcessPoolExecutor(arguments.workers, get_context("spawn"), start_worker) as pool:
        for line in pool.map(run_one, tasks):
            print(line, flush=True)


# ---- Table


def records(test: Part, texts: list[str], rng: np.random.Generator) -> list[Explained]:
    """Texts with what is true of their images."""
    return [
        Explained(
            f"{index:04d}",
            text,
            True,
            parse(text),
            test.claims[index],
            "",
            claims_of(test.image[index], test.predicted[index], "forged"),
            write_claims(test.claims[index], rng),
        )
        for index, text in enumerate(texts)
    ]


def program(test: Part, common: str) -> list[str]:
    """Texts of a program that fills the template from the detector's mask, without any model."""
    rng = np.random.default_rng(0)
    pairs = zip(test.image, test.predicted, strict=True)
    return [write_claims(claims_of(image, mask, "forged", common), rng) for image, mask in pairs]


def overlap_of(rows: list[Explained]) -> dict[str, float]:
    """Overlap with one wording of the truth; nothing where the libraries are not installed."""
    try:
        return overlap_scores([one.text for one in rows], [one.reference for one in rows])
    except ModuleNotFoundError:
        return {}


def write_table(arguments: argparse.Namespace) -> dict[str, Any]:
    """Scores of all arms, and the differences that were fixed in advance."""
    test = Part(arguments.folder / "test.npz")
    per_arm: dict[str, list[list[Explained]]] = {}
    for path in sorted((arguments.folder / "runs").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        rng = np.random.default_rng(1)
        per_arm.setdefault(content["arm"], []).append(records(test, content["texts"], rng))
    techniques = [claims.technique for claims in test.claims if claims.technique]
    common = max(sorted(set(techniques)), key=techniques.count)
    per_arm["program, predicted mask"] = [
        records(test, program(test, common), np.random.default_rng(1))
    ]
    values = {arm: [hits(rows) for rows in seeds] for arm, seeds in per_arm.items()}
    table: dict[str, Any] = {"arms": {}, "differences": {}}
    for arm, seeds in per_arm.items():
        scores = [score(rows, resamples=0) for rows in seeds]
        means = {name: float(np.mean([s[name].value for s in scores])) for name in scores[0]}
        overlap = overlap_of([one for seed in seeds for one in seed])
        table["arms"][arm] = {"seeds": len(seeds), "scores": means | overlap}
    if "none" in values:
        for arm in values.keys() - {"none"}:
            seeds = min(len(values[arm]), len(values["none"]))
            for name in (*PRIMARY, "facts/size", "facts/tone", "facts/verdict"):
                pair = (
                    np.stack([one[name] for one in values[which][:seeds]])
                    for which in (arm, "none")
                )
                table["differences"].setdefault(arm, {})[name] = difference(*pair)._asdict()
    table["test images"] = len(test)
    table["mean overlap of predicted region and truth"] = float(
        np.mean(
            [
                np.count_nonzero(a & b) / np.count_nonzero(a | b)
                for a, b, claims in zip(test.truth, test.predicted, test.claims, strict=True)
                if claims.verdict == "forged"
            ]
        )
    )
    return table


def main(words: list[str] | None = None) -> None:
    """Runs one part."""
    arguments = parse_arguments(words)
    if arguments.part == "data":
        write_data(arguments)
    elif arguments.part == "run":
        run_all(arguments)
    else:
        table = write_table(arguments)
        if arguments.output is not None:
            write_json(arguments.output, table)
        for arm, content in table["arms"].items():
            shown = {name: content["scores"][name] for name in (*PRIMARY, "facts/size")}
            print(arm, content["seeds"], {k: round(v, 3) for k, v in shown.items()})


if __name__ == "__main__":
    main()
