"""The discriminator of the adversarial loss, with its optimiser."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from srcli.config.recipe import Gan
from srcli.training.launch import spread
from srcli.training.losses.adversarial import (
    UNetDiscriminator,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)

BETAS = (0.9, 0.99)


class Critic:
    """Judges pictures and learns beside the adapter.

    Args:
        settings: kind, size, learning rate, penalty.
        seed: of its first weights.
        accelerator: tells device, precision, processes and when to step.
    """

    def __init__(self, settings: Gan, seed: int, accelerator: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = UNetDiscriminator(settings.features)
        self.settings = settings
        self.accelerator = accelerator
        self.network = network.to(accelerator.device).to(memory_format=torch.channels_last)
        self._trained: nn.Module = self.network
        if accelerator.num_processes > 1:
            with spread():
                self._trained = nn.parallel.DistributedDataParallel(self.network, broadcast_buffers=False)
        self.optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=BETAS)

    def judge(self, sr: Tensor, hq: Tensor) -> Tensor:
        """What the adapter is to lower, a scalar: (N, 3, H, W) each, RGB, about [-1, 1]; gradients reach `sr` only."""
        needs_real = self.settings.kind == "relativistic"
        self.network.requires_grad_(False)
        try:
            with self._autocast(sr):
                fake = self.network(sr)
                real = self.network(hq) if needs_real else None
        finally:
            self.network.requires_grad_(True)
        return generator_loss(fake, real, self.settings.kind)

    def learn(self, sr: Tensor, hq: Tensor) -> dict[str, Tensor]:
        """Learn from restored and real pictures, both without a graph; steps when the adapter does. Returns its losses.

        Where the gradient is no number, the loss that is returned is none either.
        """
        count = len(sr)
        with self._autocast(sr):
            logits = self._trained(torch.cat([hq, sr])).float()
        loss = discriminator_loss(logits[:count], logits[count:], self.settings.kind)
        values = {"discriminator": loss.detach()}
        if self.settings.r1:
            penalty = gradient_penalty(self.network, hq.float())
            values["r1"] = penalty.detach()
            loss = loss + self.settings.r1 * penalty
        (loss / self.accelerator.gradient_accumulation_steps).backward()
        if self.accelerator.sync_gradients:
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), math.inf)
            values["discriminator"] = torch.where(norm.isfinite(), values["discriminator"], norm)  # the loop ends the run by it
            self.optimiser.step()
            self.optimiser.zero_grad()
        return values

    def _autocast(self, picture: Tensor) -> torch.autocast:
        """bfloat16 where the run has it; never float16, whose loss scale belongs to the adapter's optimiser."""
        return torch.autocast(picture.device.type, torch.bfloat16, enabled=self.accelerator.mixed_precision == "bf16")

    def state(self) -> dict[str, Any]:
        """Weights and optimiser, on the CPU or wherever they are."""
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
