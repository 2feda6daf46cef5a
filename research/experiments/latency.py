"""Seconds and peak memory of one system in a process of its own, with random weights.

    python -m experiments.latency SYSTEM --repeats 2        # from the repository's folder

Prints JSON. Float32, one image, `OMP_NUM_THREADS` threads. Memory is the process' peak (resident),
which counts Python, PyTorch and the weights; steps go from the frugal to the costly, so each has
its own peak.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from loupe.adaptation import adapt_and_evaluate
from loupe.adaptation.runs import adaptation_of
from loupe.ops import use_fast_linear
from research.experiments.cost import ENCODERS, build_loupe, loupe_config
from research.experiments.rivals import (
    IMAGE_TOKENS,
    LLAMA,
    QUESTION_TOKENS,
    SAM_SIDE,
    LlamaLayer,
    SamBased,
)

SYSTEMS = (*ENCODERS, "sam-base", "sam-large", "sam-huge", "llama-layer")
LOUPE_SIDE = 336

Step = tuple[str, Callable[[], object]]


class Nobody(DatasetEvaluator):
    """Looks at no answer."""

    def evaluate(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def loupe_steps(size: str) -> Iterator[Step]:
    """Classifying only, plain prediction, adapting to the image and predicting it."""
    model = build_loupe(size)
    convince(model.classifier)
    side = LOUPE_SIDE
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    item = {"image": image, "valid_size": (side, side), "height": side, "width": side}
    item |= {"file_name": "random", "image_id": "random"}

    @torch.no_grad()
    def classify() -> None:
        model.perceive([item])

    @torch.no_grad()
    def predict() -> None:
        model([item])

    yield f"Loupe PE-{size}, classifier only", classify
    yield f"Loupe PE-{size}", predict
    cfg = loupe_config(size, ["ADAPTATION.MODE", "online", "ADAPTATION.IMS_PER_BATCH", "1"])
    adaptation = adaptation_of(cfg, model)

    def adapt() -> None:
        adapt_and_evaluate(cfg, adaptation, [[item]], Nobody())

    yield f"Loupe PE-{size}, adapting to each image", adapt


@torch.no_grad()
def convince(classifier: nn.Module) -> None:
    """Makes the verdict "forged", so that adaptation has a mask to learn."""
    classifier.image_head[-1].bias.fill_(4.0)
    classifier.fusion.weight.zero_()
    classifier.fusion.weight[0, 0] = 1.0


def sam_steps(size: str) -> Iterator[Step]:
    """SAM's encoder and decoder."""
    model = SamBased(size).eval()
    use_fast_linear(model)
    images = torch.rand(1, 3, SAM_SIDE, SAM_SIDE)

    @torch.no_grad()
    def predict() -> None:
        model(images)

    yield f"SAM ViT-{size[0].upper()}", predict


def language_steps() -> Iterator[Step]:
    """One of LLaMA-7B's 32 equal layers, on the prompt."""
    layer = LlamaLayer(LLAMA["dim"], LLAMA["heads"], LLAMA["hidden"]).eval()
    use_fast_linear(layer)
    tokens = torch.randn(1, IMAGE_TOKENS + QUESTION_TOKENS, LLAMA["dim"])

    @torch.no_grad()
    def read() -> None:
        layer(tokens)

    yield "LLaMA-7B, one layer of 32", read


def steps_of(system: str) -> Iterator[Step]:
    """What a system does, each step ready to be called."""
    if system in ENCODERS:
        return loupe_steps(system)
    if system == "llama-layer":
        return language_steps()
    return sam_steps(system.removeprefix("sam-"))


def measure(system: str, repeats: int) -> list[dict[str, Any]]:
    """Seconds and CPU seconds of each repeat of a step (after one not counted), peak memory.

    With one thread CPU seconds are what a quiet machine would take, whatever else runs.
    """
    torch.manual_seed(0)
    results = []
    for name, step in steps_of(system):
        seconds, processor = [], []
        for _ in range(repeats + 1):
            start, start_processor = time.perf_counter(), time.process_time()
            step()
            seconds.append(time.perf_counter() - start)
            processor.append(time.process_time() - start_processor)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        result = {"system": name, "seconds": seconds[1:], "cpu_seconds": processor[1:]}
        results.append(result | {"peak_memory_gb": memory})
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    print(json.dumps(measure(arguments.system, arguments.repeats)))
