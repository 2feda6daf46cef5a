"""Counts against published ones, and against what the CPU is seen to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from loupe.modeling.deformable_attention import DeformableAttention
from research.experiments.cost import build_loupe, loupe_costs, operations_of, rival_costs
from research.experiments.cost_report import LAYER, as_json, draw, table_text
from research.experiments.latency import convince


@pytest.fixture(scope="module")
def rivals() -> dict:
    return {cost.system: cost for cost in rival_costs()}


@pytest.fixture(scope="module")
def small() -> list:
    return loupe_costs("T")


@pytest.mark.parametrize(
    ("system", "millions"), [("SAM ViT-B", 93.7), ("SAM ViT-L", 312.3), ("SAM ViT-H", 641.1)]
)
def test_sam_has_the_published_number_of_parameters(rivals: dict, system: str, millions: float):
    assert rivals[system].parameters / 1e6 == pytest.approx(millions, rel=0.01)


def test_llava_has_the_published_number_of_parameters(rivals: dict):
    # 6.74 thousand millions of LLaMA, 0.30 of CLIP, 0.02 of the projector.
    assert rivals["LLaVA-7B"].parameters / 1e9 == pytest.approx(7.06, rel=0.01)


def test_a_prompt_costs_two_operations_for_each_parameter_and_token(rivals: dict):
    tokens = 576 + 64 + 31
    assert rivals["LLaVA-7B"].operations == pytest.approx(2 * 6.6e9 * tokens, rel=0.1)


def test_loupe_counts_are_those_of_its_modules(small: list):
    model = build_loupe("T", "meta")
    assert small[1].parameters == sum(p.numel() for p in model.parameters())
    assert [cost.operations for cost in small] == sorted(cost.operations for cost in small)


def test_learning_costs_two_to_three_times_the_segmenters_answer(small: list):
    watching, plain, adapted = (cost.operations for cost in small)
    answer = plain - watching
    # Forward and backward on top of the answer; no gradient goes into the encoder.
    assert 2.5 < (adapted - plain) / answer < 3.1


def test_the_sampling_is_counted_once_for_every_sampled_number():
    with torch.device("meta"):
        attention = DeformableAttention(dim=32, num_heads=4, num_levels=2, num_points=4)
        attention.requires_grad_(False)
        query, value = torch.empty(1, 6, 32), torch.empty(1, 20, 32)
        reference = torch.empty(1, 6, 2, 2)
    shapes = [(4, 4), (2, 2)]
    found = operations_of(lambda: attention(query, reference, value, shapes), attention)
    products = 2 * 32 * (6 * (64 + 32 + 32) + 20 * 32)
    assert found == products + 10 * 6 * 32 * 2 * 4


def test_the_backward_pass_of_a_depthwise_convolution_knows_its_groups():
    with torch.device("meta"):
        convolution = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        image = torch.empty(1, 8, 5, 5, requires_grad=True)
    forward = 2 * 8 * 9 * 25
    found = operations_of(lambda: convolution(image).sum().backward(), convolution)
    assert found == 3 * forward


def test_a_convinced_classifier_calls_noise_forged():
    model = build_loupe("T", options=["INPUT.SIZE", "64", "MODEL.PERCEPTION_ENCODER.DEPTH", "1"])
    convince(model.classifier)
    with torch.no_grad():
        verdict = model.classifier(**model.backbone(torch.randn(2, 3, 64, 64)))
    assert (verdict.image_logits > 0).all()


def test_the_table_says_what_was_measured_and_leaves_the_rest_open(small: list, tmp_path: Path):
    entry = {"median_seconds": 2.0, "median_cpu_seconds": 1.5, "peak_memory_gb": 1.0}
    measured = {small[1].system: entry | {"threads": 1}, LAYER: entry | {"threads": 4}}
    content = as_json(small, measured)
    text = table_text(content)
    assert "| 2.00 | 1.50 | - | 1.00 | 1 |" in text
    assert "| - | - | - | - | - |" in text
    assert "48 s" in text
    draw(content, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").stat().st_size < 150_000


def test_threads_are_said_of_each_measurement_and_not_of_the_machine(small: list):
    entry = {"median_seconds": 2.0, "median_cpu_seconds": 1.5, "peak_memory_gb": 1.0}
    measured = {cost.system: entry | {"threads": n} for cost, n in zip(small, (1, 4), strict=False)}
    content = as_json(small, measured)
    assert "threads" not in content["machine"]
    assert [line.split(" | ")[-1] for line in table_text(content).splitlines()[2:4]] == [
        "1 |",
        "4 |",
    ]
