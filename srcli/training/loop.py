"""Training of the pixel adapter (PiSA-SR, stage 1): frozen base, ℓ2 in image space, one step of diffusion."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from srcli.config import TrainPixelConfig
from srcli.errors import ModelError, UsageError
from srcli.models.adapters import AdapterInfo, attach, extract, restore_state, save_adapter
from srcli.models.backbone import Autoencoder, load_autoencoder, load_unet, prompt_embedding
from srcli.models.device import bf16_pays, choose_device
from srcli.training.checkpoint import Checkpoint, load_checkpoint, remove_checkpoint, save_checkpoint
from srcli.training.data import DegradedCrops, find_photos
from srcli.training.losses import pixel_loss

log = logging.getLogger("srcli")

STAGE = "pixel"
CLIP_NORM = 1.0
WEIGHT_DECAY = 1e-2


def train_pixel(config: TrainPixelConfig, base: Path) -> Path:
    """Train a pixel adapter and save it; goes on where a killed run of the same settings stopped.

    Args:
        config: all settings; `config.output` gets `pixel/adapter_model.safetensors` and, meanwhile, `checkpoint/`.
        base: the base's folder, in diffusers' layout.

    Returns:
        the adapter's file.

    Raises:
        UsageError: no photos, or a crop that the base cannot take.
        ModelError: a base or checkpoint that cannot be used, or a loss that is not a number.
    """
    return _PixelRun(config, base).run()


class _PixelRun:
    """The state of one run: networks, optimiser, data, step."""

    def __init__(self, config: TrainPixelConfig, base: Path) -> None:
        from accelerate import Accelerator
        from accelerate.utils import set_seed

        set_seed(config.seed)
        self.config = config
        if config.device != "auto":
            os.environ["ACCELERATE_TORCH_DEVICE"] = str(choose_device(config.device))
        self.accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision=_precision(config))
        self.autoencoder = load_autoencoder(base)
        self.autoencoder.network.to(self.accelerator.device)
        unet = load_unet(base).to(memory_format=torch.channels_last)
        parameters = attach(unet, STAGE, config.rank, config.alpha)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=WEIGHT_DECAY)
        self.embedding = prompt_embedding(base, config.prompt).to(self.accelerator.device)
        self.step = self._resume(unet, optimiser)
        self.unet, self.optimiser, self.loader = self.accelerator.prepare(unet, optimiser, self._loader(self.autoencoder))

    def run(self) -> Path:
        config = self.config
        with _Progress(config, self.step, shown=self.accelerator.is_main_process) as progress:
            for batch in self.loader:
                loss = self._train_step(batch)
                self.step += 1
                progress.update(self.step, loss)
                if self.step % config.save_every == 0 and self.step < config.steps:
                    self._save_checkpoint()
        return self._finish()

    def _train_step(self, batch: dict[str, Tensor]) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.config.steps, self.config.learning_rate, self.config.warmup)
        lq, hq = batch["lq"], batch["hq"]
        with torch.no_grad():
            z_lq = self.autoencoder.encode(lq)
        with self.accelerator.autocast():
            embedding = self.embedding.expand(len(lq), -1, -1)
            residual = self.unet(z_lq, self.config.timestep, encoder_hidden_states=embedding).sample
            sr = self.autoencoder.decode(z_lq - residual.float())
        loss = pixel_loss(sr.float(), hq, self.config.l1_weight)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.unet.parameters(), CLIP_NORM)
        self.optimiser.step()
        self.optimiser.zero_grad()
        value = float(loss.detach())
        if not math.isfinite(value):
            hint = "lower `--learning-rate`, or use `--dtype fp32`; the last checkpoint is kept"
            raise ModelError(f"the loss is not a number at step {self.step}", hint)
        return value

    def _loader(self, autoencoder: Autoencoder) -> DataLoader[dict[str, Tensor]]:
        config = self.config
        if config.crop % autoencoder.factor:
            raise UsageError(f"the crop `{config.crop}` is not a multiple of `{autoencoder.factor}`, which the base needs")
        processes = self.accelerator.num_processes
        length = config.steps * config.batch * processes
        data = DegradedCrops(find_photos(config.photos), config.crop, length, config.seed, config.scale)
        left = Subset(data, range(self.step * config.batch * processes, length))
        return DataLoader(left, config.batch, num_workers=config.workers, pin_memory=self.accelerator.device.type == "cuda")

    def _settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "base": config.base_name,
            "rank": config.rank,
            "alpha": config.alpha,
            "batch": config.batch,
            "crop": config.crop,
            "seed": config.seed,
            "steps": config.steps,
            "learning_rate": config.learning_rate,
        }

    def _resume(self, unet: Any, optimiser: torch.optim.Optimizer) -> int:
        found = load_checkpoint(self.config.output, STAGE, self._settings())
        if found is None:
            return 0
        restore_state(unet, found.adapter)
        optimiser.load_state_dict(found.optimiser)
        log.info("going on from step %d in `%s`", found.step, self.config.output)
        return found.step

    def _adapter(self) -> Any:
        config = self.config
        info = AdapterInfo(config.rank, config.alpha, config.base_name, STAGE, self.step, config.licence)
        return extract(self.accelerator.unwrap_model(self.unet), STAGE, info)

    def _save_checkpoint(self) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            state = self.optimiser.optimizer.state_dict()
            save_checkpoint(Checkpoint(self.step, self._adapter(), state, self._settings()), self.config.output)

    def _finish(self) -> Path:
        self.accelerator.wait_for_everyone()
        folder = self.config.output / STAGE
        path = folder / "adapter_model.safetensors"
        if self.accelerator.is_main_process:
            path = save_adapter(self._adapter(), folder, torch.float16)
            remove_checkpoint(self.config.output)
        return path


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a half cosine from `peak` to zero at `steps`."""
    warm = min(1.0, (step + 1) / max(1, warmup))
    return peak * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def _precision(config: TrainPixelConfig) -> str:
    """Accelerate's name of the mixed precision."""
    device = choose_device(config.device)
    if config.dtype == "auto":
        return "bf16" if bf16_pays(device) else "no"
    if config.dtype == "fp16" and device.type == "cpu":
        raise UsageError("a CPU does not train in fp16", "use `--dtype bf16` or `--dtype fp32`")
    return {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}[config.dtype]


class _Progress:
    """A bar for people, lines for log files; nothing from other processes than the main one.

    Args:
        config: for `steps` and `log_every`.
        step: how many are done already.
        shown: False keeps silent.
    """

    def __init__(self, config: TrainPixelConfig, step: int, *, shown: bool) -> None:
        self._config = config
        self._first, self._start = step, time.monotonic()
        self._mean = math.nan
        on_screen = sys.stderr.isatty() and log.isEnabledFor(logging.INFO)
        self._lines = shown and not on_screen
        self._bar = tqdm(total=config.steps, initial=step, unit="step", disable=not (shown and on_screen), dynamic_ncols=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def update(self, step: int, loss: float) -> None:
        """After `step` steps; the loss shown is a moving average over some 50 steps."""
        steps = self._config.steps
        self._mean = loss if math.isnan(self._mean) else 0.98 * self._mean + 0.02 * loss
        self._bar.set_postfix(loss=f"{self._mean:.5f}", refresh=False)
        self._bar.update()
        if self._lines and (step % self._config.log_every == 0 or step == steps):
            pace = (time.monotonic() - self._start) / (step - self._first)
            left = pace * (steps - step) / 60
            log.info("step %d of %d, loss %.5f, %.2f s a step, %.0f min left", step, steps, self._mean, pace, left)
