"""The weighted losses of a step and their gradient with respect to the restored latents.

The decoder is frozen, so all that training needs of it is the gradient at its input. That is taken right away, a few pictures at
a time: only one chunk's decoder graph is ever in memory, where the usual way, one graph from the UNet to the loss, holds the
decoder's activations of the whole batch (at 512² 6 GB a picture in float32, 3 GB in bfloat16: why batch 16 fills 80 GB).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from srcli.config.recipe import Recipe
from srcli.networks.features import FeatureNetwork
from srcli.protocol.training import Batch, Trainee
from srcli.training.losses.critic import Critic
from srcli.training.losses.pictures import (
    feature_loss,
    frequency_loss,
    grid_loss,
    mean_absolute,
    mean_squared,
    psnr_loss,
    ssim_loss,
)
from srcli.training.losses.references import sharpened

Perceptual = Callable[[Tensor, Tensor], Tensor]


class Objective:
    """All losses of a recipe.

    Args:
        recipe: weights and settings.
        trainee: decodes, and has losses of its own.
        lpips: where `losses.lpips` is above 0.
        features: where `losses.features` is.
        critic: where `losses.gan` is above 0.
        chunk: pictures decoded at once.
    """

    def __init__(
        self,
        recipe: Recipe,
        trainee: Trainee,
        lpips: Perceptual | None,
        features: FeatureNetwork | None,
        critic: Critic | None,
        chunk: int,
    ) -> None:
        self.recipe, self.trainee = recipe, trainee
        self.lpips, self.features, self.critic, self.chunk = lpips, features, critic, chunk

    def gradient(self, z_sr: Tensor, batch: Batch, step: int, scale: float = 1.0) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Value and gradient of the weighted sum.

        Args:
            z_sr: (N, channels, h, w), float32; its own graph is not touched.
            batch: the samples.
            step: of the run; the adversarial loss may start late.
            scale: losses are multiplied by it on the way back (float16), the result is divided by it.

        Returns:
            the gradient of the mean over the batch, like z_sr; each loss's value, unweighted, detached; and the pictures,
            (N, 3, H, W), float32, about [-1, 1], detached.
        """
        leaf = z_sr.detach().requires_grad_()
        hq = self.references(batch.hq)
        values: dict[str, Tensor] = {}
        pictures = []
        for part in _chunks(len(leaf), self.chunk):
            sr = self.trainee.decode(leaf[part])
            share = sr.shape[0] / len(leaf)
            judged = None if batch.judged is None else batch.judged[part]
            losses = self.picture_losses(sr, hq[part], step, batch.indices[part], judged)
            _add(values, losses, share)
            if losses:
                (self._weighted(losses) * (share * scale)).backward()  # type: ignore[no-untyped-call]
            pictures.append(sr.detach())
        own = self.trainee.losses(leaf, batch)
        if own:
            _add(values, own, 1.0)
            (self._weighted(own) * scale).backward()  # type: ignore[no-untyped-call]
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad / scale  # none before `gan.start`
        return gradient, values, torch.cat(pictures)

    @torch.no_grad()
    def value(self, z_sr: Tensor, batch: Batch) -> float | None:
        """The weighted sum without the adversarial loss, for comparing checkpoints; the same batch draws the same noise.

        None where the adversarial loss is the only one: what a discriminator thinks at different times cannot be compared.
        """
        losses = self.picture_losses(self.trainee.decode(z_sr), self.references(batch.hq), -1, batch.indices)
        losses |= self.trainee.losses(z_sr, batch)
        return float(self._weighted(losses)) if losses else None

    def references(self, hq: Tensor) -> Tensor:
        """What the results are to look like, as the recipe has it: (N, 3, H, W), RGB, float32 in [-1, 1]."""
        return sharpened(hq, self.recipe.references.sharpening, self.recipe.references.sigma_px)

    def picture_losses(
        self, sr: Tensor, hq: Tensor, step: int, indices: Sequence[int], judged: Sequence[bool] | None = None
    ) -> dict[str, Tensor]:
        """The losses that compare pictures of samples; a negative step leaves the adversarial one out.

        Pictures are (N, 3, H, W), RGB, about [-1, 1]; the discriminator sees those that are `judged`, or all.
        """
        recipe, weights = self.recipe, self.recipe.losses
        losses = {}
        if weights.l2:
            losses["l2"] = mean_squared(sr, hq)
        if weights.l1:
            losses["l1"] = mean_absolute(sr, hq)
        if weights.psnr:
            losses["psnr"] = psnr_loss(sr, hq)
        if weights.ssim:
            losses["ssim"] = ssim_loss(sr, hq)
        if weights.frequency:
            losses["frequency"] = frequency_loss(sr, hq, **asdict(recipe.frequency))
        if weights.grid:
            losses["grid"] = grid_loss(sr, hq, self.trainee.factor)
        if self.lpips is not None:
            losses["lpips"] = self.lpips(sr, hq).mean()
        if self.features is not None:
            losses["features"] = feature_loss(sr, hq, self.features, recipe.features.weights)
        if self.critic is not None and step >= recipe.gan.start:
            losses["gan"] = self.critic.judge(sr, hq, indices, judged)
        return losses

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        return torch.stack([getattr(self.recipe.losses, name) * loss for name, loss in losses.items()]).sum()


def _chunks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _add(values: dict[str, Tensor], losses: dict[str, Tensor], share: float) -> None:
    for name, loss in losses.items():
        values[name] = values.get(name, torch.zeros_like(loss.detach())) + loss.detach() * share
