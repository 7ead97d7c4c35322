"""Adapters attached to a network: trained, switched on and off, read back."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import Parameter

from srcli.console import counted
from srcli.errors import ModelError, UsageError
from srcli.networks.adapters import Adapter, AdapterInfo, check_fit, owners_of, plain_name
from srcli.networks.lora import LoraLayer, Replaced, can_have_lora

_LOGGER = logging.getLogger("srcli")


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
    owners = owners_of(network)
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
    owners = owners_of(network)
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


def _refuse_tied(owners: Mapping[str, tuple[nn.Module, str]], keys: Collection[str]) -> None:
    """Raises: UsageError: one of the parameters is another's too, which would not get what is attached to this one."""
    places: dict[Parameter, list[str]] = {}
    for key, (owner, leaf) in owners.items():
        places.setdefault(owner.get_parameter(leaf), []).append(key)
    for shared in places.values():
        if len(shared) > 1 and not set(shared).isdisjoint(keys):
            names = " and ".join(f"`{key}`" for key in shared)
            raise UsageError(f"{names} are one parameter, which cannot be adapted", "choose the layers without these")


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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + " …" * (len(names) > 4)


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


@torch.no_grad()
def restore_state(network: nn.Module, adapter: Adapter) -> None:
    """Put an adapter's values into the attached adapter of the same name, which must have all its tensors."""
    parameters, whole = _attached(network, adapter.name), _replaced(network, adapter.name)
    for key, value in adapter.tensors.items():
        if key in whole:
            whole[key].put(adapter.name, value.to(whole[key].own.device))
        else:
            parameters[key].copy_(value)


def _attached(network: nn.Module, name: str) -> dict[str, Parameter]:
    """The parameters of an attached adapter, as `Adapter.tensors` names them."""
    found = {}
    for key, module in network.named_modules():
        key = plain_name(key)
        if isinstance(module, LoraLayer) and name in module.lora_A:
            found[f"{key}.lora_A.weight"] = module.lora_A[name].get_parameter("weight")
            found[f"{key}.lora_B.weight"] = module.lora_B[name].get_parameter("weight")
        elif isinstance(module, Replaced) and name in module.values:
            found[key.removesuffix(Replaced.SUFFIX)] = module.values[name]
    return found


def _replaced(network: nn.Module, name: str) -> dict[str, Replaced]:
    """Where an attached adapter has whole tensors, by the names of the parameters."""
    return {
        plain_name(key).removesuffix(Replaced.SUFFIX): module
        for key, module in network.named_modules()
        if isinstance(module, Replaced) and name in module.values
    }
