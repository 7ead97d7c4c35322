"""A network's weights with adapters in them, each by a weight of its own: W + Σ λ · Δ, made anew whenever a λ changes.

As it is the network itself that computes then, any λ costs what the bare network costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from srcli.networks.adapters import Adapter, check_fit, merged


class MixedWeights:
    """The parameters that adapters change, and by how much.

    Args:
        network: with nothing attached, float32; it may be moved and cast later. Its parameters are changed in place.
        adapters: that it may have, in the order of their weights.
        device: where it will work.

    Attributes:
        now: the weights of the mixture that the network has.

    Raises:
        ModelError: an adapter does not fit the network.
    """

    def __init__(self, network: nn.Module, adapters: Sequence[Adapter], device: torch.device) -> None:
        for adapter in adapters:
            check_fit(network, adapter)
        self._network = network
        self.now = (0.0,) * len(adapters)
        changed = [
            (key, parameter.detach())
            for key, parameter in network.named_parameters(remove_duplicate=False)
            if any(adapter.changes(key) for adapter in adapters)
        ]
        self._parts = {
            key: (own.to(device, copy=True), [_change(key, own, adapter).to(device) for adapter in adapters])
            for key, own in changed
        }

    @torch.inference_mode()
    def take(self, weights: tuple[float, ...]) -> None:
        """Give the network the mixture of these weights; nothing is done where it has it."""
        if weights == self.now:
            return
        for key, (own, changes) in self._parts.items():
            total = own.clone()
            for weight, change in zip(weights, changes, strict=True):
                total.add_(change, alpha=weight)
            self._network.get_parameter(key).copy_(total)
        self.now = weights


def _change(key: str, own: Tensor, adapter: Adapter) -> Tensor:
    """Δ of one parameter, float32; zeros where the adapter leaves it alone."""
    return merged(key, own, [adapter]) - own
