from __future__ import annotations

import pytest
import torch

from loupe.ops import ms_deform_attn, ms_deform_attn_fused
from loupe.ops.reference import ms_deform_attn_fused_reference, ms_deform_attn_reference
from tests.ops.conftest import needs_compiled_cpu, run_python
from tests.ops.oracle import attention_oracle, fused_oracle
from tests.ops.problems import SIZES, make_problem

# Of the largest value of the result: a few units in the last place of what is added up.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 4e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}


def relative_error(result: torch.Tensor, truth: torch.Tensor) -> float:
    return ((result.double() - truth).abs().max() / truth.abs().max()).item()


def test_plain_pytorch_equals_the_oracle():
    for name, size in SIZES.items():
        problem = make_problem(**size)
        plain = ms_deform_attn_reference(*problem.plain)
        fused = ms_deform_attn_fused_reference(*problem.fused)
        assert relative_error(plain, attention_oracle(*problem.plain)) < 1e-14, name
        assert relative_error(fused, fused_oracle(*problem.fused)) < 1e-14, name


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_compiled_kernels_equal_the_oracle(cpu_kernels, dtype):
    for name, size in SIZES.items():
        problem = make_problem(**size, dtype=dtype)
        plain, fused = ms_deform_attn(*problem.plain), ms_deform_attn_fused(*problem.fused)
        assert plain.dtype == fused.dtype == dtype
        tolerance = TOLERANCE[dtype]
        assert relative_error(plain, attention_oracle(*problem.plain)) < tolerance, name
        assert relative_error(fused, fused_oracle(*problem.fused)) < tolerance, name


def test_a_point_on_a_pixel_centre_reads_that_pixel():
    value = torch.arange(12, dtype=torch.float32).reshape(1, 12, 1, 1)
    centres = torch.tensor([[(x + 0.5) / 4, (y + 0.5) / 3] for y in range(3) for x in range(4)])
    locations = centres.reshape(1, 12, 1, 1, 1, 2)
    result = ms_deform_attn(value, [(3, 4)], locations, torch.ones(1, 12, 1, 1, 1))
    torch.testing.assert_close(result.flatten(), value.flatten())


def test_a_point_on_the_outer_edge_reads_half_a_pixel():
    locations = torch.tensor([[0.0, 0.25], [1.0, 0.75], [0.0, 0.0]]).reshape(1, 3, 1, 1, 1, 2)
    value = torch.ones(1, 4, 1, 1)
    result = ms_deform_attn(value, [(2, 2)], locations, torch.ones(1, 3, 1, 1, 1))
    torch.testing.assert_close(result.flatten(), torch.tensor([0.5, 0.5, 0.25]))


def test_points_beyond_the_border_read_zero():
    far = torch.tensor([-0.26, 1.26, -1e9, 1e9, 1e38])  # at -0.25 the last pixel is one pixel away
    locations = torch.stack([far, torch.full_like(far, 0.5)], -1).reshape(1, 5, 1, 1, 1, 2)
    result = ms_deform_attn(torch.ones(1, 4, 1, 1), [(2, 2)], locations, torch.ones(1, 5, 1, 1, 1))
    assert result.abs().max() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_location_that_is_no_number_reads_zero_and_spreads_nothing(bad):
    problem = make_problem([(5, 4)], queries=30, channels=32, points=4, dtype=torch.float32)
    spoiled = problem.locations.clone()
    spoiled[:, 3, 1, 0, 2, 1] = bad
    silent = problem.weights.clone()
    silent[:, 3, 1, 0, 2] = 0
    result = ms_deform_attn(problem.value, problem.shapes, spoiled, problem.weights)
    expected = ms_deform_attn(problem.value, problem.shapes, problem.locations, silent)
    torch.testing.assert_close(result, expected)


def test_a_spoiled_pixel_reaches_only_points_that_touch_it():
    problem = make_problem([(4, 4)], queries=20, channels=32, dtype=torch.float32)
    inside = problem.locations.clamp(0.4, 0.6)  # the corner pixel is not among their neighbours
    inside[:, ::2] = 7.0  # and outside points read no pixel at all
    value = problem.value.clone()
    value[:, [0, 3, 12, 15]] = float("nan")
    assert ms_deform_attn(value, problem.shapes, inside, problem.weights).isfinite().all()


@needs_compiled_cpu
def test_a_weight_that_is_no_number_is_not_hidden():
    problem = make_problem([(4, 4)], queries=20, channels=32, dtype=torch.float32)
    problem.weights[0, 5, 1, 0, 0] = float("nan")
    for locations in (problem.locations, torch.full_like(problem.locations, 9.0)):
        result = ms_deform_attn(problem.value, problem.shapes, locations, problem.weights)
        assert result[0, 5, 32:64].isnan().all()
        assert result.isnan().sum() == 32


def test_softmax_stands_very_large_and_very_unequal_logits():
    problem = make_problem([(5, 4)], queries=40, channels=32, points=4, dtype=torch.float32)
    logits = problem.logits * 200 + 5000
    arguments = (problem.value, problem.shapes, problem.reference, problem.offsets)
    result = ms_deform_attn_fused(*arguments, logits)
    truth = ms_deform_attn_fused_reference(
        problem.value.double(), problem.shapes, problem.reference, problem.offsets, logits.double()
    )
    assert relative_error(result, truth) < 1e-5


@pytest.mark.parametrize(("batch", "queries"), [(0, 7), (2, 0)])
def test_nothing_in_gives_nothing_out(batch, queries):
    problem = make_problem([(3, 4)], batch=batch, queries=queries, dtype=torch.float32)
    value = problem.value.requires_grad_()
    result = ms_deform_attn(value, *problem.plain[1:])
    result.sum().backward()
    assert result.shape == (batch, queries, 15)
    assert value.grad is not None
    assert value.grad.shape == value.shape
    assert value.grad.abs().sum() == 0


def test_tensors_that_are_not_contiguous_are_read_by_their_strides():
    problem = make_problem([(4, 3), (2, 2)], queries=11)
    strided = (
        problem.value.transpose(1, 3).contiguous().transpose(1, 3),
        problem.shapes,
        problem.locations.transpose(1, 4).contiguous().transpose(1, 4),
        problem.weights[:1].expand(2, -1, -1, -1, -1),
    )
    truth = attention_oracle(*strided)
    assert relative_error(ms_deform_attn(*strided), truth) < 1e-14


def test_a_constant_value_comes_out_as_it_went_in():
    problem = make_problem([(6, 6), (3, 3)], queries=12, dtype=torch.float32)
    inside = problem.locations.clamp(0.2, 0.8)
    weights = problem.weights / problem.weights.sum((-2, -1), keepdim=True)
    result = ms_deform_attn(torch.full_like(problem.value, 2.5), problem.shapes, inside, weights)
    torch.testing.assert_close(result, torch.full_like(result, 2.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p.value[:, 1:], *p.plain[1:]), "11 pixels, but the levels"),
        (lambda p: (p.value, [(-3, -4)], *p.plain[2:]), "at least 1"),
        (lambda p: (p.value, [(2**62, 4)], *p.plain[2:]), "but the levels"),
        (lambda p: (*p.plain[:2], p.locations[:1], p.weights), "locations is"),
        (lambda p: (*p.plain[:3], p.weights.flatten(3)), "weights is"),
        (lambda p: (*p.plain[:3], p.weights.to("meta")), "weights is on meta"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message):
    problem = make_problem([(3, 4)])
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*change(problem))


# What the raw operators refuse: sizes that would read foreign memory, and products that overflow.
# In a process of its own, so that a crash is a failure and not the end of all tests.
HOSTILE = """
import torch
import loupe.ops
forward, backward = torch.ops.loupe.ms_deform_attn, torch.ops.loupe.ms_deform_attn_backward
value, places = torch.zeros(1, 12, 1, 2), torch.zeros(1, 3, 1, 1, 1, 2)
weights = torch.zeros(1, 3, 1, 1, 1)
levels = places.expand(1, 3, 1, 2, 1, 2), weights.expand(1, 3, 1, 2, 1)
none = torch.zeros(1, 0, 2)
many = torch.zeros(1, 0, 1, 1, 2**40, 2), torch.zeros(1, 0, 1, 1, 2**40)
calls = {
    "too few": lambda: forward(value, [3, 3], places, weights),
    "too many": lambda: forward(value, [3, 5], places, weights),
    "negative": lambda: forward(value, [-3, -4], places, weights),
    "overflow to 0": lambda: forward(value, [2**62, 4], places, weights),
    "overflow to 0 and 12": lambda: forward(value, [2**62, 4, 3, 4], *levels),
    "overflow below 0": lambda: forward(value, [2**32, 2**31, 3, 4], *levels),
    "no image": lambda: forward(
        torch.zeros(0, 2**62, 1, 1), [2**62, 1], places[:0], weights[:0]
    ),
    "no query": lambda: forward(value, [3, 4], *many),
    "no query, backward": lambda: backward(none, value, [3, 4], *many, False),
    "heads": lambda: forward(value, [3, 4], places.expand(1, 3, 2, 1, 1, 2), weights),
    "type": lambda: forward(value, [3, 4], places.bfloat16(), weights),
    "queries": lambda: forward(value, [3, 4], places, weights[:, 1:]),
    "axes": lambda: forward(value, [3, 4], places, weights.flatten()),
}
for name, call in calls.items():
    try:
        call()
        print("accepted:", name)
    except RuntimeError:
        pass
print("done")
"""


@needs_compiled_cpu
def test_the_raw_operator_refuses_what_would_read_foreign_memory():
    result = run_python(HOSTILE)
    assert result.stdout == "done\n", (result.returncode, result.stdout, result.stderr)
