"""Restorers of a few lines, to test the engine without a network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from srcli.protocol.restoring import Mixture, Parent, Part, Picture, Settings


class MockRestorer:
    """Latents are 4x4 patches; the prediction is `strength` times the latent, position for position."""

    name = "mock"
    channels = answer_channels = 48
    factor = 4
    native_scale = input_scale = 4
    enlargement = "bicubic"
    min_side = margin = 0
    patch = 4
    tile, overlap, tiling = 64, 16, "fixed"
    color_fix = "none"
    cell_bytes = 1000
    answers_pixels, any_settings = True, False
    parents: Mapping[Hashable, Parent] = {}

    def __init__(self, strength: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        self.device = torch.device("cpu")
        self.dtype = dtype
        self.strength = strength
        self.batches: list[tuple[int, ...]] = []

    @property
    def decoder(self) -> tuple[Part, ...]:
        return (Part(self.decode, 3, 1, 4, halo=2, fade=2, cell_bytes=1),)

    def encoder(self, encoding: Hashable = None) -> tuple[Part, ...]:
        return (Part(self.encode, 48, 4, 1, halo=2, fade=2, cell_bytes=1),)

    def encode(self, picture: Tensor, *, exact: bool = False) -> Tensor:
        return functional.pixel_unshuffle(picture, 4)

    def mix(self, settings: Settings, picture: Picture) -> Mixture:
        return Mixture({"only": 1.0})

    def predict_pass(self, key: Hashable, latent: Tensor, *, exact: bool = False) -> Tensor:
        return self.predict(latent, exact=exact)

    def predict(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        self.batches.append(tuple(latent.shape))
        return latent * self.strength

    def apply(self, latent: Tensor, prediction: Tensor) -> Tensor:
        return latent - prediction

    def decode(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        return functional.pixel_shuffle(latent, 4)


class MeanRestorer(MockRestorer):
    """Subtracts each sample's own mean: shows whether neighbours in a batch matter."""

    def predict(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        super().predict(latent)
        return latent.mean(dim=(1, 2, 3), keepdim=True).expand_as(latent)


class HungryRestorer(MockRestorer):
    """Runs out of memory above a number of cells in a batch, as a GPU does."""

    def __init__(self, most_cells: int) -> None:
        super().__init__()
        self.most_cells = most_cells

    def predict(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        super().predict(latent)
        if latent.shape[0] * latent.shape[2] * latent.shape[3] > self.most_cells:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return torch.zeros_like(latent)


class HalfBrokenRestorer(MockRestorer):
    """Half precision spoils samples that hold a value above 0.9: NaN in `predict`, black in `decode`."""

    def __init__(self, step: str, dtype: torch.dtype = torch.float16, *, always: bool = False) -> None:
        super().__init__(dtype=dtype)
        self.step = step
        self.always = always
        self.exact_calls = 0

    def _spoil(self, result: Tensor, source: Tensor, value: float, exact: bool) -> Tensor:
        self.exact_calls += exact
        if exact and not self.always:
            return result
        bright = source.amax(dim=(1, 2, 3), keepdim=True) > 0.9
        return torch.where(bright, torch.full_like(result, value), result)

    def predict(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        result = torch.zeros_like(latent)
        return self._spoil(result, latent, float("nan"), exact) if self.step == "predict" else result

    def decode(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        result = super().decode(latent)
        return self._spoil(result, latent, -1.0, exact) if self.step == "decode" else result
