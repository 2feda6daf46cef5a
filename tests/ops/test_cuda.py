from __future__ import annotations

import pytest
import torch

from loupe.ops import ms_deform_attn, ms_deform_attn_fused
from loupe.ops.backends import runs_compiled
from loupe.ops.reference import ms_deform_attn_fused_reference, ms_deform_attn_reference
from tests.ops.problems import SIZES, Problem, make_problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not runs_compiled("cuda"), reason="the CUDA operator has not been built"),
]

TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}
FORMS = {
    "plain": (ms_deform_attn, ms_deform_attn_reference, lambda p: p.plain),
    "fused": (ms_deform_attn_fused, ms_deform_attn_fused_reference, lambda p: p.fused),
}


def run(function, arguments, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output and gradients of all inputs, on the CPU in float64."""
    value, shapes, *rest = arguments
    inputs = [t.detach().to(device).requires_grad_() for t in (value, *rest)]
    output = function(inputs[0], shapes, *inputs[1:])
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(dtype)
    gradients = torch.autograd.grad(output, inputs, direction.to(device, output.dtype))
    return [tensor.detach().double().cpu() for tensor in (output, *gradients)]


def in_double(arguments) -> tuple:
    return tuple(t.double() if isinstance(t, torch.Tensor) else t for t in arguments)


def assert_close(results, expected, tolerance: float) -> None:
    for result, wanted in zip(results, expected, strict=True):
        scale = wanted.abs().max().clamp_min(1e-12)
        assert ((result - wanted).abs().max() / scale).item() < tolerance


def problem_of(size: dict, dtype: torch.dtype = torch.float32) -> Problem:
    return make_problem(**size, dtype=dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_results_and_gradients_equal_plain_pytorch_in_float64(size, dtype, form):
    function, truth, pick = FORMS[form]
    arguments = pick(problem_of(size, dtype))
    results = run(function, arguments, "cuda", dtype)
    assert_close(results, run(truth, in_double(arguments), "cpu", dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("form", FORMS)
def test_the_gpu_agrees_with_the_cpu(form):
    function, _, pick = FORMS[form]
    arguments = pick(problem_of(SIZES["three levels of four points"]))
    on_cpu, on_gpu = (run(function, arguments, d, torch.float32) for d in ("cpu", "cuda"))
    assert_close(on_gpu, on_cpu, 5e-6)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form):
    function, _, pick = FORMS[form]
    sizes = {"queries": 3, "heads": 2, "channels": 3}
    value, shapes, *rest = pick(make_problem([(3, 4), (2, 2)], **sizes))
    inputs = [t.cuda().requires_grad_() for t in (value, *rest)]
    # Atomic additions in float64 differ in the last place from run to run.
    assert torch.autograd.gradcheck(
        lambda v, *points: function(v, shapes, *points), inputs, nondet_tol=1e-12
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_deterministic_gradients_repeat_bit_for_bit_and_are_right(dtype, form):
    function, truth, pick = FORMS[form]
    sizes = {"queries": 900, "channels": 32, "points": 4}
    arguments = pick(make_problem([(7, 5), (2, 2)], **sizes, dtype=dtype))
    torch.use_deterministic_algorithms(True)
    try:
        results = [run(function, arguments, "cuda", dtype) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(
        torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True)
    )
    assert_close(results[0], run(truth, in_double(arguments), "cpu", dtype), TOLERANCE[dtype])


def test_an_infinite_gradient_is_not_hidden_by_the_deterministic_sum():
    value, shapes, *rest = problem_of(SIZES["odd everything"]).plain
    inputs = [t.cuda().requires_grad_() for t in (value, *rest)]
    torch.use_deterministic_algorithms(True)
    try:
        output = ms_deform_attn(inputs[0], shapes, *inputs[1:])
        gradient = torch.full_like(output, float("inf"))
        (result,) = torch.autograd.grad(output, inputs[:1], gradient)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not result.isfinite().any()


def test_a_location_that_is_no_number_reads_zero_and_gets_no_gradient():
    problem = problem_of(SIZES["three levels of four points"])
    problem.locations[:, 3, 1, 0, 2, 1] = float("nan")
    output, _, locations, _ = run(ms_deform_attn, problem.plain, "cuda", torch.float32)
    assert output.isfinite().all()
    assert locations[:, 3, 1, 0, 2].abs().max() == 0


def test_views_that_begin_between_vectors_are_read_right():
    problem = problem_of(SIZES["three levels of four points"])
    arguments = []
    for tensor in (problem.value, problem.locations, problem.weights):
        storage = torch.empty(tensor.numel() + 1, device="cuda")
        arguments.append(storage[1:].view(tensor.shape).copy_(tensor))
    result = ms_deform_attn(arguments[0], problem.shapes, *arguments[1:]).cpu()
    torch.testing.assert_close(result, ms_deform_attn(*problem.plain), atol=1e-5, rtol=1e-5)


def test_opcheck():
    value, shapes, *rest = problem_of(SIZES["three levels of four points"]).fused
    flat = [size for shape in shapes for size in shape]
    tensors = [tensor.cuda().requires_grad_() for tensor in (value, *rest)]
    torch.library.opcheck(
        torch.ops.loupe.ms_deform_attn_fused.default, (tensors[0], flat, *tensors[1:])
    )


def test_a_call_waits_for_nothing():
    value, shapes, *rest = problem_of(SIZES["three levels of four points"]).fused
    inputs = [tensor.cuda().requires_grad_() for tensor in (value, *rest)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        ms_deform_attn_fused(inputs[0], shapes, *inputs[1:]).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_on_the_second_device_are_computed_there():
    arguments = problem_of(SIZES["three levels of four points"]).plain
    on_second = run(ms_deform_attn, arguments, "cuda:1", torch.float32)
    assert_close(on_second, run(ms_deform_attn, arguments, "cpu", torch.float32), 5e-6)
