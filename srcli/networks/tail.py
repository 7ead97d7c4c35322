"""A few convolutions at full resolution, after a UNet whose latents are patches of pixels.

Such a UNet makes the pixels of a patch in one place and those of its neighbour in another; what is to hold across their border
it can only agree on roughly. A tail sees pixels as pixels, so whatever it does it does alike at all places of a patch: it can
sharpen an edge without the patches showing in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from srcli.disk import write_whole
from srcli.images.fidelity import Y_OF_RGB

UNIT = 1 / 16
"""What the tail's layers take for 1: 8 of 255 levels, on the scale of [-1, 1]."""
SIGMA_PX = 2.0
"""Of the Gaussian that separates detail from what the tail does not see."""
_RADIUS = 6


class PixelTail(nn.Module):
    """Changes a UNet's answer, so that pixels of the result depend on their neighbours whatever patch these are of.

    With Y the luma of a picture, G a Gaussian, z the latent and ε the UNet's answer, the tail adds r + s to each of R, G and B:

        y = Y(decode(z - ε)),  y_lq = Y(decode(z)),  d = y - G * y,  e = y - y_lq
        r = f(d, e) - f(0, 0),  s = g(d + r, e + r) - g(0, 0)

    f (`conv1` and so on) and g (`detail1` and so on): convolutions with SiLU between them, padded by repeating what is at the
    border. There are two because what f has learnt of patches' borders is no good start for learning to sharpen. The tail sees no
    brightness and adds no colour, and adds nothing to what is flat and was flat. The last convolutions are 0 until an adapter
    changes them: the tail of a base does nothing.

    Args:
        patch_size: pixels of a patch's side, as the `PatchAutoencoder` has it.
        scaling_factor: the same.
        width: channels between the convolutions.
        kernels: sides of the convolutions of f, and of g, odd, in pixels; two at least.

    Raises:
        ValueError: other kernels.
    """

    def __init__(
        self, patch_size: int = 4, scaling_factor: float = 2.0, width: int = 24, kernels: Sequence[int] = (5, 3, 3, 5)
    ) -> None:
        super().__init__()
        if len(kernels) < 2 or not all(kernel % 2 for kernel in kernels):
            raise ValueError(f"`kernels` must be two or more odd sides, not {tuple(kernels)}")
        self.patch_size, self.scaling_factor, self.width, self.kernels = patch_size, scaling_factor, width, tuple(kernels)
        channels = (2, *(width,) * (len(kernels) - 1), 1)
        for name in ("conv", "detail"):
            for number, (inner, outer, kernel) in enumerate(zip(channels[:-1], channels[1:], kernels, strict=True), 1):
                self.add_module(f"{name}{number}", nn.Conv2d(inner, outer, kernel, bias=number < len(kernels)))
            nn.init.zeros_(self._layers(name)[-1].weight)
        self._reach = sum(kernel // 2 for kernel in kernels)
        self._halves: tuple[str, ...] = ("conv", "detail")

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> PixelTail:
        """The tail that a `config.json` describes.

        Raises:
            TypeError, ValueError: it describes none.
        """
        keys = ("patch_size", "scaling_factor", "width", "kernels")
        return cls(**{key: config[key] for key in keys if key in config})

    def save(self, folder: Path) -> None:
        """Write the tail into `folder` as diffusers does with its own networks."""
        from safetensors.torch import save

        config = {"_class_name": type(self).__name__, "kernels": self.kernels, "patch_size": self.patch_size}
        config |= {"scaling_factor": self.scaling_factor, "width": self.width}
        write_whole(folder / "config.json", f"{json.dumps(config, indent=2)}\n".encode())
        write_whole(folder / "diffusion_pytorch_model.safetensors", save(self.state_dict(), {"format": "pt"}))

    def settle(self) -> None:
        """Compute only what changes something, with the weights as they are now: not for training."""
        self._halves = tuple(name for name in self._halves if self._layers(name)[-1].weight.any())

    def forward(self, latent: Tensor, answer: Tensor) -> Tensor:
        """The UNet's answer as the tail would have it.

        Args:
            latent: z, (N, 3 · patch_size², h, w), of any dtype.
            answer: ε, the same shape.

        Returns:
            the same shape, in the dtype of `answer`.
        """
        if not self._halves:
            return answer
        patch, scale = self.patch_size, self.scaling_factor
        before, removed = (_luma(x, patch, 1 / (scale * UNIT)) for x in (latent, answer))
        after = before - removed
        seen = torch.cat((after - _blurred(after), -removed), 1)
        added = torch.zeros_like(removed)
        for name in self._halves:
            added = added + self._convolved(name, seen + added)
        change = functional.pixel_unshuffle(added * (UNIT * scale), patch)
        colours = _colours(answer, patch).float() - change[:, None]
        return colours.reshape(answer.shape).to(answer.dtype)

    def _layers(self, name: str) -> list[Any]:
        return [self.get_submodule(f"{name}{number}") for number in range(1, len(self.kernels) + 1)]

    def _convolved(self, name: str, seen: Tensor) -> Tensor:
        """(N, 2, H, W) -> (N, 1, H, W), float32; 0 for what is 0."""
        *layers, last = self._layers(name)
        padded = functional.pad(seen, (self._reach,) * 4, mode="replicate")
        nothing = seen.new_zeros(1, 2, *(2 * self._reach + 1,) * 2)
        answers = []
        for x in (padded, nothing):
            x = x.to(last.weight.dtype, memory_format=torch.channels_last)
            for layer in layers:
                x = functional.silu(layer(x), inplace=not torch.is_grad_enabled())
            answers.append(cast(Tensor, last(x)).float())
        return answers[0] - answers[1]


def attach_tail(unet: Any, tail: PixelTail) -> None:
    """Make the tail a part of a `UNet2DConditionModel`: as `unet.tail`, and in what a call of `unet` answers."""
    unet.tail = tail
    unet.register_forward_hook(_tailed, with_kwargs=True)


def _tailed(unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    latent = args[0] if args else kwargs["sample"]
    if isinstance(output, tuple):
        return (unet.tail(latent, output[0]), *output[1:])
    output.sample = unet.tail(latent, output.sample)
    return output


def _colours(latent: Tensor, patch: int) -> Tensor:
    """(N, 3 · patch², h, w) -> (N, 3, patch², h, w)."""
    return latent.reshape(len(latent), 3, patch**2, *latent.shape[2:])


def _luma(latent: Tensor, patch: int, scale: float) -> Tensor:
    """Of the pixels of patches, times `scale`: (N, 3 · patch², h, w) -> (N, 1, h · patch, w · patch), float32.

    The weights are BT.601's, and their sum is 1.
    """
    red, green, blue = _colours(latent, patch).unbind(1)
    weights = (Y_OF_RGB / Y_OF_RGB.sum() * scale).tolist()
    luma = red.float() * weights[0]
    luma = luma.add_(green, alpha=weights[1]).add_(blue, alpha=weights[2])
    return functional.pixel_shuffle(luma, patch)


def _blurred(plane: Tensor) -> Tensor:
    """(N, 1, H, W), float32; the border's pixels are repeated beyond it."""
    steps = torch.arange(-_RADIUS, _RADIUS + 1, device=plane.device)
    weights = torch.exp(-0.5 * (steps / SIGMA_PX) ** 2)
    weights = (weights / weights.sum())[None, None, None]
    with torch.autocast(plane.device.type, enabled=False):
        rows = functional.conv2d(functional.pad(plane, (_RADIUS, _RADIUS, 0, 0), mode="replicate"), weights)
        columns = functional.pad(rows, (0, 0, _RADIUS, _RADIUS), mode="replicate")
        return functional.conv2d(columns, weights.transpose(-1, -2))
