"""Networks that are made without memory for weights, and get these from a base's files one by one.

So no second copy of the weights is ever in memory, nor a copy in another precision.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import Parameter

from srcli.disk import first_line
from srcli.errors import ModelError, SrcliError
from srcli.store.layout import weight_files

Network = TypeVar("Network", bound=nn.Module)

_SEEN_BYTES = 1 << 26
"""Of a file, read before it is opened anew."""
BASE_HINT = "a base is a folder in diffusers' layout with `unet`, `vae`, `text_encoder` and `tokenizer`"


@contextmanager
def reading(base: Path, part: str) -> Iterator[None]:
    """Faults of a part's files, and of a configuration that makes no sense, become ModelErrors that name the part."""
    try:
        yield
    except SrcliError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, ArithmeticError, SafetensorError) as error:
        told = f"{type(error).__name__}: " if isinstance(error, (KeyError, IndexError)) else ""
        raise ModelError(f"`{base}` has no usable `{part}`: {told}{first_line(error)}", BASE_HINT) from error


def empty(make: Callable[[Mapping[str, Any]], Network], base: Path, part: str) -> Network:
    """The network that a part's `config.json` describes, without memory for its weights.

    Raises:
        ModelError: the file is missing, or describes none.
    """
    config = read_json(base / part / "config.json")
    with reading(base, part), torch.device("meta"):
        return make(config).requires_grad_(False).eval()


def fill(
    networks: Sequence[nn.Module],
    base: Path,
    part: str,
    give: Callable[[str, Tensor], Sequence[Parameter]],
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Give networks of one layout the weights of a part's files.

    Args:
        networks: one at least; they may be without memory.
        base: the base's folder.
        part: such as `unet`.
        give: from a parameter's name and its tensor in the file, which is not to be kept, to each network's own.
        renamed: pieces of names in older files, and what they are called now.

    Raises:
        ModelError: the files are missing, damaged, or lack weights.
    """
    lacking = {key: parameter.shape for key, parameter in networks[0].named_parameters()}
    with reading(base, part):
        for name, tensor in _stored(base / part):
            key = name
            for old, new in (renamed or {}).items():
                key = key.replace(old, new)
            if key not in lacking:
                continue
            if (shape := lacking.pop(key)) != tensor.shape:
                raise ValueError(f"`{name}` is {tuple(tensor.shape)}, not {tuple(shape)}")
            for network, parameter in zip(networks, give(key, tensor), strict=True):
                owner, _, leaf = key.rpartition(".")
                setattr(network.get_submodule(owner), leaf, parameter)
        if lacking:
            raise ValueError(f"its files lack {len(lacking)} of the weights, among them `{min(lacking)}`")


def fill_alone(network: nn.Module, base: Path, part: str, dtype: torch.dtype, renamed: Mapping[str, str] | None = None) -> None:
    """Give one network its weights as they are in the files, in `dtype`; see `fill`."""
    fill([network], base, part, lambda _, tensor: [frozen(tensor.to(dtype, copy=True))], renamed)


def frozen(tensor: Tensor) -> Parameter:
    """As a parameter without gradient."""
    return Parameter(tensor, requires_grad=False)


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of each file, the largest first: what is made of the next ones has room where that was.

    What was read of a file stays in memory until it is closed, so it is opened anew now and then.
    """
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            keys = sorted(opened.keys(), key=lambda key: math.prod(opened.get_slice(key).get_shape()))
        while keys:
            with safe_open(file, framework="pt") as opened:
                seen = 0
                while keys and seen < _SEEN_BYTES:
                    tensor = opened.get_tensor(keys[-1])
                    seen += tensor.nbytes
                    yield keys.pop(), tensor


def read_json(path: Path) -> dict[str, Any]:
    """A base's configuration.

    Raises:
        ModelError: it cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read `{path}`: {first_line(error)}", BASE_HINT) from error
    if not isinstance(content, dict):
        raise ModelError(f"`{path}` is not a JSON object", BASE_HINT)
    return content
