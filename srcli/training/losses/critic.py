"""The discriminator of the adversarial loss, with its optimiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from srcli.config.recipe import Gan
from srcli.networks.features import FeatureNetwork
from srcli.training.launch import spread
from srcli.training.losses.adversarial import (
    UNetDiscriminator,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from srcli.training.losses.projected import ProjectedDiscriminator, augmented

BETAS = (0.9, 0.99)


class Critic:
    """Judges pictures and learns beside the adapter.

    Args:
        settings: kind, size, learning rate, penalty.
        seed: of its first weights, and of augmentation.
        accelerator: tells device, precision, processes and when to step.
        features: the frozen network on the device, where the settings want one.
    """

    def __init__(self, settings: Gan, seed: int, accelerator: Any, features: FeatureNetwork | None = None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: nn.Module = (
                ProjectedDiscriminator(features, settings.features) if features else UNetDiscriminator(settings.features)
            )
        self._augments, self._seed = features is not None, seed
        self.settings = settings
        self.accelerator = accelerator
        self.network = network.to(accelerator.device).to(memory_format=torch.channels_last)
        self._trained: nn.Module = self.network
        if accelerator.num_processes > 1:
            with spread():
                self._trained = nn.parallel.DistributedDataParallel(self.network, broadcast_buffers=False)
        self.optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=BETAS)

    def judge(self, sr: Tensor, hq: Tensor, indices: Sequence[int], judged: Sequence[bool] | None = None) -> Tensor:
        """What the adapter is to lower, a scalar, for samples of these indices: the mean over all, 0 for those not `judged`.

        Pictures are (N, 3, H, W), RGB, about [-1, 1]; gradients reach `sr` only.
        """
        sr, hq, indices, share = _judged(sr, hq, indices, judged)
        settings, pictures = self.settings, self._shown(sr, hq, indices)
        self.network.requires_grad_(False)
        try:
            with self._autocast(sr):
                fake = _depths(self.network(pictures[0]))
                real = _depths(self.network(pictures[1])) if settings.kind == "relativistic" else [None] * len(fake)
        finally:
            self.network.requires_grad_(True)
        losses = [generator_loss(*both, settings.kind, settings.target) for both in zip(fake, real, strict=True)]
        return torch.stack(losses).sum() * share

    def learn(self, sr: Tensor, hq: Tensor, indices: Sequence[int], judged: Sequence[bool] | None = None) -> dict[str, Tensor]:
        """Learn from samples' restored and real pictures, both without a graph; steps when the adapter does. Returns its losses.

        Of those that are `judged`, or all. Where the gradient is no number, the loss that is returned is none either.
        """
        settings = self.settings
        sr, hq, indices, share = _judged(sr, hq, indices, judged)
        with self._autocast(sr):
            logits = _depths(self._trained(torch.cat(self._shown(hq, sr, indices))))
        halves = [depth.float().chunk(2) for depth in logits]
        loss = torch.stack([discriminator_loss(real, fake, settings.kind, settings.target) for real, fake in halves]).sum()
        values = {"discriminator": loss.detach()}
        if self.settings.r1:
            penalty = gradient_penalty(self.network, hq.float())
            values["r1"] = penalty.detach()
            loss = loss + self.settings.r1 * penalty
        (loss * share / self.accelerator.gradient_accumulation_steps).backward()
        if self.accelerator.sync_gradients:
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), math.inf)
            values["discriminator"] = torch.where(norm.isfinite(), values["discriminator"], norm)  # the loop ends the run by it
            self.optimiser.step()
            self.optimiser.zero_grad()
        return values

    def _shown(self, one: Tensor, other: Tensor, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """What the network is to see of pictures and of the same ones otherwise: augmented alike, if at all."""
        return augmented(torch.cat([one, other]), self._seed, indices).chunk(2) if self._augments else (one, other)

    def _autocast(self, picture: Tensor) -> torch.autocast:
        """bfloat16 where the run has it; never float16, whose loss scale belongs to the adapter's optimiser."""
        return torch.autocast(picture.device.type, torch.bfloat16, enabled=self.accelerator.mixed_precision == "bf16")

    def state(self) -> dict[str, Any]:
        """Weights and optimiser, on the CPU or wherever they are."""
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])


def _judged(
    sr: Tensor, hq: Tensor, indices: Sequence[int], judged: Sequence[bool] | None
) -> tuple[Tensor, Tensor, Sequence[int], float]:
    """The samples that are judged and their share in all; where none is, all and 0, so that processes stay in step."""
    kept = [place for place, each in enumerate(judged or ()) if each]
    if not kept:
        return sr, hq, indices, float(judged is None)
    return sr[kept], hq[kept], [indices[place] for place in kept], len(kept) / len(sr)


def _depths(logits: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A network's logits, depth by depth."""
    return logits if isinstance(logits, tuple) else (logits,)
