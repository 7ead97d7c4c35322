"""The networks of a stage: the frozen base, the adapters on its UNet, and the same UNet without them as teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from srcli.config.training import TrainConfig
from srcli.errors import UsageError
from srcli.families.pisasr import PIXEL, SEMANTIC
from srcli.families.pisasr.csd import csd, draw_timesteps_and_noise
from srcli.families.pisasr.orthogonal import Projector, fidelity_subspaces
from srcli.families.pisasr.recipe import SemanticRecipe
from srcli.networks.adapters import Adapter, AdapterInfo
from srcli.networks.attached import attach, attach_frozen, extract, fill, use_adapters
from srcli.networks.backbone import Autoencoder, PromptEncoder, load_alphas, load_autoencoder, load_unet
from srcli.networks.device import autocast
from srcli.networks.merged import merge_where_it_pays
from srcli.networks.saved_adapters import load_adapter, save_adapter, warn_of_another_beside, warn_of_strange_base
from srcli.protocol.training import Batch, Trainee
from srcli.store.adapter_files import find_adapter
from srcli.store.weights import sha256_of

_NULL_PROMPT_STREAM = 4
"""Of the seed."""


class PisaTrainee(Trainee):
    """What one stage trains and what it needs for that.

    The base is kept once, in the precision of the run; adapters are float32. The teacher of score distillation is the same UNet
    with its adapters switched off, so it costs no memory.

    Args:
        config: of the run.
        base: the base's folder.
        device: of all networks.
        dtype: of the frozen weights.

    Attributes:
        steps_before: what the adapter that the run starts from had been trained.
        alphas: cumulative products of the noise schedule, (1000,), float32; empty without score distillation.

    Raises:
        UsageError: a crop that does not consist of whole latent cells.
        ModelError: a base or adapter that cannot be used.
    """

    def __init__(self, config: TrainConfig, base: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.recipe = config, config.recipe
        self._device, self._dtype = device, dtype
        self._autoencoder: Autoencoder = load_autoencoder(base, dtype)
        self.factor = self._autoencoder.factor
        if self.recipe.crop % self.factor:
            message = f"the crop `{self.recipe.crop}` is no multiple of {self.factor}, the pixels of a latent cell"
            raise UsageError(message, f"give a multiple of both that and the scale {config.scale} as `--crop`")
        self._autoencoder.network.to(device)
        self.frozen = [self._autoencoder.network]
        self.decodes_alone = any(True for _ in self._autoencoder.network.parameters())
        self.network: Any = load_unet(base, dtype).to(device, memory_format=torch.channels_last)
        pixel = self._attach_pixel(config.adapters.get(PIXEL))
        self._names = [PIXEL, SEMANTIC] if pixel is not None else [config.stage]
        self.parameters = attach(self.network, config.stage, self.recipe.rank, self.recipe.alpha, self.recipe.targets)
        self.steps_before = self._start_from(config.start_from)
        self._switch(self._names)
        merge_where_it_pays(self.network, config.stage)
        if config.gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        self.trained: Any = self.network
        self._prompts = PromptEncoder(base, device, cut=True)
        self.alphas = load_alphas(base).to(device) if self._csd_weight else torch.empty(0)
        if config.captions and self._prompts.named:
            raise UsageError(f"captions need a text encoder, which `{config.base_name}` has not", "leave out `--captions`")
        self._projector = self._make_projector(pixel)

    # Set-up ----------------------------------------------------------------------------------------------------------

    def _attach_pixel(self, path: Path | None) -> Adapter | None:
        self._pixel_sum = ""
        if path is None:
            return None
        file = find_adapter(path, PIXEL)
        pixel, self._pixel_sum = load_adapter(file, PIXEL), sha256_of(file)
        warn_of_strange_base(pixel, (self.config.base_name,))
        attach_frozen(self.network, pixel)
        return pixel

    def _start_from(self, path: Path | None) -> int:
        """Fill the attached adapter with a trained one's weights; the steps that it was trained."""
        if path is None:
            return 0
        start = load_adapter(find_adapter(path, self.config.stage), self.config.stage)
        warn_of_strange_base(start, (self.config.base_name,))
        if PIXEL in self.config.adapters:
            warn_of_another_beside(start, PIXEL, find_adapter(self.config.adapters[PIXEL], PIXEL))
        fill(self.network, start, AdapterInfo(self.recipe.rank, self.recipe.alpha))
        return start.info.steps

    def _make_projector(self, pixel: Adapter | None) -> Projector | None:
        if pixel is None or not isinstance(self.recipe, SemanticRecipe) or not self.recipe.orthogonal:
            return None
        mark = f".lora_B.{self.config.stage}.weight"
        own = {name.removesuffix(mark): p for name, p in self.network.named_parameters() if name.endswith(mark)}
        return Projector(own, fidelity_subspaces(pixel, self.recipe.orthogonal_energy))

    @property
    def _csd_weight(self) -> float:
        return getattr(self.recipe.losses, "csd", 0.0)

    @property
    def _inference(self) -> str:
        return str(self.config.told["prompt"])

    @property
    def _positive(self) -> str:
        return str(self.config.told["prompts.positive"])

    @property
    def _negative(self) -> str:
        return str(self.config.told["prompts.negative"])

    # A step ----------------------------------------------------------------------------------------------------------

    def know(self, prompts: Sequence[str]) -> None:
        self._prompts(sorted({self._inference, self._negative, self._positive, *prompts}))
        self._prompts.release()

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """z_lq, (N, channels, h, w), and the embeddings of what the UNet is told, (N, tokens, width); float32."""
        return self._encode(batch.lq), self._prompts(self._seen_prompts(batch))

    def forward(self, prepared: tuple[Tensor, Tensor]) -> Tensor:
        """z_sr = z_lq - ε(z_lq) with all adapters (eqs. 3 and 4)."""
        return self._restored(self.trained, *prepared)

    def decode(self, z_sr: Tensor) -> Tensor:
        with autocast(self._device, self._dtype):
            return self._autoencoder.decode(z_sr).float()

    def losses(self, z_sr: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score distillation under each sample's prompt, with noise that is a function of the seed and the samples."""
        if not self._csd_weight:
            return {}
        settings = cast(SemanticRecipe, self.recipe).csd
        seeds = [self.config.seed * 1_000_003 + index for index in batch.indices]
        timestep, noise = draw_timesteps_and_noise(
            seeds,
            z_sr.shape[1:],
            step_range=settings.step_range,
            train_timesteps=len(self.alphas),
            device=z_sr.device,
        )
        positive, negative = self._prompts(batch.prompts), self._prompts([self._negative] * len(z_sr))
        return {"csd": csd(z_sr, self._teacher, positive, negative, timestep, noise, self.alphas, settings.guidance_scale)}

    def before_step(self) -> None:
        if self._projector is not None:
            self._projector.project_gradients()

    def after_step(self) -> None:
        if self._projector is not None:
            self._projector.project_weights()

    @torch.no_grad()
    def views(self, batch: Batch) -> Mapping[str, Tensor]:
        """Under the inference prompt: of the pixel adapter alone, and of both."""
        z_lq, embedding = self._encode(batch.lq), self._prompts([self._inference] * len(batch.indices))
        stages = {PIXEL: [PIXEL], "both": self._names} if len(self._names) > 1 else {PIXEL: self._names}
        views = {}
        for label, names in stages.items():
            with self._only(names):
                views[label] = self._restored(self.network, z_lq, embedding)
        return views

    def save(self, step: int, folder: Path, *, half: bool = False) -> None:
        save_adapter(self.adapter(step), folder, torch.float16 if half else torch.float32)

    def adapter(self, step: int) -> Adapter:
        """The trained adapter as it is now, on the CPU, float32."""
        steps, config = self.steps_before + step, self.config
        about = (config.base_name, config.stage, steps, config.licence)
        info = AdapterInfo(self.recipe.rank, self.recipe.alpha, *about, on_sha256=self._pixel_sum)
        return extract(self.network, config.stage, info)

    # Networks --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _encode(self, picture: Tensor) -> Tensor:
        """(N, 3, H, W), RGB, in [-1, 1], to latents; one by one where the encoder needs memory."""
        parts = torch.split(picture, 1) if self.decodes_alone else [picture]
        with autocast(self._device, self._dtype):
            return torch.cat([self._autoencoder.encode(part).float() for part in parts])

    def _restored(self, unet: Any, z_lq: Tensor, embedding: Tensor) -> Tensor:
        with autocast(self._device, self._dtype):
            residual: Tensor = unet(z_lq, int(self.config.told["timestep"]), encoder_hidden_states=embedding).sample
        return z_lq - residual.float()

    @torch.no_grad()
    def _teacher(self, noisy: Tensor, timestep: Tensor, embedding: Tensor) -> Tensor:
        """ε of the frozen base: (N, channels, h, w), (N,), (N, tokens, width) -> (N, channels, h, w), float32."""
        with self._only([]), autocast(self._device, self._dtype):
            epsilon: Tensor = self.network(noisy, timestep, encoder_hidden_states=embedding).sample
        return epsilon.float()

    def _seen_prompts(self, batch: Batch) -> list[str]:
        """What the trained UNet is told for each sample: its own prompt, or the empty one of inference by chance."""
        if not self._csd_weight:
            return [self._inference] * len(batch.indices)
        ratio = cast(SemanticRecipe, self.recipe).csd.null_prompt_ratio
        seen = []
        for index, prompt in zip(batch.indices, batch.prompts, strict=True):
            null = np.random.default_rng([self.config.seed, _NULL_PROMPT_STREAM, index]).random() < ratio
            seen.append(self._inference if null else prompt)
        return seen

    @contextmanager
    def _only(self, names: Sequence[str]) -> Iterator[None]:
        self._switch(names)
        try:
            yield
        finally:
            self._switch(self._names)

    def _switch(self, names: Sequence[str]) -> None:
        use_adapters(self.network, names)
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)


load = PisaTrainee
