"""Devices, precisions, compilation."""

from __future__ import annotations

import ctypes
import platform
import shutil

import pytest
import torch

from srcli.errors import ModelError
from srcli.memory import keep_large_blocks
from srcli.networks.device import cast, compiled, in_float32, layout_for


def test_half_precision_comes_back_bit_for_bit_from_float32() -> None:
    network = cast(torch.nn.Conv2d(3, 8, 3), torch.bfloat16)
    before = network.weight.clone()
    with in_float32(network) as exact:
        assert exact.weight.dtype == torch.float32
        assert exact.weight.is_contiguous()
    assert torch.equal(network.weight, before)
    assert network.weight.is_contiguous(memory_format=layout_for(torch.bfloat16))


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler here")
def test_a_compiled_function_computes_the_same() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).sin() + 1

    x = torch.rand(5)
    assert torch.allclose(compiled(function)(x), function(x))


def test_without_a_compiler_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as config

    monkeypatch.setattr(config.cpp, "cxx", ("/nonexistent/g++",))
    monkeypatch.setattr(config, "force_disable_caches", True)
    torch._dynamo.reset()
    with pytest.raises(ModelError, match="cannot be compiled") as caught:
        compiled(lambda x: (x * 3).cos() - 1)(torch.rand(7))
    assert "--compile" in caught.value.hint


def test_other_faults_of_a_compiled_function_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda function: function)
    with pytest.raises(torch.OutOfMemoryError):
        compiled(fails)(torch.rand(3))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_blocks_are_kept_where_the_c_library_can() -> None:
    assert keep_large_blocks()
    assert ctypes.CDLL(None).mallopt(-3, 128 << 10)  # as it was
