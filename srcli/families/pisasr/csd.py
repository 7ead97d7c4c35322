"""Classifier score distillation: a frozen diffusion model says in which direction a latent would look more like a photo.

Source: Sun et al., "Pixel-level and Semantic-level Adjustable Super-resolution: A Dual-LoRA Approach", CVPR 2025, eqs. 5, 6, S4.
What these call the score without a condition is that of the negative prompt, not of the empty one, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from srcli.errors import UsageError

MIN_WEIGHT = 1e-6
"""The least mean |z_sr - ẑ| to divide by: about what float32 can tell apart in latents of order 1.

The reference's recorded cases have 0.27 or more, so the guard does not touch them.
"""


class Teacher(Protocol):
    """A frozen network that predicts noise (ε, not v)."""

    def __call__(self, noisy: Tensor, timestep: Tensor, embedding: Tensor) -> Tensor:
        """Predict the noise in each latent.

        Args:
            noisy: (N, C, h, w), float32.
            timestep: (N,), int64.
            embedding: (N, L, D), float32: each sample's prompt.

        Returns:
            ε, (N, C, h, w), any floating dtype.
        """
        ...


def csd(
    z_sr: Tensor,
    teacher: Teacher,
    positive: Tensor,
    negative: Tensor,
    timestep: Tensor,
    noise: Tensor,
    alphas_cumprod: Tensor,
    guidance_scale: float,
) -> Tensor:
    """The loss of one batch, with the teacher asked for both prompts in one batch of 2N and without gradients.

    Args:
        z_sr: (N, C, h, w), our latent, scaled as the UNet wants it; the gradient goes here and nowhere else.
        teacher: the frozen base, without adapters.
        positive: (N or 1, L, D), the embedding of what the picture shows.
        negative: (N or 1, L, D), the embedding of what it should not look like.
        timestep: (N,), int64, how far each sample is noised.
        noise: (N, C, h, w), standard normal.
        alphas_cumprod: (T,), ᾱ of the teacher's schedule, in (0, 1).
        guidance_scale: λ_cfg of eq. 6; 1 asks for the positive prompt alone.

    Returns:
        a scalar, float32; see `csd_loss`.
    """
    count = len(z_sr)
    with torch.no_grad():
        noisy = add_noise(z_sr, noise, timestep, alphas_cumprod)
        embedding = torch.cat([prompt.expand(count, -1, -1) for prompt in (negative, positive)])
        eps_negative, eps_positive = teacher(noisy.repeat(2, 1, 1, 1), timestep.repeat(2), embedding).chunk(2)
    return csd_loss(z_sr, noise, timestep, eps_negative, eps_positive, alphas_cumprod, guidance_scale)


def csd_loss(
    z_sr: Tensor,
    noise: Tensor,
    timestep: Tensor,
    eps_negative: Tensor,
    eps_positive: Tensor,
    alphas_cumprod: Tensor,
    guidance_scale: float,
) -> Tensor:
    """The mean of G², whose gradient with respect to `z_sr` is 2·G / numel, with G of `csd_direction`.

    The same as the mean squared error between z_sr and a detached z_sr - G; written as (z_sr - detached z_sr) + G, in which the
    first part is exactly zero, so that G is not rounded to the grid of z_sr.

    Args:
        z_sr: (N, C, h, w), our latent.
        noise: (N, C, h, w), standard normal.
        timestep: (N,), int64.
        eps_negative: (N, C, h, w), the teacher's answer to the noisy latent and the negative prompt.
        eps_positive: (N, C, h, w), to the positive prompt.
        alphas_cumprod: (T,), ᾱ of the teacher's schedule.
        guidance_scale: λ_cfg of eq. 6.

    Returns:
        a scalar, float32; the mean runs over all elements, the batch included.
    """
    direction = csd_direction(z_sr, noise, timestep, eps_negative, eps_positive, alphas_cumprod, guidance_scale)
    z_sr = z_sr.float()
    return (z_sr - z_sr.detach() + direction).square().mean()


@torch.no_grad()
def csd_direction(
    z_sr: Tensor,
    noise: Tensor,
    timestep: Tensor,
    eps_negative: Tensor,
    eps_positive: Tensor,
    alphas_cumprod: Tensor,
    guidance_scale: float,
) -> Tensor:
    """G = (ẑ_neg - ẑ_cfg) / mean|z_sr - ẑ_cfg| (eq. S4), with ε_cfg = ε_neg + λ_cfg·(ε_pos - ε_neg) (eq. 6).

    The mean is taken over each sample's C·h·w elements and is at least `MIN_WEIGHT`. A step along -G follows the teacher.

    Args:
        z_sr: see `csd_loss`, as are the others.
        noise: (N, C, h, w).
        timestep: (N,), int64.
        eps_negative: (N, C, h, w).
        eps_positive: (N, C, h, w).
        alphas_cumprod: (T,).
        guidance_scale: λ_cfg.

    Returns:
        (N, C, h, w), float32, without a gradient.
    """
    z_sr, eps_negative, eps_positive = z_sr.float(), eps_negative.float(), eps_positive.float()
    noisy = add_noise(z_sr, noise, timestep, alphas_cumprod)
    eps_guided = eps_negative + guidance_scale * (eps_positive - eps_negative)
    clean_negative = estimate_clean(noisy, eps_negative, timestep, alphas_cumprod)
    clean_guided = estimate_clean(noisy, eps_guided, timestep, alphas_cumprod)
    weight = (z_sr - clean_guided).abs().mean(dim=(1, 2, 3), keepdim=True)
    return (clean_negative - clean_guided) / weight.clamp_min(MIN_WEIGHT)


def add_noise(clean: Tensor, noise: Tensor, timestep: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """z_t = √ᾱ_t·z + √(1 - ᾱ_t)·n (below eq. 5).

    Args:
        clean: z, (N, C, h, w).
        noise: n, (N, C, h, w), standard normal.
        timestep: t, (N,), int64 in [0, T).
        alphas_cumprod: ᾱ, (T,).

    Returns:
        (N, C, h, w), float32.
    """
    alpha = _alpha(alphas_cumprod, timestep, clean)
    return alpha.sqrt() * clean.float() + (1 - alpha).sqrt() * noise.float()


def estimate_clean(noisy: Tensor, eps: Tensor, timestep: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """ẑ = (z_t - √(1 - ᾱ_t)·ε) / √ᾱ_t: f of eq. 1, the clean latent that the noise ε leads back to.

    Args:
        noisy: z_t, (N, C, h, w).
        eps: ε, (N, C, h, w).
        timestep: t, (N,), int64 in [0, T).
        alphas_cumprod: ᾱ, (T,).

    Returns:
        (N, C, h, w), float32.
    """
    alpha = _alpha(alphas_cumprod, timestep, noisy)
    return (noisy.float() - (1 - alpha).sqrt() * eps.float()) / alpha.sqrt()


def draw_timesteps_and_noise(
    seeds: Sequence[int],
    shape: Sequence[int],
    *,
    step_range: tuple[float, float] = (0.02, 0.5),
    train_timesteps: int = 1000,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """A timestep and noise for each sample, drawn on the CPU from its own seed: however a batch is split, it draws the same.

    Args:
        seeds: one for each of N samples.
        shape: (C, h, w) of one latent.
        step_range: timesteps as a share of the schedule, [low, high).
        train_timesteps: T, the schedule's length.
        device: where the results go.

    Returns:
        timestep: (N,), int64 in [int(T·low), int(T·high)), uniform.
        noise: (N, C, h, w), float32, standard normal.

    Raises:
        UsageError: the range holds no timestep of the schedule.
    """
    low, high = (int(train_timesteps * share) for share in step_range)
    if not 0 <= low < high <= train_timesteps:
        message = f"the range `{step_range[0]}` to `{step_range[1]}` holds none of the teacher's {train_timesteps} timesteps"
        raise UsageError(message, "give two shares between 0 and 1, the lower one first")
    timesteps, noises = [], []
    for seed in seeds:
        chance = torch.Generator().manual_seed(seed)
        timesteps.append(torch.randint(low, high, (), generator=chance))
        noises.append(torch.randn(tuple(shape), generator=chance))
    return torch.stack(timesteps).to(device), torch.stack(noises).to(device)


def _alpha(alphas_cumprod: Tensor, timestep: Tensor, like: Tensor) -> Tensor:
    """ᾱ of each sample: (N, 1, 1, 1), float32, on the device of `like`."""
    return alphas_cumprod.to(like.device, torch.float32)[timestep.to(like.device)].view(-1, 1, 1, 1)
