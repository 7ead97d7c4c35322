"""The training of a network's adapters: the network frozen, in evaluation mode, asked as at inference but with gradients."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from srcli.config.training import TrainConfig
from srcli.errors import ModelError
from srcli.families.network import PIXEL, SEMANTIC
from srcli.families.network.file import adapter_for, read, without_remerging
from srcli.families.network.layers import (
    Choice,
    Layer,
    allotted,
    chosen,
    chosen_whole,
    differentiate,
    importance,
    tell_cut,
    uniform_ranks,
)
from srcli.families.network.recipe import AUTO, FULL, RANK, NetworkRecipe
from srcli.networks.adapters import Adapter, AdapterInfo
from srcli.networks.attached import attach, attach_frozen, extract, fill, use_adapters
from srcli.networks.device import autocast
from srcli.networks.merged import merge_where_it_pays
from srcli.networks.saved_adapters import save_adapter, warn_of_another_beside, warn_of_strange_base
from srcli.protocol.training import Batch, LayerRank, Trainee
from srcli.store.adapter_files import find_adapter
from srcli.store.weights import sha256_of

log = logging.getLogger("srcli")

_PROBE = 16
"""Side of the picture that a network is tried on."""
_SAMPLES = 16
"""That importance is measured on."""


class NetworkTrainee(Trainee):
    """What one stage trains. Its z_sr are the pictures themselves.

    The network is kept once, in float32, as are the adapters; the run's precision is autocast's. Evaluation mode keeps statistics
    of batches, dropped paths and what else architectures do in training out of it: what is trained is what is used.

    Args:
        config: of the run.
        base: the network's file.
        device: where it works.
        dtype: of the run.

    Raises:
        UsageError: a recipe that fits no layer.
        ModelError: a network or adapter that cannot be used, or that torch cannot differentiate.
    """

    decodes_alone = False
    frozen: Sequence[nn.Module] = ()

    def __init__(self, config: TrainConfig, base: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.recipe = config, cast(NetworkRecipe, config.recipe)
        self._base, self._device, self._dtype = base, device, dtype
        self._held = read(base)
        self.factor = self._held.scale
        if self.factor != config.scale:
            message = f"`{base}` enlarges {self.factor} times, and its row says {config.scale}"
            raise ModelError(message, "correct `native_scale` in the row")
        if dtype == torch.float16 and dtype in self._held.unfit:
            log.warning("`%s` (%s) is not made for fp16: `--dtype fp32` or `bf16` are safer", base.name, self._held.architecture)
        without_remerging(self._held.model)
        self.network: nn.Module = self._held.model.to(device)
        self.trained: Any = self.network
        self._own_numbers = sum(parameter.numel() for parameter in self.network.parameters())
        self._names = [PIXEL, SEMANTIC] if PIXEL in config.adapters else [config.stage]
        self._files = {name: find_adapter(path, name) for name, path in config.adapters.items()}
        self._pixel_sum = sha256_of(self._files[PIXEL]) if PIXEL in self._files else ""
        for name, path in config.adapters.items():
            attach_frozen(self.network, self._adapter(path, name))
        self._layers: list[Layer] = []
        self._whole: list[str] = []
        self._choose()
        if config.gradient_checkpointing and not recomputed(self.network):
            log.warning("`--gradient-checkpointing` saves nothing: %s has no blocks", self._held.architecture)
        self._ranks: dict[str, int] = {}
        self.parameters: list[nn.Parameter] = []
        self.steps_before = 0

    def _adapter(self, path: Path, name: str) -> Adapter:
        file = find_adapter(path, name)
        adapter = adapter_for(self._base, file, name)
        warn_of_strange_base(adapter, (self.config.base_name,))
        return adapter

    def _choose(self) -> None:
        """The layers that get LoRA, or the names of the parameters that are trained in full."""
        choice = Choice(self.recipe.layers, self.recipe.targets)

        def choose() -> None:
            if self.recipe.rank == FULL:
                self._whole = list(chosen_whole(self.network, None if self.recipe.all_layers else choice, self._try))
            else:
                self._layers = chosen(self.network, choice, self._try)

        try:
            choose()
        except ModelError:
            if not self._train_as_it_answers():
                raise
            choose()

    @torch.no_grad()
    def _train_as_it_answers(self) -> bool:
        """Leave evaluation mode if the answers stay: some overwrite in it what gradients need, or take one picture alone."""
        expected = torch.cat([self._answer(self.network, picture[None]) for picture in self._pictures])
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, (_BatchNorm, _DropoutNd)):
                module.eval()
        try:
            same = torch.allclose(self._try(), expected, atol=1e-4)
        except Exception:  # what a network does in training may raise anything; it is refused for what it did before
            same = False
        if not same:
            self.network.eval()
        return same

    @property
    def _pictures(self) -> Tensor:
        """Two small ones, (2, 3, h, w), always the same."""
        return torch.rand(2, 3, _PROBE, _PROBE, generator=torch.Generator().manual_seed(0)).to(self._device)

    def _try(self) -> Tensor:
        return self._answer(self.network, self._pictures)

    # Ranks -----------------------------------------------------------------------------------------------------------

    def settle(
        self, known: Mapping[str, int], sample: Callable[[int], Batch], gradient: Callable[[Tensor, Batch], Tensor]
    ) -> Sequence[LayerRank]:
        """Attach the adapter: with ranks by importance where the recipe wants them and none are known; or with whole weights."""
        start = self.config.start_from and self._adapter(self.config.start_from, self.config.stage)
        if start and PIXEL in self._files:
            warn_of_another_beside(start, PIXEL, self._files[PIXEL])
        measured: list[float] = []
        if start and (self.recipe.rank == FULL) != (start.info.rank == 0):
            message = "the adapter to start from holds " + ("ranks" if start.info.rank else "whole weights")
            raise ModelError(f"{message}, and `rank` is {self.recipe.rank}", "give it as `--rank` the one it was trained with")
        if isinstance(self.recipe.rank, int):
            self._ranks = uniform_ranks(self._layers, self.recipe.uniform)
            tell_cut(self._layers, self.recipe.uniform)
        elif start or known:
            self._ranks = dict(start.ranks if start else known)
        elif self.recipe.rank == AUTO:
            measured = importance(self._layers, [partial(self._weighed, sample, gradient, index) for index in range(_SAMPLES)])
            self._ranks = allotted(self._layers, measured, self.recipe.budget or self._numbers(uniform_ranks(self._layers, RANK)))
        torch.manual_seed(self.config.seed)
        self.parameters = attach(self.network, self.config.stage, self._ranks, self._info.alpha, full=self._whole)
        if start:
            fill(self.network, start, self._info)
            self.steps_before = start.info.steps
        self._use(self._names)
        differentiate(self._try, self.parameters)
        merge_where_it_pays(self.network, self.config.stage)
        trained = sum(parameter.numel() for parameter in self.parameters)
        places = {name.rpartition(".")[0] for name in self._whole} | {name for name, rank in self._ranks.items() if rank}
        words = "training %d numbers in %d layers of %s, %.1f %% of its own"
        log.info(words, trained, len(places), self._held.architecture, 100 * trained / self._own_numbers)
        ranked = zip(self._layers, measured, strict=True) if measured else ()
        return [LayerRank(each.name, each.kind, share, self._ranks[each.name], self._numbers_of(each)) for each, share in ranked]

    def _weighed(self, sample: Callable[[int], Batch], gradient: Callable[[Tensor, Batch], Tensor], index: int) -> Tensor:
        """Something whose gradient is that of the losses of a sample."""
        batch = sample(index)
        z_sr = self._answer(self.network, self.prepare(batch))
        return z_sr * gradient(z_sr, batch)

    def _numbers(self, ranks: Mapping[str, int]) -> int:
        return sum(ranks.get(layer.name, 0) * layer.cost for layer in self._layers)

    def _numbers_of(self, layer: Layer) -> int:
        return self._ranks[layer.name] * layer.cost

    @property
    def _info(self) -> AdapterInfo:
        """All layers have the factor alpha / rank of the recipe, whatever their ranks are."""
        largest = max(self._ranks.values(), default=0)
        alpha = self.recipe.alpha * largest / self.recipe.uniform
        return AdapterInfo(largest, alpha)

    # A step ----------------------------------------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> Tensor:
        """The raw input, (N, 3, h, w), RGB, float32 in [0, 1]."""
        return (batch.lq + 1) / 2

    def forward(self, prepared: Tensor) -> Tensor:
        """Pictures, (N, 3, h * s, w * s), RGB, float32, about [-1, 1]."""
        return self._answer(self.trained, prepared)

    def decode(self, z_sr: Tensor) -> Tensor:
        return z_sr

    @torch.no_grad()
    def views(self, batch: Batch) -> Mapping[str, Tensor]:
        """Of the bare network, of the pixel adapter, and of both where there are two."""
        stages: dict[str, list[str]] = {"network": [], PIXEL: [PIXEL], "both": [PIXEL, SEMANTIC]}
        picture, found = self.prepare(batch), {}
        for label, names in stages.items():
            if set(names) <= set(self._names):
                self._use(names)
                found[label] = self._answer(self.network, picture)
        self._use(self._names)
        return found

    def _use(self, names: Sequence[str]) -> None:
        """Have these adapters work, and the trained one's parameters alone want gradients."""
        use_adapters(self.network, names)
        self.network.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def save(self, step: int, folder: Path, *, half: bool = False) -> None:
        config, info = self.config, self._info
        steps, digest = self.steps_before + step, sha256_of(self._base)
        about = (config.base_name, config.stage, steps, config.licence, digest, self._pixel_sum)
        told = AdapterInfo(info.rank, info.alpha, *about)
        save_adapter(extract(self.network, config.stage, told), folder, torch.float16 if half else torch.float32)

    def _answer(self, network: Any, picture: Tensor) -> Tensor:
        """As the restorer asks it, but with a graph, and without a limit at black and white, which gradients do not cross."""
        planes = picture if self._held.channels == 3 else picture.flatten(0, 1)[:, None]
        with autocast(self._device, self._dtype):
            answer = self._held.answer(planes.clone(), network).float()  # some write into it
        return answer.reshape(len(picture), 3, *answer.shape[2:]) * 2 - 1


load = NetworkTrainee


def recomputed(model: nn.Module) -> int:
    """Have the blocks of a network compute their activations again for the backward pass instead of keeping them; how many.

    Blocks are what lists and sequences of modules hold, the outermost, if it is no single layer.
    """
    count = 0
    for child in model.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            blocks = [block for block in child if any(block.children())]
            for block in blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
            count += len(blocks)
        else:
            count += recomputed(child)
    return count
