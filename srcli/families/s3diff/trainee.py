"""The training of encoder, UNet and conditioners, each sample with the weights that its own scores make."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from srcli.config.training import TrainConfig
from srcli.errors import ModelError, UsageError
from srcli.families.s3diff import ESTIMATOR
from srcli.families.s3diff.estimator import Estimator
from srcli.families.s3diff.estimator_trainee import EstimatorTrainee
from srcli.families.s3diff.grades import damaged, drawn_grades
from srcli.families.s3diff.modulation import (
    CONDITIONER,
    FREQUENCIES,
    UNET,
    UNET_BLOCKS,
    VAE,
    VAE_BLOCKS,
    WIDTH,
    Conditioner,
    block_of,
    fourier_features,
)
from srcli.families.s3diff.recipe import SemanticRecipe
from srcli.families.s3diff.schedule import signal_share
from srcli.networks.adapters import Adapter, AdapterInfo
from srcli.networks.attached import attach, extract, fill
from srcli.networks.backbone import Autoencoder, PromptEncoder, load_autoencoder, load_unet
from srcli.networks.device import autocast
from srcli.networks.lora import LoraLayer, can_have_lora
from srcli.networks.saved_adapters import load_adapter, save_adapter, warn_of_strange_base
from srcli.protocol.training import Batch, Trainee
from srcli.store.adapter_files import find_adapter

_NEGATIVE_STREAM = 9
"""Of the seed."""
_FULL = rf"{UNET}\.conv_in\.(weight|bias)|({UNET}|{VAE}){CONDITIONER}\..*"
"""What is trained as it is, without LoRA."""
_REFERENCE_START = 1e-5
"""By which S3Diff's code multiplies the first weights of its conditioners' layers."""


class ModulatedNetwork(nn.Module):
    """Encoder, UNet and their conditioners, from pictures to z_sr; see `S3DiffRestorer`.

    Args:
        base: the base's folder.
        dtype: of the base's weights.
        ranks: of `UNET` and `VAE`.
        start: of the conditioners, as in `SemanticRecipe`.
        timestep: at which the step begins.
    """

    def __init__(self, base: Path, dtype: torch.dtype, ranks: Mapping[str, int], start: str, timestep: int) -> None:
        super().__init__()
        self.autoencoder: Autoencoder = load_autoencoder(base, dtype)
        self.unet: Any = load_unet(base, dtype)
        self.vae = self.autoencoder.network
        self.frequencies = nn.Parameter(torch.randn(WIDTH).half().float(), requires_grad=False)  # the same in half precision
        blocks = {UNET: UNET_BLOCKS, VAE: VAE_BLOCKS} if any(True for _ in self.vae.parameters()) else {UNET: UNET_BLOCKS}
        largest = max(ranks[network] for network in blocks)
        self.conditioners = {network: _fresh(count, ranks[network], largest, start) for network, count in blocks.items()}
        for network, conditioner in self.conditioners.items():
            self.add_module(f"{network}{CONDITIONER}", conditioner)
        self.recompute = False
        self._matrices: dict[str, Tensor] = {}
        self._timestep, alpha = timestep, signal_share(base, timestep)
        self._signal, self._noise = alpha**0.5, (1 - alpha) ** 0.5

    def modulate(self, adapter: str) -> None:
        """Have an attached adapter's layers compute B · Mᵀ · A, with M of each sample."""
        for name, module in self.named_modules():
            if isinstance(module, LoraLayer) and adapter in module.lora_A:
                network, _, layer = name.partition(".")
                module.lora_A[adapter].register_forward_hook(partial(self._mixed, network, block_of(network, layer)))

    def _mixed(self, network: str, block: int, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        """Mᵀ · u for the rank features u of each sample: (N, rank, h, w) or (N, L, rank) -> the same shape."""
        matrix = self._matrices[network][:, block].to(output.dtype)
        if output.ndim == 4:
            return torch.einsum("nkhw,nkj->njhw", output, matrix)
        return output @ matrix

    def forward(self, picture: Tensor, scores: Tensor, embedding: Tensor) -> Tensor:
        """z_sr, (N, channels, h, w), float32, with a graph to all that is trained.

        Args:
            picture: the enlarged input, (N, 3, H, W), RGB, in [-1, 1].
            scores: blur and noise, (N, 2), in [0, 1].
            embedding: of the prompts, (N, tokens, width).
        """
        with torch.autocast(picture.device.type, enabled=False):
            features = fourier_features(scores, self.frequencies)
            self._matrices = {network: conditioner(features) for network, conditioner in self.conditioners.items()}
        encode = self.autoencoder.encode
        z_lq = checkpoint(encode, picture, use_reentrant=False) if self.recompute else encode(picture)
        prediction = self.unet(z_lq, self._timestep, encoder_hidden_states=embedding).sample
        z_sr: Tensor = (z_lq.float() - self._noise * prediction.float()) / self._signal
        return z_sr


def _fresh(blocks: int, rank: int, largest: int, start: str) -> Conditioner:
    """A conditioner before training: of matrices of 1, or nearly none.

    An adapter has one factor for all its layers, alpha / the largest rank; that of layers of another rank is in the matrices.
    """
    conditioner = Conditioner(blocks, rank)
    if start == "identity":
        nn.init.zeros_(conditioner.fuse.weight)
        conditioner.fuse.bias.data = (torch.eye(rank) * (largest / rank)).flatten()
        return conditioner
    for layer in (conditioner.degradation, conditioner.block, conditioner.fuse):
        nn.init.kaiming_normal_(layer.weight)
        layer.weight.data.mul_(_REFERENCE_START)
        nn.init.zeros_(layer.bias)
    return conditioner


class S3DiffTrainee(Trainee):
    """What the semantic stage trains and what it needs for that.

    Args:
        config: of the run.
        base: the base's folder.
        device: of all networks.
        dtype: of the frozen weights.

    Raises:
        UsageError: a crop that does not consist of whole latent cells.
        ModelError: a base or adapter that cannot be used.
    """

    def __init__(self, config: TrainConfig, base: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.recipe = config, cast(SemanticRecipe, config.recipe)
        self._device, self._dtype = device, dtype
        ranks = {UNET: self.recipe.rank, VAE: self.recipe.vae_rank}
        self.network = ModulatedNetwork(base, dtype, ranks, self.recipe.start, int(config.told["timestep"]))
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        autoencoder = self.network.autoencoder
        self.factor = autoencoder.factor
        if self.recipe.crop % self.factor:
            message = f"the crop `{self.recipe.crop}` is no multiple of {self.factor}, the pixels of a latent cell"
            raise UsageError(message, f"give a multiple of both that and the scale {config.scale} as `--crop`")
        self.decodes_alone = any(True for _ in autoencoder.network.parameters())
        estimator = load_adapter(find_adapter(config.adapters[ESTIMATOR], ESTIMATOR), ESTIMATOR)
        self._estimator = Estimator.of_tensors(estimator.tensors).to(device)
        self.frozen: Sequence[nn.Module] = [self._estimator]
        self._info = AdapterInfo(max(ranks[network] for network in self.network.conditioners), self.recipe.alpha)
        self.parameters = attach(self.network, config.stage, self._ranks(ranks), self._info.alpha, full=_FULL)
        self.steps_before = self._start_from(config.start_from)
        self.network.modulate(config.stage)
        if config.gradient_checkpointing:
            self.network.unet.enable_gradient_checkpointing()
            self.network.recompute = True
        self.trained: Any = self.network
        prompts = [str(config.told[f"prompts.{each}"]) for each in ("positive", "negative")]
        self._embeddings = PromptEncoder(base, torch.device("cpu"))(prompts).to(device)

    def _ranks(self, ranks: Mapping[str, int]) -> dict[str, int]:
        """Of the layers that `targets` fits, by their names.

        Raises:
            UsageError: it fits no layer of the UNet.
        """
        layers = (name for name, module in self.network.named_modules() if can_have_lora(module))
        chosen = {name: ranks[name.partition(".")[0]] for name in layers if re.fullmatch(self.recipe.targets, name)}
        if not any(name.startswith(UNET) for name in chosen):
            raise UsageError(f"`targets` fits no layer of the UNet: `{self.recipe.targets}`", "leave it out for the model's own")
        return chosen

    def _start_from(self, path: Path | None) -> int:
        """Fill the attached adapter with a trained one's weights; the steps that it was trained."""
        if path is None:
            return 0
        start = load_adapter(find_adapter(path, self.config.stage), self.config.stage)
        warn_of_strange_base(start, (self.config.base_name,))
        tensors = dict(start.tensors)
        if FREQUENCIES not in tensors:
            raise ModelError(f"`{path}` is no adapter of this method", "give one that `srcli train-semantic` made for this model")
        self.network.frequencies.data.copy_(tensors.pop(FREQUENCIES))
        fill(self.network, Adapter(start.name, tensors, start.info), self._info)
        return start.info.steps

    # A step ----------------------------------------------------------------------------------------------------------

    def aimed(self, batch: Batch) -> Batch:
        """Online negative prompting: some samples are to become their own enlarged input, which no discriminator judges."""
        if self.recipe.scores == "drawn":
            batch = cast(Batch, dataclasses.replace(cast(Any, batch), lq=self._graded(batch)))
        negative = self._negative(batch)
        own = torch.tensor(negative, device=batch.hq.device)[:, None, None, None]
        aims = {"hq": torch.where(own, self._enlarged(batch), batch.hq), "judged": [not each for each in negative]}
        return cast(Batch, dataclasses.replace(cast(Any, batch), **aims))

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The enlarged input, its scores, and the embedding of each sample's prompt; see `ModulatedNetwork`."""
        scores = self._drawn(batch) if self.recipe.scores == "drawn" else self._scores(batch)
        return self._enlarged(batch), scores, self._embeddings[[int(each) for each in self._negative(batch)]]

    def forward(self, prepared: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        with autocast(self._device, self._dtype):
            z_sr: Tensor = self.trained(*prepared)
        return z_sr

    def decode(self, z_sr: Tensor) -> Tensor:
        with autocast(self._device, self._dtype):
            return self.network.autoencoder.decode(z_sr).float()

    @torch.no_grad()
    def views(self, batch: Batch) -> Mapping[str, Tensor]:
        """The result without guidance."""
        positive = self._embeddings[:1].expand(len(batch.indices), -1, -1)
        with autocast(self._device, self._dtype):
            return {"sr": self.network(self._enlarged(batch), self._scores(batch), positive)}

    def save(self, step: int, folder: Path, *, half: bool = False) -> None:
        config = self.config
        info = dataclasses.replace(
            self._info, base=config.base_name, stage=config.stage, steps=self.steps_before + step, licence=config.licence
        )
        adapter = extract(self.network, config.stage, info)
        adapter.tensors[FREQUENCIES] = self.network.frequencies.detach().cpu().clone()
        save_adapter(adapter, folder, torch.float16 if half else torch.float32)

    def _enlarged(self, batch: Batch) -> Tensor:
        """(N, 3, crop, crop), as the row has it enlarged at inference."""
        mode = str(self.config.told["enlargement"])
        return functional.interpolate(batch.lq, scale_factor=self.config.scale, mode=mode, antialias=True).clamp(-1, 1)

    @torch.no_grad()
    def _scores(self, batch: Batch) -> Tensor:
        scores: Tensor = self._estimator((batch.lq + 1) / 2)
        return scores

    def _graded(self, batch: Batch) -> Tensor:
        """The samples' damage by the degrees that `_drawn` tells: (N, 3, h, w), RGB, in [-1, 1]."""
        ranges, seed = self.recipe.degradation, self.config.seed
        damages = [
            damaged((hq + 1) / 2, drawn_grades(seed, index)[0], self.config.scale, ranges, seed, index)
            for hq, index in zip(batch.hq, batch.indices, strict=True)
        ]
        return torch.stack(damages) * 2 - 1

    def _drawn(self, batch: Batch) -> Tensor:
        """How strong that is: blur and noise, (N, 2)."""
        first = [drawn_grades(self.config.seed, index)[0] for index in batch.indices]
        return torch.tensor([(grade.blur, grade.noise) for grade in first], device=batch.lq.device)

    def _negative(self, batch: Batch) -> list[bool]:
        """Which samples are: a function of the seed and their indices."""
        ratio, seed = self.recipe.negative_ratio, self.config.seed
        return [bool(np.random.default_rng([seed, _NEGATIVE_STREAM, index]).random() < ratio) for index in batch.indices]


def load(config: TrainConfig, base: Path, device: torch.device, dtype: torch.dtype) -> S3DiffTrainee | EstimatorTrainee:
    """What a stage trains; raises as `S3DiffTrainee` and `EstimatorTrainee`."""
    if config.stage == ESTIMATOR:
        return EstimatorTrainee(config, device, dtype)
    return S3DiffTrainee(config, base, device, dtype)
