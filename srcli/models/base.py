"""What the engine may know of a model, and nothing more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class LoadOptions:
    """How a restorer is set up; a method takes what concerns it and ignores the rest."""

    device: torch.device
    dtype: torch.dtype
    """Of the networks; latents and pictures stay float32."""
    lambda_pixel: float = 1.0
    """PiSA-SR's λ_pix."""
    lambda_semantic: float = 1.0
    """PiSA-SR's λ_sem."""


class Restorer(Protocol):
    """A one-step super-resolution model that works on latents.

    The engine prepares a picture at output size and asks for

        z_lq = encode(picture);  z_sr = apply(z_lq, predict(z_lq));  picture = decode(z_sr)

    where each of encode, predict and decode may be called on tiles, whose results are blended. All tensors are float32 on
    `device`; whatever precision is used inside stays inside. With `exact=True` the call computes in float32.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    native_scale: int
    """Output sides over input sides."""
    factor: int
    """Output pixels a latent cell, in both axes."""
    channels: int
    """Channels of the latent."""
    min_side: int
    """Inputs with a shorter side, in input pixels, are enlarged to it first; 0 for never."""
    tile: int
    """Default tile, in output pixels."""
    overlap: int
    """Default overlap of tiles, in output pixels."""
    autoencoder_tile: int | None
    """Pictures larger than this (output pixels) are encoded and decoded in tiles; None if the autoencoder needs no memory."""
    color_fix: str
    """The method's default colour fix."""
    cell_bytes: int
    """About the peak memory of `predict` for each latent cell of a batch."""
    notes: tuple[str, ...]
    """What the user should know of the options as they were understood, one sentence each."""

    def encode(self, picture: Tensor, *, exact: bool = False) -> Tensor:
        """(N, 3, H, W), RGB, [-1, 1] -> latent (N, channels, H / factor, W / factor)."""
        ...

    def predict(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        """The network's answer to z_lq: (N, channels, h, w) -> the same shape. This is what tiles blend."""
        ...

    def apply(self, latent: Tensor, prediction: Tensor) -> Tensor:
        """z_sr from z_lq and the blended prediction; elementwise, any equal shapes."""
        ...

    def decode(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        """Latent (N, channels, h, w) -> (N, 3, h * factor, w * factor), RGB, about [-1, 1]."""
        ...
