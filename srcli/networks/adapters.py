"""Adapters: what they are, whether they fit a network, and how they are merged into it.

A LoRA layer adds (alpha / rank) · B · A to a frozen weight (Hu et al. 2021, eq. 3), the same factor in all layers of an adapter;
A has the shape of the weight with the rank in the place of its first axis, B that first axis and the rank. An adapter may also
hold whole tensors, which take the place of the network's parameters of the same names. Of several adapters the differences from
the network add up, of whole tensors too: W + Σ (V - W) + Σ (alpha / rank) · B · A, in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

from srcli.errors import ModelError, joined_faults
from srcli.networks.lora import LoraLayer, Replaced

HALVES = (".lora_A.weight", ".lora_B.weight")
"""What the names of a layer's A and B end in."""


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter's file says of itself."""

    rank: int
    """Of its layers; the largest, where they differ; 0 where it has whole tensors alone."""
    alpha: float
    """Of a layer of that rank: alpha / rank is the factor of all layers."""
    base: str = ""
    """The base it was trained on."""
    stage: str = ""
    """`pixel` or `semantic`."""
    steps: int = 0
    licence: str = ""
    base_sha256: str = ""
    """Of the base's file, where the base is one file."""
    on_sha256: str = ""
    """Of the file of the adapter that was frozen beside it when it was trained."""

    def to_metadata(self) -> dict[str, str]:
        return {key: str(value) for key, value in self.__dict__.items() if value or not key.endswith("sha256")}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> AdapterInfo:
        """Raises: ModelError: rank or alpha are missing or no numbers."""
        try:
            return cls(
                rank=int(metadata["rank"]),
                alpha=float(metadata["alpha"]),
                base=metadata.get("base", ""),
                stage=metadata.get("stage", ""),
                steps=int(metadata.get("steps", "0")),
                licence=metadata.get("licence", ""),
                base_sha256=metadata.get("base_sha256", ""),
                on_sha256=metadata.get("on_sha256", ""),
            )
        except (KeyError, ValueError) as error:
            message = f"`{path}` does not say its rank and alpha"
            raise ModelError(message, "take a file that `srcli train-pixel` or `srcli models import` wrote") from error


@dataclass(frozen=True)
class Adapter:
    """A LoRA set, with whole tensors perhaps, in memory.

    Attributes:
        name: under which it is attached.
        tensors: `<module>.lora_A.weight` and `<module>.lora_B.weight`, and whole tensors by their parameters' names; float32.
        info: rank, alpha and origin.
    """

    name: str
    tensors: dict[str, Tensor]
    info: AdapterInfo

    @property
    def modules(self) -> list[str]:
        """The layers that have LoRA."""
        return sorted({key.rsplit(".lora_", 1)[0] for key in self.tensors if key.endswith(HALVES)})

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each of them, as the shape of A tells it."""
        mark = HALVES[0]
        return {key.removesuffix(mark): len(value) for key, value in self.tensors.items() if key.endswith(mark)}

    @property
    def full(self) -> dict[str, Tensor]:
        """The whole tensors, by the names of the parameters in whose place they are."""
        return {key: value for key, value in self.tensors.items() if not key.endswith(HALVES)}

    def changes(self, key: str) -> bool:
        """Whether a network's parameter of this name is another one with the adapter."""
        return key in self.tensors or (key.endswith(".weight") and key.removesuffix(".weight") + HALVES[0] in self.tensors)


@torch.no_grad()
def merge(network: nn.Module, adapters: Sequence[Adapter]) -> None:
    """Put the adapters into the weights of `network`, which then has no trace of them: W + Σ (V - W) + Σ (alpha / rank) · B · A.

    Args:
        network: with nothing attached.
        adapters: any number.

    Raises:
        ModelError: an adapter does not fit the network; every such layer is named.
    """
    for adapter in adapters:
        check_fit(network, adapter)
    for key, (owner, leaf) in owners_of(network).items():
        if any(adapter.changes(key) for adapter in adapters):
            owner.get_parameter(leaf).copy_(merged(key, owner.get_parameter(leaf), adapters))
    network.requires_grad_(False)


@torch.no_grad()
def merged(key: str, weight: Tensor, adapters: Sequence[Adapter]) -> Tensor:
    """A copy of a network's parameter with the adapters in it, float32; see `merge`, which does it with all of them.

    Args:
        key: its name.
        weight: its value, of any dtype.
        adapters: that fit the network.
    """
    weight = weight.to(torch.float32, copy=True)
    first, *others = [adapter.tensors[key].to(weight) for adapter in adapters if key in adapter.tensors] or [weight]
    weight = first + sum(((each - weight) for each in others), torch.zeros(()).to(weight))
    name = key.removesuffix(".weight")
    for adapter in adapters:
        if name != key and name + HALVES[0] in adapter.tensors:
            down, up = (adapter.tensors[name + half].to(weight) for half in HALVES)
            weight.add_(_product(down, up) * (adapter.info.alpha / adapter.info.rank))
    return weight


def _product(down: Tensor, up: Tensor) -> Tensor:
    """B · A in the shape of the weight; of 2d kernels by a convolution, so that it is peft's to the last bit."""
    if down.ndim == 4 and down[0, 0].numel() > 1:
        return functional.conv2d(down.transpose(0, 1), up).transpose(0, 1)
    return (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])


def check_fit(network: nn.Module, adapter: Adapter) -> None:
    """Raises: ModelError: layers that the network lacks, halves that are missing, shapes and ranks that differ; all of them."""
    parameters = own_parameters(network)
    faults = [fault for name in adapter.modules if (fault := _lora_fault(adapter, name, parameters.get(f"{name}.weight")))]
    for key, value in adapter.full.items():
        own = parameters.get(key)
        if own is None:
            faults.append(f"the base has no parameter `{key}`")
        elif own.shape != value.shape:
            faults.append(f"`{key}` has another shape: {tuple(value.shape)}, in the base {tuple(own.shape)}")
    if adapter.ranks and (largest := max(adapter.ranks.values())) != adapter.info.rank:
        faults.append(f"the largest rank of its layers is {largest}, but its file says rank {adapter.info.rank}")
    if faults:
        more = [f"… and {len(faults) - 10} more"] if len(faults) > 10 else []
        message = joined_faults(f"the adapter `{adapter.name}` does not fit the base", faults[:10] + more)
        raise ModelError(message, "use the base that the adapter was trained on")


def _lora_fault(adapter: Adapter, name: str, weight: Parameter | None) -> str | None:
    down, up = (adapter.tensors.get(name + half) for half in HALVES)
    if weight is None or weight.ndim < 2:
        return f"the base has no layer `{name}`"
    if down is None or up is None:
        return f"`{name}` lacks one of lora_A and lora_B"
    rank, ones = len(down), [1] * (weight.ndim - 2)
    if down.shape == (rank, *weight.shape[1:]) and up.shape == (len(weight), rank, *ones):
        return None
    return f"`{name}` has other shapes: A {tuple(down.shape)}, B {tuple(up.shape)}, layer {tuple(weight.shape)}"


def own_parameters(network: nn.Module) -> dict[str, Parameter]:
    """The network's parameters by the names that they had before anything was attached, as they work now."""
    return {key: owner.get_parameter(leaf) for key, (owner, leaf) in owners_of(network).items()}


def owners_of(network: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """By the names that the network's parameters had before anything was attached: each one's module, and its name there."""
    attached: set[nn.Module] = set()
    for module in network.modules():
        if isinstance(module, LoraLayer):
            attached |= {*module.lora_A.modules(), *module.lora_B.modules()}
        elif isinstance(module, Replaced):
            attached |= set(module.modules())
    return {
        plain_name(f"{name}.{leaf}").lstrip("."): (module, leaf)
        for name, module in network.named_modules()
        for leaf, parameter in module._parameters.items()
        if parameter is not None and module not in attached
    }


def plain_name(name: str) -> str:
    return name.replace(".base_layer", "")
