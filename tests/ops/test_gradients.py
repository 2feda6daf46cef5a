from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from loupe.ops import ms_deform_attn, ms_deform_attn_fused
from loupe.ops.reference import ms_deform_attn_fused_reference, ms_deform_attn_reference
from tests.ops.conftest import needs_compiled_cpu
from tests.ops.problems import SIZES, Problem, make_problem

TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}
SMALL = [(3, 4), (2, 2)]


def plain_inputs(problem: Problem) -> list[torch.Tensor]:
    return [tensor.requires_grad_() for tensor in (problem.value, *problem.plain[2:])]


def fused_inputs(problem: Problem) -> list[torch.Tensor]:
    return [tensor.requires_grad_() for tensor in (problem.value, *problem.fused[2:])]


def gradients(function, problem_inputs, shapes, dtype=torch.float32) -> list[torch.Tensor]:
    inputs = [tensor.detach().clone().requires_grad_() for tensor in problem_inputs]
    output = function(inputs[0], shapes, *inputs[1:])
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    # Rounded alike for both sides of a comparison.
    return list(torch.autograd.grad(output, inputs, direction.to(dtype).to(output.dtype)))


def assert_same_gradients(function, truth, inputs, shapes, dtype) -> None:
    results = gradients(function, inputs, shapes, dtype)
    expected = gradients(truth, [tensor.double() for tensor in inputs], shapes, dtype)
    for result, wanted in zip(results, expected, strict=True):
        scale = wanted.abs().max().clamp_min(1e-12)
        assert ((result.double() - wanted).abs().max() / scale).item() < TOLERANCE[dtype]


def test_gradcheck_of_both_forms(cpu_kernels):
    problem = make_problem(SMALL, queries=3, heads=2, channels=3)
    assert gradcheck(lambda v, *p: ms_deform_attn(v, SMALL, *p), plain_inputs(problem))
    assert gradcheck(lambda v, *p: ms_deform_attn_fused(v, SMALL, *p), fused_inputs(problem))


def test_gradcheck_of_plain_pytorch():
    problem = make_problem(SMALL, batch=1, queries=3, heads=2, channels=3)
    function = ms_deform_attn_fused_reference
    assert gradcheck(lambda v, *p: function(v, SMALL, *p), fused_inputs(problem))


@pytest.mark.parametrize("spoiled", range(4))
def test_gradcheck_notices_a_gradient_that_is_zero(spoiled):
    class Zeroed(torch.autograd.Function):
        @staticmethod
        def forward(tensor):
            return tensor.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, gradient):
            return torch.zeros_like(gradient)

    def function(*inputs):
        inputs = [Zeroed.apply(t) if i == spoiled else t for i, t in enumerate(inputs)]
        return ms_deform_attn_fused(inputs[0], SMALL, *inputs[1:])

    problem = make_problem(SMALL, queries=3, heads=2, channels=3)
    assert not gradcheck(function, fused_inputs(problem), raise_exception=False)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_equal_those_of_plain_pytorch_in_float64(cpu_kernels, dtype):
    for size in SIZES.values():
        problem = make_problem(**size, dtype=dtype)
        plain, fused = plain_inputs(problem), fused_inputs(problem)
        forms = {
            ms_deform_attn: (ms_deform_attn_reference, plain),
            ms_deform_attn_fused: (ms_deform_attn_fused_reference, fused),
        }
        for function, (truth, inputs) in forms.items():
            assert_same_gradients(function, truth, inputs, problem.shapes, dtype)


def test_a_location_that_is_no_number_gets_no_gradient_and_spreads_none(cpu_kernels):
    problem = make_problem([(5, 4)], queries=30, channels=32, points=4, dtype=torch.float32)
    problem.locations[:, 3, 1, 0, 2, 1] = float("nan")
    value, locations, weights = gradients(ms_deform_attn, plain_inputs(problem), problem.shapes)
    assert value.isfinite().all()
    assert locations.isfinite().all()
    assert weights.isfinite().all()
    assert locations[:, 3, 1, 0, 2].abs().max() == 0


def test_an_expanded_gradient_of_the_output_is_read_by_its_strides():
    problem = make_problem(SMALL)
    inputs = plain_inputs(problem)
    output = ms_deform_attn(inputs[0], SMALL, *inputs[1:])
    expanded = torch.autograd.grad(output.sum(), inputs, retain_graph=True)  # stride 0
    dense = torch.autograd.grad(output, inputs, torch.ones_like(output))
    assert all(map(torch.equal, expanded, dense))


@needs_compiled_cpu
def test_a_second_derivative_is_refused_in_words():
    problem = make_problem(SMALL)
    inputs = plain_inputs(problem)
    output = ms_deform_attn(inputs[0], SMALL, *inputs[1:])
    (first,) = torch.autograd.grad(output.sum(), inputs[1], create_graph=True)
    with pytest.raises(NotImplementedError, match="LOUPE_OPS=pytorch"):
        first.sum().backward()


@pytest.mark.skipif(
    torch.__version__.startswith(("2.4", "2.5")), reason="grid_sample has none in this torch"
)
def test_plain_pytorch_has_a_second_derivative():
    problem = make_problem(SMALL, batch=1, queries=2, heads=1, channels=2)
    value, locations, weights = plain_inputs(problem)
    assert torch.autograd.gradgradcheck(
        lambda v, w: ms_deform_attn_reference(v, SMALL, locations.detach(), w), (value, weights)
    )


@needs_compiled_cpu
@pytest.mark.parametrize("queries", [5, 700])
def test_results_and_gradients_are_equal_bit_for_bit_whatever_the_threads(cpu_kernels, queries):
    sizes = {"queries": queries, "batch": 1, "channels": 32, "points": 4}
    problem = make_problem([(12, 12), (7, 5), (3, 3)], **sizes, dtype=torch.float32)
    inputs = fused_inputs(problem)

    def everything(number: int) -> list[torch.Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        output = ms_deform_attn_fused(inputs[0], problem.shapes, *inputs[1:])
        result = [output, *torch.autograd.grad(output.square().sum(), inputs)]
        torch.set_num_threads(before)
        return result

    for threads in (2, 3, 7):
        assert all(map(torch.equal, everything(1), everything(threads)))
