"""The layers of a network that adapters can have: their kinds, which of them training reaches, and what rank each one gets."""

from __future__ import annotations

import heapq
import logging
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from srcli.console import counted
from srcli.disk import first_line
from srcli.errors import ModelError, UsageError
from srcli.memory import is_out_of_memory
from srcli.networks.adapters import own_parameters
from srcli.networks.lora import LoraLayer, can_have_lora

log = logging.getLogger("srcli")

_ATTENTION = re.compile(r"attn|attention|msa|qkv|\bto_(q|k|v|out)\b|\bw?[qkv]\b|\bproj\b")
"""What the names of a layer, or of the modules around it, or of their classes, have where it is one of attention."""
_NAMED = 4
_OTHER = "take another network, or other layers: `--targets`, `--layers`"


@dataclass(frozen=True)
class Layer:
    """A layer that an adapter can have."""

    name: str
    kind: str
    """`conv`, `attention` or `mlp`: convolutions of all sorts, and the linear layers of attention and all others."""
    module: nn.Module

    @property
    def weight(self) -> Tensor:
        """As it works: with the adapters that are attached already."""
        return cast(Tensor, self.module.weight)

    @property
    def own(self) -> nn.Parameter:
        """The network's."""
        module = self.module.base_layer if isinstance(self.module, LoraLayer) else self.module
        return module.get_parameter("weight")

    @property
    def cost(self) -> int:
        """Numbers that are trained for each rank."""
        return len(self.own) + self.own[0].numel()

    @property
    def largest(self) -> int:
        """The rank from which on the adapter would have more numbers than the layer."""
        return max(1, self.own.numel() // self.cost)


def layers_of(model: nn.Module) -> list[Layer]:
    """All that adapters can have, in the network's order; attached adapters are not taken for layers."""
    found: list[Layer] = []
    inside: set[nn.Module] = set()
    names = dict(model.named_modules())
    for name, module in names.items():
        if isinstance(module, LoraLayer):
            inside |= set(module.modules()) - {module}
        if name and module not in inside and (isinstance(module, LoraLayer) or can_have_lora(module)):
            found.append(Layer(name, _kind(name, module, names), module))
    return [layer for layer in found if layer.own.numel()]  # some architectures have layers of no channels at small sizes


def bare_weights(model: nn.Module) -> dict[str, str]:
    """The kinds of weights that no LoRA can have, by their names: torch's own attention keeps three in `in_proj_weight`.

    They are those that are not called `weight`, as LoRA wants it, and those that are computed anew from others.
    """
    names = dict(model.named_modules())
    found = {}
    for key, parameter in own_parameters(model).items():
        place, _, leaf = key.rpartition(".")
        computed = ".parametrizations.weight" in key
        if 2 <= parameter.ndim <= 5 and (computed or ("weight" in leaf and leaf != "weight")):
            found[key] = "conv" if parameter.ndim > 2 else _linear_kind(place, names)
    return found


def _kind(name: str, module: nn.Module, names: Mapping[str, nn.Module]) -> str:
    if (module.base_layer if isinstance(module, LoraLayer) else module).get_parameter("weight").ndim > 2:
        return "conv"
    return _linear_kind(name, names)


def _linear_kind(name: str, names: Mapping[str, nn.Module]) -> str:
    parts = name.split(".")
    around = [names[".".join(parts[:end])] for end in range(1, len(parts) + 1)]
    words = " ".join([*parts, *(type(each).__name__ for each in around)])
    return "attention" if _ATTENTION.search(words.lower()) else "mlp"


# Which of them -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """The layers that are to be trained.

    Attributes:
        kinds: of those that are wanted.
        targets: a regular expression that is the whole name of each; empty for all.
    """

    kinds: Collection[str]
    targets: str

    def fits(self, name: str, kind: str) -> bool:
        return kind in self.kinds and (not self.targets or re.fullmatch(self.targets, name) is not None)

    def fault(self, layers: Sequence[Layer]) -> UsageError:
        """That nothing fits."""
        there = ", ".join(f"{counted(sum(each.kind == kind for each in layers), 'layer')} of {kind}" for kind in _kinds(layers))
        example = f", such as `{layers[0].name}`" if layers else ""
        kinds = ", ".join(self.kinds)
        asked = f"`targets` `{self.targets}` and `layers` {kinds} fit" if self.targets else f"`layers` {kinds} fits"
        return UsageError(f"{asked} no layer of the network", f"it has {there or 'none that an adapter can have'}{example}")


def chosen(model: nn.Module, choice: Choice, run: Callable[[], Tensor]) -> list[Layer]:
    """The layers that are to have LoRA and whose weights training reaches; what else was asked for is named.

    Args:
        model: the network.
        choice: of its layers.
        run: asks the network for something.

    Raises:
        UsageError: none is left.
        ModelError: the network cannot be differentiated.
    """
    layers = layers_of(model)
    wanted = {layer.name: layer for layer in layers if choice.fits(layer.name, layer.kind)}
    if not wanted:
        raise choice.fault(layers)
    reached = _reached({name: layer.own for name, layer in wanted.items()}, run)
    if bare := [name for name, kind in bare_weights(model).items() if choice.fits(name, kind)]:
        log.warning("no adapter reaches %s, which `--rank full` trains: %s", counted(len(bare), "weight"), _listed(bare))
    return [wanted[name] for name in reached]


def chosen_whole(model: nn.Module, choice: Choice | None, run: Callable[[], Tensor]) -> dict[str, nn.Parameter]:
    """The parameters that are to be trained in full, by their names, of those that training reaches; others are named.

    Args:
        model: the network.
        choice: of its layers, which are trained with their biases; None for all parameters that there are.
        run: asks the network for something.

    Raises:
        UsageError, ModelError: as for `chosen`.
    """
    parameters = {name: each for name, each in own_parameters(model).items() if each.numel()}
    if choice is not None:
        layers = layers_of(model)
        places = {layer.name for layer in layers if choice.fits(layer.name, layer.kind)}
        places |= {name.rpartition(".")[0] for name, kind in bare_weights(model).items() if choice.fits(name, kind)}
        if not places:
            raise choice.fault(layers)
        parameters = {name: each for name, each in parameters.items() if name.rpartition(".")[0] in places}
    return {name: parameters[name] for name in _reached(parameters, run)}


def _reached(parameters: Mapping[str, nn.Parameter], run: Callable[[], Tensor]) -> list[str]:
    """The names of those that what `run` gives hangs on; the others are told."""
    gradients = dict(zip(parameters, gradients_of(list(parameters.values()), run), strict=True))
    lost = [name for name, gradient in gradients.items() if gradient is None]
    if len(lost) == len(parameters):
        raise ModelError(f"training reaches no layer of the network that was asked for: {_listed(lost)}", _OTHER)
    if lost:
        log.warning("no adapter for %s that training cannot reach: %s", counted(len(lost), "layer"), _listed(lost))
    return [name for name in parameters if gradients[name] is not None]


def gradients_of(weights: Sequence[nn.Parameter], run: Callable[[], Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients of the sum of what `run` gives with respect to the weights; None where it does not hang on one.

    Raises:
        ModelError: there is no gradient at all.
    """
    frozen = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        return differentiate(run, weights)
    finally:
        for weight, before in zip(weights, frozen, strict=True):
            weight.requires_grad_(before)


def differentiate(run: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """The gradients of the sum of what `run` gives with respect to parameters that want some; None where it does not hang on one.

    Raises:
        ModelError: there is no gradient at all.
    """
    try:
        return torch.autograd.grad(run().sum(), parameters, allow_unused=True)
    except Exception as fault:  # what a network does with tensors that want gradients may raise anything
        if is_out_of_memory(fault):
            raise
        raise ModelError(f"torch cannot differentiate the network: {first_line(fault)}", _OTHER) from fault


def _kinds(layers: Sequence[Layer]) -> list[str]:
    return list(dict.fromkeys(layer.kind for layer in layers))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:_NAMED]) + " …" * (len(names) > _NAMED)


# Ranks ---------------------------------------------------------------------------------------------------------------


def uniform_ranks(layers: Sequence[Layer], rank: int) -> dict[str, int]:
    """The same for all, but where a layer is too small for it."""
    return {layer.name: min(rank, layer.largest) for layer in layers}


def tell_cut(layers: Sequence[Layer], rank: int) -> None:
    """Name the layers that are too small for a rank."""
    small = [layer for layer in layers if layer.largest < rank]
    if small:
        names = _listed([f"{layer.name}: {layer.largest}" for layer in small])
        told = "rank %d is cut for %s, whose adapters would have more numbers than they have themselves: %s"
        log.info(told, rank, counted(len(small), "layer"), names)


def importance(layers: Sequence[Layer], runs: Sequence[Callable[[], Tensor]]) -> list[float]:
    """How much the loss hangs on each layer's weights: Σ |w · ∂L/∂w| over them and over samples, as a share of all.

    The first-order Taylor expansion of what the loss changes by where a weight is taken away: Molchanov, Mallya, Tyree, Frosio,
    Kautz, "Importance estimation for neural network pruning", 2019, eq. 8 (who square it), as a sum over a layer.

    Args:
        layers: of the network.
        runs: each something whose sum has the gradient of a sample's loss.

    Raises:
        UsageError: the loss hangs on none of them.
    """
    sums, weights = [0.0] * len(layers), [layer.own for layer in layers]
    for run in runs:
        for place, (layer, gradient) in enumerate(zip(layers, gradients_of(weights, run), strict=True)):
            if gradient is not None:
                sums[place] += float((layer.weight.detach().float() * gradient.float()).abs().sum())
    if not 0 < (total := sum(sums)) < math.inf:
        message = "no layer is important to the losses of the recipe, so there is nothing to allot ranks by"
        raise UsageError(message, "give `--rank` a number, or the recipe a loss besides the adversarial one")
    return [each / total for each in sums]


def allotted(layers: Sequence[Layer], shares: Sequence[float], budget: int) -> dict[str, int]:
    """Ranks that share out a budget of trained numbers as the importance is shared.

    Rank after rank goes to the layer whose numbers, with that rank, are the most important ones: importance / numbers is largest
    (D'Hondt's method). No layer gets more than it has numbers itself; one may get none.

    Args:
        layers: of the network.
        shares: importance of each.
        budget: the largest sum of rank · (numbers a rank).

    Raises:
        UsageError: it holds not even one rank.
    """
    ranks, left = {layer.name: 0 for layer in layers}, budget
    waiting = [(-share / layer.cost, place) for place, (layer, share) in enumerate(zip(layers, shares, strict=True)) if share > 0]
    heapq.heapify(waiting)
    while waiting:
        _, place = heapq.heappop(waiting)
        layer = layers[place]
        if layer.cost > left:
            continue
        ranks[layer.name] += 1
        left -= layer.cost
        if (rank := ranks[layer.name]) < layer.largest:
            heapq.heappush(waiting, (-shares[place] / (layer.cost * (rank + 1)), place))
    if left == budget:
        least = min(layer.cost for layer in layers)
        raise UsageError(
            f"the budget of {counted(budget, 'number')} holds no rank of any layer", f"give at least `--budget {least}`"
        )
    return ranks
