from __future__ import annotations

import os

import pytest
import torch

from loupe.ops import BACKENDS, HAS_COMPILED_OP
from tests.ops.conftest import needs_compiled_cpu, run_python, supported_kernels

RUN_ONCE = """
import torch
from loupe.ops import HAS_COMPILED_OP, ms_deform_attn
value, locations = torch.ones(1, 4, 1, 2), torch.full((1, 1, 1, 1, 1, 2), 0.5)
weights = torch.ones(1, 1, 1, 1, 1, requires_grad=True)
output = ms_deform_attn(value, [(2, 2)], locations, weights)
output.sum().backward()
print(HAS_COMPILED_OP, output.flatten().tolist(), weights.grad.item())
"""
WITHOUT_EXTENSION = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if "ops._C" in name else find(name, *rest)
"""


def test_works_without_the_extension_and_warns_once():
    result = run_python(WITHOUT_EXTENSION + RUN_ONCE + RUN_ONCE, LOUPE_OPS="auto")
    assert result.stdout == "False [1.0, 1.0] 2.0\n" * 2, result.stderr
    assert result.stderr.count("UserWarning") == 1
    assert "pip install --no-build-isolation" in result.stderr


def test_plain_pytorch_can_be_asked_for_and_then_does_not_warn():
    result = run_python(RUN_ONCE, LOUPE_OPS="pytorch")
    assert result.stdout == "False [1.0, 1.0] 2.0\n", result.stderr
    assert "UserWarning" not in result.stderr


def test_an_unknown_request_is_an_error():
    result = run_python("import loupe.ops", LOUPE_OPS="fastest")
    assert "LOUPE_OPS is 'fastest'; set it to 'auto' or 'pytorch'" in result.stderr


@needs_compiled_cpu
def test_a_library_that_does_not_load_is_an_error_with_a_remedy(tmp_path):
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"not a library")
    code = f"""
import importlib.util
from types import SimpleNamespace
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    SimpleNamespace(origin={str(broken)!r}) if name.endswith("ops._C") else find(name, *rest)
)
import loupe.ops
"""
    result = run_python(code)
    assert result.returncode != 0
    assert "delete it, or set LOUPE_OPS=pytorch" in result.stderr


def test_the_module_says_which_path_is_taken_and_why():
    result = run_python("import loupe.ops.__main__")
    assert result.returncode == 0, result.stderr
    for device, backend in BACKENDS.items():
        assert f"{device}: " in result.stdout
        assert backend.reason in result.stdout
    assert any(backend.compiled for backend in BACKENDS.values()) == HAS_COMPILED_OP


@needs_compiled_cpu
def test_the_kernels_can_be_named_from_outside():
    result = run_python("import loupe.ops.__main__", LOUPE_CPU_KERNELS="baseline")
    assert "cpu: compiled kernels; baseline kernels: chosen by LOUPE_CPU_KERNELS" in result.stdout


@needs_compiled_cpu
def test_kernels_that_the_processor_lacks_are_refused_by_name():
    with pytest.raises(RuntimeError, match="no kernels named 'avx1024'; it has: baseline"):
        torch.ops.loupe.use_cpu_kernels("avx1024")


@needs_compiled_cpu
def test_the_widest_kernels_are_chosen():
    if "LOUPE_CPU_KERNELS" in os.environ:
        pytest.skip("the environment names the kernels")
    assert torch.ops.loupe.cpu_kernels() == supported_kernels()[-1]


def test_an_older_torch_runs_plain_pytorch_and_says_what_it_lacks():
    code = 'import torch\ntorch.__version__ = "2.9.1"\n' + RUN_ONCE
    result = run_python(code, LOUPE_OPS="auto")
    assert result.stdout == "False [1.0, 1.0] 2.0\n", result.stderr
    assert "need torch 2.10, this is 2.9.1" in result.stderr
