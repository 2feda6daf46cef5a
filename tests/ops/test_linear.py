"""Linear layers by oneDNN: the same results and gradients, only where they were asked for."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from loupe.config import load_config
from loupe.ops import linear
from loupe.ops.linear import FastLinear, LinearBackend, use_fast_linear
from tests.ops.test_backends import run_python

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """OneDNN on any processor, for layers of any size."""
    monkeypatch.setattr(linear, "LINEAR_BACKEND", LinearBackend(True, "the test asks for it"))
    monkeypatch.setattr(linear, "SMALLEST", 0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes that went to oneDNN."""
    seen: list[torch.Size] = []
    multiply = linear._multiply
    monkeypatch.setattr(
        linear, "_multiply", lambda x, *rest: seen.append(x.shape) or multiply(x, *rest)
    )
    return seen


def pair(inputs: int, outputs: int, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(inputs, outputs, bias=bias)
    turned = copy.deepcopy(plain)
    assert use_fast_linear(turned) == 1
    return plain, turned


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (1, 24), (2, 3, 4, 24), (24,)])
def test_values_and_gradients_are_those_of_torch(fast: None, shape: tuple[int, ...], bias: bool):
    plain, turned = pair(24, 10, bias)
    x = torch.randn(shape)
    results = []
    for layer in (plain, turned):
        given = x.clone().requires_grad_()
        output = layer(given)
        output.square().sum().backward()
        results.append([output, given.grad, *(p.grad for p in layer.parameters())])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_empty_batch_goes_the_usual_way(monkeypatch: pytest.MonkeyPatch, calls: list):
    monkeypatch.setattr(linear, "LINEAR_BACKEND", LinearBackend(True, "the test asks for it"))
    _, turned = pair(24, 10)
    assert turned(torch.randn(0, 24)).shape == (0, 10)
    assert not calls


def test_strided_inputs_and_expanded_gradients_are_read_right(fast: None):
    plain, turned = pair(24, 10)
    x = torch.randn(24, 6, 3).permute(2, 1, 0)
    given = [x.clone().requires_grad_() for _ in range(2)]
    (plain(given[0]).sum() + turned(given[1]).sum()).backward()
    torch.testing.assert_close(given[1].grad, given[0].grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-5)


def test_a_frozen_weight_gets_no_gradient_and_costs_none(fast: None, calls: list):
    _, turned = pair(24, 10)
    turned.requires_grad_(False)
    x = torch.randn(5, 24, requires_grad=True)
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        output = turned(x)
    output.sum().backward()
    assert turned.weight.grad is None
    assert len(calls) == 2
    assert kept == [turned.weight.shape]


def test_names_hooks_and_type_survive(fast: None):
    plain, turned = pair(24, 10)
    assert isinstance(turned, nn.Linear)
    assert list(turned.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(turned.state_dict())
    seen = []
    turned.register_forward_hook(lambda layer, given, output: seen.append(output.shape))
    turned(torch.randn(5, 24))
    assert seen == [torch.Size([5, 10])]


def test_a_turned_layer_can_be_copied_and_sent(fast: None):
    _, turned = pair(24, 10)
    x = torch.randn(5, 24)
    for twin in (copy.deepcopy(turned), pickle.loads(pickle.dumps(turned))):
        assert type(twin) is FastLinear
        assert torch.equal(twin(x), turned(x))


def test_a_turned_layer_follows_the_decision_of_the_process_it_is_in(
    fast: None, calls: list, monkeypatch: pytest.MonkeyPatch
):
    _, turned = pair(24, 10)
    monkeypatch.setattr(linear, "LINEAR_BACKEND", LinearBackend(False, "the test says so"))
    turned(torch.randn(5, 24))
    assert not calls


def test_transforms_of_functions_go_the_usual_way(fast: None, calls: list):
    plain, turned = pair(24, 10)
    x = torch.randn(3, 5, 24)
    torch.testing.assert_close(torch.func.vmap(turned)(x), torch.func.vmap(plain)(x))
    assert not calls


def test_loupe_turns_its_layers(fast: None):
    cfg = load_config("configs/quick/loupe_stage1.yaml")
    cfg.merge_from_list(["MODEL.PERCEPTION_ENCODER.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    assert any(isinstance(layer, FastLinear) for layer in model.backbone.modules())
    assert not any(type(layer) is nn.Linear for layer in model.modules())


def test_attention_of_torch_keeps_its_own_layers(fast: None):
    attention = nn.MultiheadAttention(16, 2)
    assert use_fast_linear(attention) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_go_the_usual_way(fast: None, calls: list, dtype: torch.dtype):
    _, turned = pair(24, 10)
    turned.to(dtype)(torch.randn(5, 24, dtype=dtype))
    assert not calls


def test_autocast_goes_the_usual_way(fast: None, calls: list):
    _, turned = pair(24, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert turned(torch.randn(5, 24)).dtype == torch.bfloat16
    assert not calls


def test_small_products_go_the_usual_way(monkeypatch: pytest.MonkeyPatch, calls: list):
    monkeypatch.setattr(linear, "LINEAR_BACKEND", LinearBackend(True, "the test asks for it"))
    layer = nn.Linear(256, 256)
    use_fast_linear(layer)
    layer(torch.randn(63, 256))
    assert not calls
    layer(torch.randn(64, 256))
    assert calls == [torch.Size([64, 256])]


def test_a_second_derivative_is_an_error_and_not_silently_zero(fast: None):
    _, turned = pair(24, 10)
    x = torch.randn(5, 24, requires_grad=True)
    (first,) = torch.autograd.grad(turned(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_export_sees_a_plain_linear_layer(fast: None, calls: list):
    _, turned = pair(24, 10)
    exported = torch.export.export(turned, (torch.randn(5, 24),))
    assert "linear" in exported.graph_module.code
    assert not calls


def test_nothing_is_turned_where_torch_is_as_fast(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linear, "LINEAR_BACKEND", LinearBackend(False, "the test says so"))
    layer = nn.Linear(24, 10)
    assert use_fast_linear(layer) == 0
    assert not isinstance(layer, FastLinear)


@pytest.mark.parametrize(
    ("request_", "library"), [("torch", "PyTorch's default"), ("onednn", "oneDNN")]
)
def test_the_library_can_be_asked_for(request_: str, library: str):
    result = run_python("import loupe.ops.__main__", LOUPE_LINEAR=request_)
    assert f"{library}; LOUPE_LINEAR={request_} asks for it" in result.stdout


def test_an_unknown_library_is_an_error():
    result = run_python("import loupe.ops", LOUPE_LINEAR="blas")
    assert "LOUPE_LINEAR is 'blas'; set it to 'auto', 'torch' or 'onednn'" in result.stderr


@pytest.mark.parametrize(
    ("vendor", "onednn"), [("AuthenticAMD", True), ("GenuineIntel", False), ("", False)]
)
def test_the_processor_decides(monkeypatch: pytest.MonkeyPatch, vendor: str, onednn: bool):
    if not torch.backends.mkl.is_available():
        pytest.skip("this torch multiplies without MKL")
    monkeypatch.delenv("LOUPE_LINEAR", raising=False)
    monkeypatch.setattr(linear, "_processor_vendor", lambda: vendor)
    assert linear._decide().onednn is onednn
