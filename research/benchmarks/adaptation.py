#!/usr/bin/env python3
"""What online adaptation costs: time and memory for each image, against plain inference.

    python -m research.benchmarks.adaptation [--config-file FILE] [--batch 16] [--rounds 7]
        [--output FILE]

Every round runs plain inference and then each variant on the same batch, in turn, in one process;
a ratio is the median of the rounds' ratios, of the processor's clock, which other programs disturb
less than the wall's. The phases say what a step of the whole segmenter is made of. Random weights
and random images; every image is called forged, which is the worst case: an image called authentic
has no mask to be matched and compared. Memory is the peak of a fresh process for each variant, less
what that process had after a plain batch.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from detectron2.modeling import build_model

from loupe.adaptation import TestTimeAdaptation, adapted_predictions
from loupe.adaptation.parameters import gradients_for, graph_parameters
from loupe.adaptation.pseudo_labels import pseudo_targets
from loupe.config import load_config
from loupe.structures import LossCounts
from research.measuring import (
    machine,
    milliseconds,
    parser_of,
    peak_megabytes,
    ratios,
    seconds,
    take_turns,
    write_results,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "segmenter": {},
    "norms": {"parameters": "norms"},
    "safe": {"parameters": "norms", "image_weight": "agreement", "patch_temperature": 0.2},
    "segmenter, agreement": {"image_weight": "agreement"},
}


def make_model(config_file: str, opts: list[str]) -> Any:
    """A model with random weights that calls every image forged."""
    torch.manual_seed(0)
    cfg = load_config(config_file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
    model = build_model(cfg).eval()
    classify = model.classifier.forward

    def forward(**features: Any) -> Any:
        verdict = classify(**features)
        return verdict._replace(image_logits=torch.full_like(verdict.image_logits, 1.0))

    model.classifier.forward = forward
    return model, cfg.INPUT.SIZE


def make_batch(images: int, size: int) -> list[dict[str, Any]]:
    """Random images as the mapper gives them."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 256, (3, size, size), generator=generator).byte(),
            "valid_size": (size, size),
            "height": size,
            "width": size,
        }
        for _ in range(images)
    ]


@torch.no_grad()
def plain(model: Any, batch: list[dict[str, Any]]) -> None:
    """Plain inference."""
    model(batch)


def adapted(adaptation: TestTimeAdaptation, batch: list[dict[str, Any]]) -> None:
    """One batch of online adaptation: adapt on it, predict it."""
    for _ in adapted_predictions(adaptation, [batch], mode="online", images_per_step=len(batch)):
        pass


def measure_variants(
    config_file: str, opts: list[str], images: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds for each image and ratios to plain inference; the first round warms up."""
    model, size = make_model(config_file, opts)
    batch = make_batch(images, size)
    calls: dict[str, Callable[[], None]] = {"plain": partial(plain, model, batch)}
    for name, settings in VARIANTS.items():
        adaptation = TestTimeAdaptation(make_model(config_file, opts)[0], **settings)
        calls[name] = partial(adapted, adaptation, batch)
    times = take_turns(calls, rounds)
    table = {}
    for name, own in times.items():
        found = ratios(own, times["plain"])
        table[name] = {
            "milliseconds_per_image": milliseconds(own) / images,
            "wall_milliseconds_per_image": 1000 * median(one.wall for one in own) / images,
            "ratio": median(found),
            "lowest_ratio": min(found),
            "highest_ratio": max(found),
        }
    return table


def measure_phases(
    config_file: str, opts: list[str], images: int, rounds: int, parameters: str
) -> dict[str, float]:
    """Median milliseconds for each image of what a step is made of."""
    model, size = make_model(config_file, opts)
    batch = make_batch(images, size)
    segmenter = model.segmenter
    phases: dict[str, list[float]] = {}

    def timed(name: str, function: Callable[[], Any], context: AbstractContextManager) -> Any:
        with context:
            taken, result = seconds(function)
        phases.setdefault(name, []).append(taken.processor)
        return result

    counts = LossCounts(images, 1, images, segmenter.num_queries * images)
    for _ in range(rounds + 1):
        perception = timed("encoder and classifier", lambda: model.classify(batch), torch.no_grad())
        inputs, features, verdict, _ = perception
        targets = pseudo_targets(verdict)
        with gradients_for(segmenter, graph_parameters(segmenter, parameters)):
            outputs = timed(
                "segmenter, forward",
                lambda f=features, t=targets: segmenter(f["patches"], t.labels),
                nullcontext(),
            )
            loss = timed(
                "matching and losses",
                lambda o=outputs, t=targets, i=inputs: sum(
                    model.mask_criterion(o, t, counts, i.extents).values()
                ),
                nullcontext(),
            )
            timed("backward", loss.backward, nullcontext())
        segmenter.zero_grad(set_to_none=True)
        timed("answer", lambda p=perception: model.predict(batch, p), torch.no_grad())
    return {k: 1000 * median(v[1:]) / images for k, v in phases.items()}


def print_tables(results: dict[str, Any]) -> None:
    """Prints the results as Markdown."""
    print("| what adapts | ms an image | ratio to plain (lowest, highest) | memory beyond plain |")
    print("|---|---:|---:|---:|")
    for name, row in results["variants"].items():
        more = results.get("memory", {}).get(name, {}).get("more_megabytes")
        memory = "" if more is None else f"{more:.0f} MB"
        ratio = f"{row['ratio']:.2f} ({row['lowest_ratio']:.2f}, {row['highest_ratio']:.2f})"
        print(f"| {name} | {row['milliseconds_per_image']:.1f} | {ratio} | {memory} |")
    names = list(results["phases"]["segmenter"])
    print("\n| phase, ms an image | " + " | ".join(results["phases"]) + " |")
    print("|---" + "|---:" * len(results["phases"]) + "|")
    for name in names:
        cells = [f"{phases[name]:.1f}" for phases in results["phases"].values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


def _run_alone(variant: str, config_file: str, opts: list[str], images: int, answer: Any) -> None:
    torch.set_num_threads(1)
    model, size = make_model(config_file, opts)
    batch = make_batch(images, size)
    plain(model, batch)
    before = peak_megabytes()
    adaptation = TestTimeAdaptation(model, **VARIANTS[variant])
    for _ in range(3):
        adapted(adaptation, batch)
    answer.put((before, peak_megabytes() - before))


def measure_memory(config_file: str, opts: list[str], images: int) -> dict[str, dict[str, float]]:
    """Peak megabytes of plain inference, and by how much each variant exceeds it."""
    context = multiprocessing.get_context("spawn")
    table = {}
    for variant in VARIANTS:
        answer = context.Queue()
        process = context.Process(
            target=_run_alone, args=(variant, config_file, opts, images, answer)
        )
        process.start()
        peak, more = answer.get(timeout=600)
        process.join()
        table[variant] = {"plain_megabytes": peak, "more_megabytes": more}
    return table


def main() -> None:
    """Measures, prints, writes."""
    parser = parser_of(__doc__)
    default = str(Path(__file__).parents[2] / "configs" / "quick" / "loupe_adapt.yaml")
    parser.add_argument("--config-file", default=default)
    parser.add_argument("--batch", type=int, default=16, help="images in one step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-memory", action="store_true", help="measure time only")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the configuration")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    common = (arguments.config_file, arguments.opts, arguments.batch)
    config_name = Path(arguments.config_file)
    results: dict[str, Any] = {
        **machine(),
        "torch": torch.__version__,
        "threads": 1,
        "rounds": arguments.rounds,
        "config": "/".join(config_name.parts[-2:]),
        "images_per_step": arguments.batch,
        "variants": measure_variants(*common, arguments.rounds),
        "phases": {
            name: measure_phases(*common, arguments.rounds, name) for name in ("segmenter", "norms")
        },
    }
    if not arguments.no_memory:
        results["memory"] = measure_memory(*common)
    print_tables(results)
    write_results(results, arguments.output)


if __name__ == "__main__":
    main()
