"""Adapters: LoRA sets on any network. Attach for training, merge for inference, save, load.

A LoRA layer adds (alpha / rank) · B · A to a frozen weight (Hu et al. 2021, eq. 3), the same factor in all layers of an adapter;
A has the shape of the weight with the rank in the place of its first axis, B that first axis and the rank. An adapter may also
hold whole tensors, which take the place of the network's parameters of the same names. Of several adapters the differences from
the network add up, of whole tensors too: W + Σ (V - W) + Σ (alpha / rank) · B · A, in any order.

An adapter's file is safetensors in peft's layout: `base_model.model.<layer>.lora_A.weight` and `.lora_B.weight`, and whole
tensors as peft's `modules_to_save`, `base_model.model.<parameter>`. `adapter_config.json` beside it is for peft's own loader
(which has another idea of LoRA on grouped convolutions, and refuses ours); all that srcli needs is in the file's header.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

from srcli.console import counted
from srcli.disk import write_whole
from srcli.errors import ModelError, UsageError, joined_faults
from srcli.networks.lora import LoraLayer, Replaced, can_have_lora
from srcli.store.adapter_files import ADAPTER_FILE
from srcli.store.weights import load_tensors, sha256_of

_LOGGER = logging.getLogger("srcli")
_PREFIX = "base_model.model."
_HALVES = (".lora_A.weight", ".lora_B.weight")


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
        return sorted({key.rsplit(".lora_", 1)[0] for key in self.tensors if key.endswith(_HALVES)})

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each of them, as the shape of A tells it."""
        mark = _HALVES[0]
        return {key.removesuffix(mark): len(value) for key, value in self.tensors.items() if key.endswith(mark)}

    @property
    def full(self) -> dict[str, Tensor]:
        """The whole tensors, by the names of the parameters in whose place they are."""
        return {key: value for key, value in self.tensors.items() if not key.endswith(_HALVES)}

    def changes(self, key: str) -> bool:
        """Whether a network's parameter of this name is another one with the adapter."""
        return key in self.tensors or (key.endswith(".weight") and key.removesuffix(".weight") + _HALVES[0] in self.tensors)


# Attached ------------------------------------------------------------------------------------------------------------


def attach(
    network: nn.Module,
    name: str,
    rank: int | Mapping[str, int],
    alpha: float,
    targets: str = "",
    full: str | Collection[str] = "",
) -> list[Parameter]:
    """Add a fresh adapter that changes nothing yet, and make it the one that works; all else is frozen.

    Args:
        network: any; a layer can be adapted if its `weight` is a matrix or a kernel. The network itself is no layer.
        name: of the adapter; letters and digits.
        rank: of all layers, or of each one by its name. Then `targets` is not asked, and rank 0 leaves a layer out.
        alpha: LoRA's factor is alpha / rank, with the largest rank where they differ.
        targets: a regular expression that is the whole name of each layer to be adapted.
        full: another, of parameters to be trained in full, or their names. A layer whose weight is among them has no LoRA.

    Returns:
        the adapter's parameters, float32 (A Gaussian, B zero), in the order of the network's.

    Raises:
        UsageError: `targets`, `full` or a name in `rank` fits nothing, or fits a parameter that several layers share.
    """
    owners = _owners(network)
    fits = re.compile(full).fullmatch if isinstance(full, str) else full.__contains__
    replaced = [key for key in owners if full and fits(key)]
    if full and not replaced:
        hint = "it must fit a whole name, such as `conv_in.weight`"
        raise UsageError(f"`full` fits no parameter of the network: `{full}`", hint)
    layers = [
        key.removesuffix(".weight") for key, (owner, _) in owners.items() if key.endswith(".weight") and can_have_lora(owner)
    ]
    if isinstance(rank, Mapping):
        if strange := sorted(set(rank) - set(layers)):
            hint = "give ranks to the network's own layers"
            raise UsageError(f"no layer of the network can be adapted as `{strange[0]}`", hint)
        ranks = {key: rank[key] for key in layers if rank.get(key)}
    else:
        ranks = {key: rank for key in layers if re.fullmatch(targets, key)}
        if not ranks:
            message = f"`targets` fits no layer of the network: `{targets}`"
            raise UsageError(message, "leave it out for the model's own")
    ranks = {key: value for key, value in ranks.items() if f"{key}.weight" not in replaced}
    _refuse_tied(owners, [*replaced, *(f"{key}.weight" for key in ranks)])
    _add(network, name, ranks, alpha, replaced)
    return _in_float32(network, name, trained=True)


def attach_frozen(network: nn.Module, adapter: Adapter) -> None:
    """Add a trained adapter to `network` beside its weights, in float32 and frozen, and make it the one that works.

    Raises:
        ModelError: it does not fit.
    """
    check_fit(network, adapter)
    _add(network, adapter.name, adapter.ranks, adapter.info.alpha, adapter.full, gaussian=False)
    _in_float32(network, adapter.name, trained=False)  # first: a network in half precision would round the adapter
    restore_state(network, adapter)


def _add(
    network: nn.Module, name: str, ranks: Mapping[str, int], alpha: float, full: Collection[str], *, gaussian: bool = True
) -> None:
    owners = _owners(network)
    layers = {layer.base_layer: layer for layer in network.modules() if isinstance(layer, LoraLayer)}
    for key, rank in ranks.items():
        base, _ = owners[f"{key}.weight"]
        layers.setdefault(base, LoraLayer(base)).add(name, rank, alpha / max(ranks.values()), gaussian=gaussian)
    for parent in [module for module in network.modules() if not isinstance(module, LoraLayer)]:
        for place, child in list(parent._modules.items()):  # unlike `named_children`, all places of a layer that has two
            if child in layers:
                parent.add_module(place, layers[child])
    for key in full:
        owner, leaf = owners[key]
        if not hasattr(owner, leaf + Replaced.SUFFIX):
            owner.add_module(leaf + Replaced.SUFFIX, Replaced(owner.get_parameter(leaf)))
        cast(Replaced, owner.get_submodule(leaf + Replaced.SUFFIX)).add(name)
    use_adapters(network, [name])


def _owners(network: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """By the names that the network's parameters had before anything was attached: each one's module, and its name there."""
    attached: set[nn.Module] = set()
    for module in network.modules():
        if isinstance(module, LoraLayer):
            attached |= {*module.lora_A.modules(), *module.lora_B.modules()}
        elif isinstance(module, Replaced):
            attached |= set(module.modules())
    return {
        _plain_name(f"{name}.{leaf}").lstrip("."): (module, leaf)
        for name, module in network.named_modules()
        for leaf, parameter in module._parameters.items()
        if parameter is not None and module not in attached
    }


def _refuse_tied(owners: Mapping[str, tuple[nn.Module, str]], keys: Collection[str]) -> None:
    """Raises: UsageError: one of the parameters is another's too, which would not get what is attached to this one."""
    places: dict[Parameter, list[str]] = {}
    for key, (owner, leaf) in owners.items():
        places.setdefault(owner.get_parameter(leaf), []).append(key)
    for shared in places.values():
        if len(shared) > 1 and not set(shared).isdisjoint(keys):
            names = " and ".join(f"`{key}`" for key in shared)
            raise UsageError(f"{names} are one parameter, which cannot be adapted", "choose the layers without these")


def own_parameters(network: nn.Module) -> dict[str, Parameter]:
    """The network's parameters by the names that they had before anything was attached, as they work now."""
    return {key: owner.get_parameter(leaf) for key, (owner, leaf) in _owners(network).items()}


def _plain_name(name: str) -> str:
    return name.replace(".base_layer", "")


def _in_float32(network: nn.Module, name: str, *, trained: bool) -> list[Parameter]:
    """Freeze all but an attached adapter; its own parameters, in the order of the network's."""
    mine = set(map(id, _attached(network, name).values()))
    parameters = []
    for parameter in network.parameters():
        parameter.requires_grad_(trained and id(parameter) in mine)
        if id(parameter) in mine:
            parameter.data = parameter.data.float()
            parameters.append(parameter)
    return parameters


def _attached(network: nn.Module, name: str) -> dict[str, Parameter]:
    """The parameters of an attached adapter, as `Adapter.tensors` names them."""
    found = {}
    for key, module in network.named_modules():
        key = _plain_name(key)
        if isinstance(module, LoraLayer) and name in module.lora_A:
            found[f"{key}.lora_A.weight"] = module.lora_A[name].get_parameter("weight")
            found[f"{key}.lora_B.weight"] = module.lora_B[name].get_parameter("weight")
        elif isinstance(module, Replaced) and name in module.values:
            found[key.removesuffix(Replaced.SUFFIX)] = module.values[name]
    return found


def fill(network: nn.Module, adapter: Adapter, fresh: AdapterInfo) -> None:
    """Give the attached adapter `adapter.name`, described by `fresh`, the weights of a trained one.

    Layers that the trained one leaves alone stay as they were attached, and change nothing yet.

    Raises:
        ModelError: another rank or alpha, layers that the attached one does not adapt, or others than the network's.
    """
    if (adapter.info.rank, adapter.info.alpha) != (fresh.rank, fresh.alpha):
        found = f"rank {adapter.info.rank} and alpha {adapter.info.alpha:g}"
        hint = f"give it those: `--rank {adapter.info.rank} --alpha {adapter.info.alpha:g}`"
        raise ModelError(f"the adapter to start from has {found}, the recipe {fresh.rank} and {fresh.alpha:g}", hint)
    check_fit(network, adapter)
    attached = extract(network, adapter.name, fresh)
    theirs, ours = ({*each.modules, *each.full} for each in (adapter, attached))
    if more := sorted(theirs - ours):
        raise ModelError(
            f"the adapter to start from adapts layers that the recipe's `targets` leave out: `{more[0]}`, {len(more)} in all",
            "give the `--targets` it was trained with, or more",
        )
    if other := sorted(key for key, rank in adapter.ranks.items() if rank != attached.ranks[key]):
        message = f"the adapter to start from has another rank in {len(other)} layers, among them `{other[0]}`"
        raise ModelError(message, "give each layer the rank that it was trained with")
    if new := sorted(ours - theirs):
        layers = counted(len(new), "layer")
        _LOGGER.warning("starting from nothing: %s that the adapter to start from lacks, %s", layers, _listed(new))
    restore_state(network, adapter)


def use_adapters(network: nn.Module, names: Sequence[str]) -> None:
    """Make `names` the attached adapters that work; none switches all off. Which parameters want gradients is undefined after.

    Of whole tensors for the same parameter, only that of the last adapter gets gradients.
    """
    for module in network.modules():
        if isinstance(module, LoraLayer):
            module.active = tuple(names)
        for place, child in module.named_children():
            if isinstance(child, Replaced):
                setattr(module, place.removesuffix(Replaced.SUFFIX), child.chosen(names))


def extract(network: nn.Module, name: str, info: AdapterInfo) -> Adapter:
    """The attached adapter `name` as it is now, copied to the CPU in float32."""
    tensors = {key: value.detach() for key, value in _attached(network, name).items()}
    tensors |= {key: module.value(name) for key, module in _replaced(network, name).items()}
    return Adapter(name, {key: value.float().cpu().clone() for key, value in tensors.items()}, info)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + " …" * (len(names) > 4)


@torch.no_grad()
def restore_state(network: nn.Module, adapter: Adapter) -> None:
    """Put an adapter's values into the attached adapter of the same name, which must have all its tensors."""
    parameters, whole = _attached(network, adapter.name), _replaced(network, adapter.name)
    for key, value in adapter.tensors.items():
        if key in whole:
            whole[key].put(adapter.name, value.to(whole[key].own.device))
        else:
            parameters[key].copy_(value)


def _replaced(network: nn.Module, name: str) -> dict[str, Replaced]:
    """Where an attached adapter has whole tensors, by the names of the parameters."""
    return {
        _plain_name(key).removesuffix(Replaced.SUFFIX): module
        for key, module in network.named_modules()
        if isinstance(module, Replaced) and name in module.values
    }


# Merged --------------------------------------------------------------------------------------------------------------


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
    for key, (owner, leaf) in _owners(network).items():
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
        if name != key and name + _HALVES[0] in adapter.tensors:
            down, up = (adapter.tensors[name + half].to(weight) for half in _HALVES)
            weight.add_(_product(down, up) * (adapter.info.alpha / adapter.info.rank))
    return weight


def _product(down: Tensor, up: Tensor) -> Tensor:
    """B · A in the shape of the weight; of 2d kernels by a convolution, so that it is peft's to the last bit."""
    if down.ndim == 4 and down[0, 0].numel() > 1:
        return functional.conv2d(down.transpose(0, 1), up).transpose(0, 1)
    return (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])


def warn_of_strange_base(adapter: Adapter, bases: Sequence[str]) -> None:
    """Warn where an adapter says that it was trained on another base than these names of one: layers may fit by chance.

    Only the last parts of names are compared, since mirrors and copies in folders are usually called alike.
    """
    own, known = _last(adapter.info.base), {_last(name) for name in bases if name}
    if own and known and own not in known:
        told = "the %s adapter was trained on `%s` and is used on `%s`: where these are not the same, pictures are spoilt"
        _LOGGER.warning(told, adapter.name, adapter.info.base, bases[0])


def check_base_sum(adapter: Adapter, path: Path, base: Path, sha256: str) -> None:
    """Raises: ModelError: an adapter says that it was trained on another file than this base."""
    if adapter.info.base_sha256 not in ("", sha256):
        faults = [f"`{base}` has SHA-256 `{sha256}`", f"it was trained on `{adapter.info.base}`, `{adapter.info.base_sha256}`"]
        message = joined_faults(f"the {adapter.name} adapter `{path}` is of another network:", faults)
        raise ModelError(message, "use it with the very file that it was trained on; a copy in another format is another file")


def warn_of_another_beside(adapter: Adapter, other: str, path: Path) -> None:
    """Warn where an adapter says that it was trained on another one than the file `path`, which is called `other`."""
    if adapter.info.on_sha256 not in ("", sha256_of(path)):
        told = "the %s adapter was trained on another %s adapter than `%s`: the two may not go well together"
        _LOGGER.warning(told, adapter.name, other, path)


def _last(name: str) -> str:
    """In the hub's cache, `…/models--OWNER--NAME/snapshots/COMMIT`, a folder's name is its commit."""
    parts = name.rstrip("/").split("/")
    return parts[-3].rpartition("--")[2] if len(parts) > 2 and parts[-2] == "snapshots" else parts[-1]


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
    down, up = (adapter.tensors.get(name + half) for half in _HALVES)
    if weight is None or weight.ndim < 2:
        return f"the base has no layer `{name}`"
    if down is None or up is None:
        return f"`{name}` lacks one of lora_A and lora_B"
    rank, ones = len(down), [1] * (weight.ndim - 2)
    if down.shape == (rank, *weight.shape[1:]) and up.shape == (len(weight), rank, *ones):
        return None
    return f"`{name}` has other shapes: A {tuple(down.shape)}, B {tuple(up.shape)}, layer {tuple(weight.shape)}"


def save_adapter(adapter: Adapter, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write `adapter_model.safetensors` and `adapter_config.json` into `folder`; returns the former's path.

    Whole tensors are float32 whatever `dtype` is: what was learnt is a small difference of them from the base's.
    """
    from peft import LoraConfig
    from peft.utils import CONFIG_NAME
    from safetensors.torch import save

    dtypes = {key: torch.float32 if key in adapter.full else dtype for key in sorted(adapter.tensors)}
    tensors = {  # copied, since a checkpoint's tensors may share memory, which the format does not allow
        _PREFIX + key: adapter.tensors[key].to(each, copy=True, memory_format=torch.contiguous_format)
        for key, each in dtypes.items()
    }
    write_whole(folder / ADAPTER_FILE, _in_order(save(tensors, {"format": "pt", **adapter.info.to_metadata()})))
    info, ranks = adapter.info, {name: rank for name, rank in adapter.ranks.items() if rank != adapter.info.rank}
    config = LoraConfig(
        r=info.rank,
        lora_alpha=info.alpha,
        rank_pattern=ranks,
        alpha_pattern={name: info.alpha * rank / info.rank for name, rank in ranks.items()},
        target_modules=adapter.modules,
        modules_to_save=sorted({key.rpartition(".")[0] for key in adapter.full}) or None,
        base_model_name_or_path=info.base,
        inference_mode=True,
    )
    # not its own `save_pretrained`, which writes sets in another order in each process
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    write_whole(folder / CONFIG_NAME, f"{json.dumps(settings, indent=2, sort_keys=True)}\n".encode())
    return folder / ADAPTER_FILE


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes them in another one each time."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def load_adapter(path: Path, name: str) -> Adapter:
    """Read an adapter's file.

    Raises:
        ModelError: damaged, not an adapter, without rank and alpha, or with what is no number.
    """
    tensors, metadata = load_tensors(path)
    strange = [key for key in tensors if not key.endswith(_HALVES) and (not key.startswith(_PREFIX) or ".lora_" in key)]
    if strange or not tensors:
        hint = f"its keys end in `.lora_A.weight` and `.lora_B.weight`, or begin with `{_PREFIX}`"
        raise ModelError(f"`{path}` is not an adapter in peft's format", hint)
    stripped = {key.removeprefix(_PREFIX): value.float() for key, value in tensors.items()}
    broken = [key for key, value in stripped.items() if not value.isfinite().all()]
    if broken:
        message = f"`{path}` holds what is no number: {counted(len(broken), 'tensor')}, `{broken[0]}` for one"
        raise ModelError(message, "it is of a training that failed: take an earlier checkpoint, or train it anew at a lower rate")
    return Adapter(name, stripped, AdapterInfo.from_metadata(metadata, path))
