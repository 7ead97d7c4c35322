"""What stands in a network while adapters are attached: layers with LoRA beside their weight, and parameters with other values.

Which adapters work is told by `srcli.networks.attached.use_adapters`. Everything is exact for any layer whose `weight` is a
matrix or a kernel (linear, convolutions of all kinds, transposed and grouped ones too): the update of a weight W, (a, b, ...), is
(alpha / rank) · B · A with B (a, rank, 1, ...) and A (rank, b, ...), so what is trained is what `merge` adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import Parameter

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def can_have_lora(module: nn.Module) -> bool:
    """Whether a module has a weight of its own that is a matrix or a kernel."""
    weight = module._parameters.get("weight")
    return weight is not None and 2 <= weight.ndim <= 5


class LoraLayer(nn.Module):
    """A layer and the adapters attached to it; it stands in the layer's place and shows the layer's attributes as its own.

    Two ways give the same answer but for rounding. Separate is W·x + (alpha / rank)·B·(A·x), which needs no gradient of W and
    costs less where ranks are low; only plain linear layers and convolutions can. Merged computes with `weight`.

    Args:
        base_layer: with a weight that `can_have_lora`.

    Attributes:
        active: the adapters that work; others' names may be among them.
        scaling: alpha / rank of each adapter.
        merged: compute with `weight`.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.active: Sequence[str] = ()
        self.merged = not _is_plain(base_layer)

    def add(self, name: str, rank: int, scale: float, *, gaussian: bool) -> None:
        """Attach an adapter that changes nothing yet: B is zero; A is Gaussian, or uniform as in a fresh layer.

        Both are in the dtype of the layer's weight.
        """
        base = self.base_layer
        weight = base.get_parameter("weight")
        outer, inner, *kernel = weight.shape
        if kernel:
            convolution: Callable[..., nn.Module] = _CONVOLUTIONS[len(kernel) - 1]
            like = {key: getattr(base, key) for key in ("stride", "padding", "dilation")} if _is_plain(base) else {}
            down = convolution(inner, rank, tuple(kernel), bias=False, **like)
            up = convolution(rank, outer, 1, bias=False)
        else:
            down, up = nn.Linear(inner, rank, bias=False), nn.Linear(rank, outer, bias=False)
        half = down.get_parameter("weight")
        nn.init.normal_(half, std=1 / rank) if gaussian else nn.init.kaiming_uniform_(half, a=5**0.5)
        nn.init.zeros_(up.get_parameter("weight"))
        self.lora_A[name], self.lora_B[name] = (each.to(weight.device, weight.dtype) for each in (down, up))
        self.scaling[name] = scale

    @property
    def weight(self) -> Tensor:
        """W + Σ (alpha / rank)·B·A of the adapters that work: in float32, or W itself where none does.

        The sum is float32 also where the base is kept in less: what training adds in a step is often below a half's precision.
        """
        total: Tensor = self.base_layer.get_parameter("weight")
        with torch.autocast(total.device.type, enabled=False):
            for name in self._working():
                down, up = (half[name].get_parameter("weight").float() for half in (self.lora_A, self.lora_B))
                total = total.float() + self.scaling[name] * (up.flatten(1) @ down.flatten(1)).view(total.shape)
        return total

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        names = self._working()
        if names and self.merged:
            weight = self.weight
            if weight.ndim == 4:
                weight = weight.to(memory_format=torch.channels_last)
            return cast(Tensor, functional_call(self.base_layer, {"weight": weight}, (x, *args), kwargs))
        result: Tensor = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for name in names:
            down, up = self.lora_A[name], self.lora_B[name]
            x = x.to(down.get_parameter("weight").dtype)
            result = result + up(down(x)) * self.scaling[name]
        return result.to(dtype)

    def _working(self) -> list[str]:
        return [name for name in self.active if name in self.lora_A]

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return cast(Tensor, getattr(super().__getattr__("base_layer"), name))


def _is_plain(layer: nn.Module) -> bool:
    """Linear, or a convolution whose product with A is the same convolution: ungrouped, with zeros as padding."""
    if type(layer) in _CONVOLUTIONS:
        convolution = cast(nn.Conv2d, layer)
        return convolution.groups == 1 and convolution.padding_mode == "zeros"
    return type(layer) is nn.Linear


class Replaced(nn.Module):
    """A parameter W of a layer, and the values V that adapters have in its place; kept in the layer, beside the parameter.

    Where several work together, their differences add up as LoRA's do: W + Σ (V - W). The last one's parameter is what works
    then, so that it can be trained as any other; what the others add is put into it, and taken out of what it says of itself.

    Args:
        own: the parameter.

    Attributes:
        values: by adapters' names, float32, of the parameter's shape; with what others add where these work beside it.
    """

    SUFFIX = "_replaced"
    """With the parameter's name before it, the name of this module in the layer."""

    def __init__(self, own: Parameter) -> None:
        super().__init__()
        self.own = own
        self.values = nn.ParameterDict()
        self._added: dict[str, Tensor] = {}

    def add(self, name: str) -> None:
        """Attach an adapter that changes nothing yet."""
        self.values[name] = Parameter(self.own.detach().float().clone())

    def value(self, name: str) -> Tensor:
        """V of an adapter, whatever works beside it."""
        value: Tensor = self.values[name].detach()
        return value - self._added[name] if name in self._added else value

    @torch.no_grad()
    def put(self, name: str, value: Tensor) -> None:
        """Give an adapter its V."""
        self.values[name].copy_(value + self._added[name] if name in self._added else value)

    @torch.no_grad()
    def chosen(self, names: Sequence[str]) -> Parameter:
        """What is to work in the parameter's place where these adapters do."""
        *others, last = [name for name in names if name in self.values] or [""]
        if not last:
            return self.own
        value, before = self.value(last), self._added.pop(last, None)
        if others:
            self._added[last] = torch.stack([self.value(name) - self.own.float() for name in others]).sum(0)
        now = self._added.get(last)
        if not (before is now or (before is not None and now is not None and torch.equal(before, now))):
            self.put(last, value)
        chosen: Parameter = self.values[last]
        return chosen
