from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from loupe.ops import ms_deform_attn, ms_deform_attn_fused
from tests.ops.conftest import needs_compiled_cpu
from tests.ops.problems import make_problem

SHAPES = [(6, 4), (3, 5), (2, 2)]
FLAT = [6, 4, 3, 5, 2, 2]


class Layer(torch.nn.Module):
    """Both forms in one graph."""

    def forward(self, value, locations, weights, reference, offsets, logits):
        plain = ms_deform_attn(value, SHAPES, locations, weights)
        return plain * ms_deform_attn_fused(value, SHAPES, reference, offsets, logits)


def layer_inputs(**sizes) -> tuple[torch.Tensor, ...]:
    sizes = {"channels": 32, "points": 4, "dtype": torch.float32} | sizes
    problem = make_problem(SHAPES, **sizes)
    return (problem.value, *problem.plain[2:], *problem.fused[2:])


@needs_compiled_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck_of_both_forms(dtype):
    problem = make_problem(SHAPES, dtype=dtype)
    operators = torch.ops.loupe
    for operator, points in (
        (operators.ms_deform_attn, problem.plain[2:]),
        (operators.ms_deform_attn_fused, problem.fused[2:]),
    ):
        value, *rest = (tensor.clone().requires_grad_() for tensor in (problem.value, *points))
        torch.library.opcheck(operator.default, (value, FLAT, *rest))


@needs_compiled_cpu
def test_opcheck_of_the_backward_operators():
    problem = make_problem(SHAPES)
    gradient = torch.randn(2, 7, 15, dtype=torch.float64)
    operators = torch.ops.loupe
    torch.library.opcheck(
        operators.ms_deform_attn_backward.default,
        (gradient, problem.value, FLAT, problem.locations, problem.weights, False),
    )
    torch.library.opcheck(
        operators.ms_deform_attn_fused_backward.default,
        (gradient, problem.value, FLAT, *problem.fused[2:], True),
    )


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph_with_the_same_result_and_gradients(backend):
    compiled = torch.compile(Layer(), fullgraph=True, backend=backend)
    results = []
    for layer in (Layer(), compiled):
        inputs = [tensor.requires_grad_() for tensor in layer_inputs()]
        output = layer(*inputs)
        results.append([output, *torch.autograd.grad(output.sum(), inputs)])
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected)


def test_one_compiled_graph_serves_every_batch_size():
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(Layer(), fullgraph=True, backend=counter, dynamic=True)
    for batch in (11, 13, 5):  # sizes that no other axis has: dynamo takes equal ones for one
        assert compiled(*layer_inputs(batch=batch)).shape[0] == batch
    assert counter.frame_count == 1


def test_exports_and_runs_with_another_batch_size():
    batch = torch.export.Dim("batch", min=2, max=64)
    inputs = layer_inputs()
    exported = torch.export.export(
        Layer(), inputs, dynamic_shapes=[{0: batch}] * len(inputs), strict=False
    )
    other = layer_inputs(batch=4, seed=3)
    torch.testing.assert_close(exported.module()(*other), Layer()(*other))


def test_runs_on_the_meta_device():
    inputs = [tensor.to("meta") for tensor in layer_inputs()]
    assert Layer()(*inputs).shape == (2, 7, 96)


@pytest.mark.parametrize("function", ["plain", "fused"])
def test_autocast_rounds_neither_positions_nor_weights(function):
    value, locations, weights, *fused = layer_inputs()
    value = value.bfloat16()
    call = {
        "plain": lambda: ms_deform_attn(value, SHAPES, locations, weights),
        "fused": lambda: ms_deform_attn_fused(value, SHAPES, *fused),
    }[function]
    expected = call()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = call()
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, expected)


@needs_compiled_cpu
def test_autocast_lifts_what_the_raw_operator_would_refuse():
    value, locations, weights, *_ = layer_inputs()
    rounded = locations.bfloat16(), weights.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = torch.ops.loupe.ms_deform_attn(value, FLAT, *rounded)
    expected = ms_deform_attn(value, SHAPES, *rounded)
    assert torch.equal(result, expected)


def test_half_precision_offsets_keep_their_dtype_in_the_gradient():
    value, _, _, reference, offsets, logits = layer_inputs()
    offsets = offsets.bfloat16().requires_grad_()
    ms_deform_attn_fused(value, SHAPES, reference, offsets, logits).sum().backward()
    assert offsets.grad is not None
    assert offsets.grad.dtype == torch.bfloat16
