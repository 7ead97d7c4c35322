"""The networks of a training run: the frozen base, the adapters on its UNet, and the same UNet without them as teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srcli.config.training import TrainConfig
from srcli.errors import UsageError
from srcli.networks.adapters import (
    Adapter,
    AdapterInfo,
    attach,
    attach_frozen,
    extract,
    fill,
    find_adapter,
    load_adapter,
    use_adapters,
    warn_of_strange_base,
)
from srcli.networks.backbone import Autoencoder, PromptEncoder, load_alphas, load_autoencoder, load_unet
from srcli.networks.merged import merge_where_it_pays

PIXEL, SEMANTIC = "pixel", "semantic"


class StageNetworks:
    """What one stage trains and what it needs for that.

    The base is kept once, in the precision of the run; adapters are float32. The teacher of score distillation is the same UNet
    with its adapters switched off, so it costs no memory.

    Args:
        config: of the run.
        base: the base's folder.
        device: of all networks.
        dtype: of the frozen weights.

    Attributes:
        unet: the UNet with its adapters; the loop may wrap it and put the wrapped one into `trained`.
        trained: what `restore` calls.
        parameters: those of the trained adapter, float32.
        pixel: the frozen pixel adapter of the semantic stage, else None.
        steps_before: what the adapter that the run starts from had been trained.
        alphas: cumulative products of the noise schedule, (1000,), float32.

    Raises:
        UsageError: a crop that does not consist of whole latent cells.
        ModelError: a base or adapter that cannot be used.
    """

    def __init__(self, config: TrainConfig, base: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.config = config
        self.device, self.dtype = device, dtype
        self.autoencoder: Autoencoder = load_autoencoder(base, dtype)
        if config.recipe.crop % self.autoencoder.factor:
            message = f"the crop `{config.recipe.crop}` is no multiple of {self.autoencoder.factor}, the pixels of a latent cell"
            raise UsageError(message, f"give a multiple of both that and the scale {config.scale} as `--crop`")
        self.autoencoder.network.to(device)
        self.unet: Any = load_unet(base, dtype).to(device, memory_format=torch.channels_last)
        self.pixel = load_adapter(find_adapter(config.pixel, PIXEL), PIXEL) if config.pixel and config.stage == SEMANTIC else None
        if self.pixel is not None:
            warn_of_strange_base(self.pixel, (config.base_name,))
            attach_frozen(self.unet, self.pixel)
        recipe = config.recipe
        self.parameters = attach(self.unet, config.stage, recipe.rank, recipe.alpha, recipe.targets)
        self.steps_before = 0
        if config.start_from is not None:
            start = load_adapter(find_adapter(config.start_from, config.stage), config.stage)
            warn_of_strange_base(start, (config.base_name,))
            fill(self.unet, start, AdapterInfo(recipe.rank, recipe.alpha))
            self.steps_before = start.info.steps
        self.names = [PIXEL, SEMANTIC] if self.pixel is not None else [config.stage]
        self._switch(self.names)
        merge_where_it_pays(self.unet, config.stage)
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.trained: Any = self.unet
        self.prompts = PromptEncoder(base, device)
        self.alphas = load_alphas(base).to(device) if recipe.losses.csd else torch.empty(0)

    def autocast(self) -> Any:
        """The context in which networks compute in the run's precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """(N, tokens, width), float32, on the device."""
        return self.prompts(prompts)

    @torch.no_grad()
    def encode(self, picture: Tensor) -> Tensor:
        """(N, 3, H, W), RGB, in [-1, 1], to latents; one by one where the encoder needs memory."""
        parts = torch.split(picture, 1) if self.autoencoder_learned else [picture]
        with self.autocast():
            return torch.cat([self.autoencoder.encode(part).float() for part in parts])

    @property
    def autoencoder_learned(self) -> bool:
        """Whether the autoencoder has weights, and so a decoder graph worth splitting."""
        return any(True for _ in self.autoencoder.network.parameters())

    def restore(self, z_lq: Tensor, embedding: Tensor) -> Tensor:
        """z_sr = z_lq - ε(z_lq) with all adapters (PiSA-SR, eqs. 3 and 4): (N, channels, h, w), float32."""
        with self.autocast():
            residual: Tensor = self.trained(z_lq, self.config.timestep, encoder_hidden_states=embedding).sample
        return z_lq - residual.float()

    @torch.no_grad()
    def restore_with(self, names: Sequence[str], z_lq: Tensor, embedding: Tensor) -> Tensor:
        """As `restore`, with some of the adapters and without gradients."""
        with self._only(names), self.autocast():
            residual: Tensor = self.unet(z_lq, self.config.timestep, encoder_hidden_states=embedding).sample
        return z_lq - residual.float()

    @torch.no_grad()
    def teacher(self, noisy: Tensor, timestep: Tensor, embedding: Tensor) -> Tensor:
        """ε of the frozen base: (N, channels, h, w), (N,), (N, tokens, width) -> (N, channels, h, w), float32."""
        with self._only([]), self.autocast():
            epsilon: Tensor = self.unet(noisy, timestep, encoder_hidden_states=embedding).sample
        return epsilon.float()

    def adapter(self, step: int) -> Adapter:
        """The trained adapter as it is now, on the CPU, float32."""
        config = self.config
        info = AdapterInfo(
            config.recipe.rank, config.recipe.alpha, config.base_name, config.stage, self.steps_before + step, config.licence
        )
        return extract(self.unet, config.stage, info)

    def lora_b(self) -> dict[str, torch.nn.Parameter]:
        """The trained adapter's B matrices by their layers' names."""
        mark = f".lora_B.{self.config.stage}.weight"
        return {name.removesuffix(mark): p for name, p in self.unet.named_parameters() if name.endswith(mark)}

    @contextmanager
    def _only(self, names: Sequence[str]) -> Iterator[None]:
        self._switch(names)
        try:
            yield
        finally:
            self._switch(self.names)

    def _switch(self, names: Sequence[str]) -> None:
        use_adapters(self.unet, names)
        for parameter in self.unet.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
