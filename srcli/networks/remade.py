"""A base's UNet from which networks for inference are made again and again, with another adapter each time.

Where weights depend on the picture they are merged once for it, and all of its tiles cost what the bare network costs. Beside
the base's own weights there are, at any time, those of one network that are other than these.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from srcli.networks.adapters import Adapter, check_fit, merged
from srcli.networks.backbone import empty_tail
from srcli.networks.device import cast, laid_out
from srcli.networks.filling import empty, fill, frozen
from srcli.networks.tail import PixelTail
from srcli.networks.transformer import Joined
from srcli.networks.unet import FixedPromptUNet


class RemadeUNet:
    """The weights of a base's UNet, and of its tail if it has one.

    Args:
        base: the base's folder.
        dtype: of the networks that are made; sums are float32.
        device: where all of it is to be.
        adapter: one of those that will be merged, all of which have the same layers.

    Attributes:
        width: channels of the UNet's first level.
        device: of these weights and of the networks that are made.

    Raises:
        ModelError: the folder holds no usable UNet, or the adapter does not fit it.
    """

    def __init__(self, base: Path, dtype: torch.dtype, device: torch.device, adapter: Adapter) -> None:
        unet = empty(FixedPromptUNet, base, "unet")
        unet.tail = tail = empty_tail(base)
        check_fit(unet, adapter)
        exact = unet.folded()
        unet.tail = None

        def give(key: str, tensor: Tensor) -> list[torch.nn.Parameter]:
            own = tensor.to(device, torch.float32 if key in exact else dtype, copy=True)
            return [frozen(own if key in exact else laid_out(own, dtype))]

        fill([unet], base, "unet", give)
        if tail is not None:
            fill([tail], base, "tail", give)
        unet.tail = tail
        self._unet, self._exact, self._dtype = unet, exact, dtype
        self.width, self.device = unet.width, device

    @torch.no_grad()
    def made(self, adapter: Adapter, embeddings: Sequence[Tensor], timestep: int) -> list[FixedPromptUNet]:
        """Networks with an adapter merged in float32, which share all weights but what the prompt decides.

        Args:
            adapter: its tensors should be on the device.
            embeddings: of a prompt for each network, (1, tokens, width), float32, on the device.
            timestep: that they will be told.
        """
        shared = {id(parameter): parameter for parameter in self._unet.parameters()}
        changed = {}
        for key, own in self._unet.named_parameters():
            if adapter.changes(key):
                weight = merged(key, own, [adapter])
                changed[key] = frozen(weight if key in self._exact else laid_out(weight, self._dtype))
        unets = [copy.deepcopy(self._unet, dict(shared)) for _ in embeddings]
        joined: Joined = {}
        for unet in unets:
            for key, parameter in changed.items():
                owner, _, leaf = key.rpartition(".")
                setattr(unet.get_submodule(owner), leaf, parameter)
            if isinstance(unet.tail, PixelTail):
                unet.tail.settle()
        for unet, embedding in zip(unets, embeddings, strict=True):
            unet.settle(embedding, [timestep], joined)
            cast(unet, self._dtype)
        return unets
