"""Which device and which precision to work with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from srcli.errors import UsageError
from srcli.memory import keep_large_blocks

Network = TypeVar("Network", bound=nn.Module)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU; other names must exist.

    Raises:
        UsageError: the device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            found = f"{count} CUDA device{'s' * (count != 1)}" if count else "no CUDA device"
            raise UsageError(f"there is no `{name}`: torch sees {found}", "use `--device cpu`, or check the driver")
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("there is no `mps` device here", "use `--device cpu`")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` takes bf16 where the hardware multiplies it faster, fp16 on other GPUs, fp32 on other CPUs."""
    if name != "auto":
        return DTYPES[name]
    if bf16_pays(device):
        return torch.bfloat16
    return torch.float32 if device.type == "cpu" else torch.float16


def bf16_pays(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 matrix instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return False


def prepare(device: torch.device) -> None:
    """Set torch up for inference: the same command gives the same bytes (no autotuned kernels, no TF32), at full speed."""
    if device.type == "cpu":
        keep_large_blocks()
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context in which networks compute in a run's precision: `dtype` where torch deems it safe; nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def layout_for(dtype: torch.dtype) -> torch.memory_format:
    """How pictures and weights of convolutions best lie in memory.

    Half precision is fastest channels last. In float32 that gains little, and torch's group norm is less exact there on CPUs
    (relative errors near 1e-4, from a difference of squares).
    """
    return torch.contiguous_format if dtype == torch.float32 else torch.channels_last


def cast(network: Network, dtype: torch.dtype) -> Network:
    """The same network with its weights in `dtype`, and laid out for it."""
    network.to(dtype=dtype, memory_format=layout_for(dtype))  # type: ignore[call-overload]
    return network


def laid_out(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in `dtype`, as `cast` has it."""
    return tensor.to(dtype, memory_format=layout_for(dtype) if tensor.ndim == 4 else torch.preserve_format)


@contextlib.contextmanager
def in_float32(module: Network) -> Iterator[Network]:
    """A module computed in float32 for a while; half-precision weights come back bit for bit."""
    before = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    try:
        yield cast(module, torch.float32)
    finally:
        cast(module, before)
