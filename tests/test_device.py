"""Devices and precisions."""

from __future__ import annotations

import ctypes
import platform

import pytest
import torch

from srcli.memory import keep_large_blocks
from srcli.networks.device import cast, in_float32, layout_for


def test_half_precision_comes_back_bit_for_bit_from_float32() -> None:
    network = cast(torch.nn.Conv2d(3, 8, 3), torch.bfloat16)
    before = network.weight.clone()
    with in_float32(network) as exact:
        assert exact.weight.dtype == torch.float32
        assert exact.weight.is_contiguous()
    assert torch.equal(network.weight, before)
    assert network.weight.is_contiguous(memory_format=layout_for(torch.bfloat16))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_blocks_are_kept_where_the_c_library_can() -> None:
    assert keep_large_blocks()
    assert ctypes.CDLL(None).mallopt(-3, 128 << 10)  # as it was
