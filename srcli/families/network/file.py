"""From a file to a network, which spandrel recognises in most cases; what is no such network is refused with the reason."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srcli.errors import ModelError
from srcli.families.network.compact import compact
from srcli.families.network.ncnn import read_ncnn
from srcli.families.network.network import Network
from srcli.networks.adapters import Adapter
from srcli.networks.saved_adapters import check_base_sum, load_adapter
from srcli.store.weights import load_pickle, load_tensors, sha256_of

_PURPOSES = {"FaceSR": "restores cropped faces", "Inpainting": "fills masked parts of pictures"}
_HINT = "take a network for super-resolution or restoration of single pictures, as a `.safetensors` or `.pth` file"
_SPAN_SLOPE = 0.05
"""Of the leaky ReLU that some of SPAN's layers end with."""
_held: dict[Path, Network] = {}
"""The network that `row` has read last, for `take`."""


def row(path: Path) -> dict[str, Any]:
    """What a models.toml would say of a file.

    Raises:
        ModelError: it is no network that srcli can use.
    """
    network = read(path)
    _held.clear()
    _held[path.absolute()] = network
    return {"native_scale": network.scale, "description": f"{network.architecture} ×{network.scale}", "source": str(path)}


def take(path: Path) -> Network:
    """A file's network, for the caller to change; not read again where `row` has just done so."""
    return _held.pop(path.absolute(), None) or read(path)


def read(path: Path) -> Network:
    """A file's network: float32, on the CPU.

    Args:
        path: safetensors, a checkpoint of torch, or ncnn's `.bin`.

    Raises:
        ModelError: it cannot be read, is none, or one for another purpose.
    """
    if path.is_dir():
        raise ModelError(f"`{path}` is a folder, not the file of a network", "name the file")
    if path.is_file() and not path.stat().st_size:
        raise ModelError(f"`{path}` is empty", "get the file anew")
    tensors = _tensors(path)
    network = compact(tensors) or _recognised(path, tensors)
    if not any(parameter.any() for parameter in network.model.parameters()):
        raise ModelError(f"`{path}` holds zeros in place of weights", "get the file anew")
    network.model.float().eval().requires_grad_(False)
    return network


def adapter_for(base: Path, path: Path, name: str) -> Adapter:
    """An adapter's file, for the network in the file `base`.

    Raises:
        ModelError: it is damaged, no adapter, or one of another network.
    """
    adapter = load_adapter(path, name)
    check_base_sum(adapter, path, base, sha256_of(base))
    return adapter


def without_remerging(model: nn.Module) -> None:
    """Have a network compute with weights that adapters reach, to the same answer.

    SPAN's layers merge three convolutions and a shortcut into one at every call in evaluation mode, past every gradient and over
    whatever was put into that one's weights: it takes their place.
    """
    for parent in list(model.modules()):
        for place, child in list(parent.named_children()):
            if hasattr(child, "eval_conv") and hasattr(child, "update_params"):
                span: Any = child
                span.update_params()
                parent.add_module(place, _with_slope(span.eval_conv) if span.has_relu else span.eval_conv)


def _with_slope(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.LeakyReLU(_SPAN_SLOPE))


def _tensors(path: Path) -> dict[str, Any]:
    if path.suffix.lower() == ".safetensors":
        return dict(load_tensors(path)[0])
    if path.suffix.lower() == ".bin":
        return dict(read_ncnn(path))
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ModelError(f"`{path}` is a TorchScript archive: a program, which srcli does not run", _HINT)
    return load_pickle(path)


def _recognised(path: Path, tensors: dict[str, Any]) -> Network:
    import spandrel

    tensors = spandrel.canonicalize_state_dict(tensors)
    if not any(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ModelError(f"`{path}` holds no weights", _HINT)
    found = (each.architecture for each in spandrel.MAIN_REGISTRY.architectures("detection") if _detects(each, tensors))
    architecture = next(found, None)
    if architecture is None:
        known = sorted(each.architecture.name for each in spandrel.MAIN_REGISTRY.architectures())
        shown = f"it knows {', '.join(known[:12])} and {len(known) - 12} more, and no video networks"
        raise ModelError(f"`{path}` is of no architecture that spandrel knows", f"{shown}; {_HINT}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, on how an architecture is written
            network = architecture.load(tensors)
    except Exception as fault:  # what an architecture makes of tensors that are not its own may raise anything
        reason = (str(fault).splitlines()[:2] or [type(fault).__name__])[-1].strip()  # torch's first line names no weight
        message = f"`{path}` looks like a network of {architecture.name}, but its weights do not fit: {reason}"
        raise ModelError(message, _HINT) from fault
    return _described(path, network)


def _described(path: Path, network: Any) -> Network:
    """What spandrel says of a network; refused where it is for another purpose."""
    from spandrel import ModelTiling

    title = network.architecture.name
    if purpose := _PURPOSES.get(network.purpose):
        raise ModelError(f"`{path}` is a network ({title}) that {purpose}", _HINT)
    channels = network.input_channels, network.output_channels
    if channels not in ((3, 3), (1, 1)):
        raise ModelError(f"`{path}` takes {channels[0]} channels and gives {channels[1]}, and pictures have 3 or 1", _HINT)
    fit = {torch.float16: network.supports_half, torch.bfloat16: network.supports_bfloat16}
    return Network(
        network.model,
        title,
        network.scale,
        channels[0],
        unfit=frozenset(dtype for dtype, supported in fit.items() if not supported),
        tiled=network.tiling is ModelTiling.SUPPORTED,
        padding=network.size_requirements.get_padding,
        call=network._call_fn,
    )


def _detects(each: Any, tensors: dict[str, Any]) -> bool:
    """Whether the weights are of an architecture; not where it stumbles over them."""
    try:
        return bool(each.detect(tensors))
    except Exception:
        return False
