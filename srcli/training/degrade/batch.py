"""The degradation of `degrade.apply` for a whole batch, in torch: on a GPU the pictures stay there, but for the JPEG codec.

The maths is that of `degrade`, so the same draws give the same result up to rounding, apart from the noise, which comes from the
device's own generators. What a picture becomes depends on its draws alone, not on the rest of the batch: every operator treats
each picture by itself, and the noise of each has its own generator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from srcli.training.degrade.draws import INFERENCE, LUMA, Draws, Noise, Size, StageDraws, jpeg_levels
from srcli.training.degrade.kernels import Kernel

_JPEG_THREADS = 16


@torch.no_grad()
def apply_batch(hq: Tensor, draws: Sequence[Draws]) -> Tensor:
    """Degrade a batch of photos as their `draws` say.

    The JPEG codec works on the host: up to three times, all pictures go there and back as bytes.

    Args:
        hq: (N, 3, H, W), RGB, float32 in [0, 1]; of the size that the draws were made for.
        draws: one of `degrade.draw` for each photo.

    Returns:
        lq: (N, 3, H // scale, W // scale), RGB, float32 in [0, 1], on the grid of 8-bit levels, on the device of `hq`.

    Raises:
        ValueError: the draws are of another number or size than the photos, or differ in the size of their results.
    """
    _check(hq, draws)
    work = hq if hq.device.type == "cuda" else hq.cpu()  # Metal lacks Poisson numbers and adaptive averaging
    with torch.autocast(work.device.type, enabled=False):
        images = _stage(list(work.float()), [each.first for each in draws])
        images = _jpeg_each(images, [each.first_quality for each in draws], range(len(draws)))
        images = _stage(images, [each.second for each in draws])
        images = _jpeg_each(images, [each.final_quality for each in draws], _where(draws, resize_first=False))
        images = _resize_each(images, [each.lq_size for each in draws], [each.final_mode for each in draws])
        images = _blur_each(images, [each.final_kernel for each in draws])
        images = _blur_each(images, [each.sharpening for each in draws])
        images = _jpeg_each(images, [each.final_quality for each in draws], _where(draws, resize_first=True))
        return ((torch.stack(images).clamp(0, 1) * 255).round() / 255).to(hq.device)


def resize_back(lq: Tensor, size: Size, mode: str | Sequence[str]) -> Tensor:
    """Enlarge degraded photos to the size of the clean ones, as `degrade.resize_back` does.

    Args:
        lq: (N, 3, h, w), RGB, float32 in [0, 1].
        size: height and width of the result.
        mode: `inference`, `area`, `bilinear` or `bicubic`; one for all, or one for each photo.

    Returns:
        (N, 3, H, W), RGB, float32 in [0, 1]; on the grid of 8-bit levels in the mode `inference`.
    """
    if isinstance(mode, str):
        return _resize_back(lq, size, mode)
    return torch.stack(_in_groups(list(lq), mode, lambda group, indices: _resize_back(group, size, mode[indices[0]])))


def blur(images: Tensor, kernels: Sequence[Kernel]) -> Tensor:
    """Correlate every picture with its own kernel, all channels alike, reflected at the borders.

    Args:
        images: (N, 3, H, W), float32.
        kernels: one for each picture; smaller ones are padded with zeros to the largest.

    Returns:
        (N, 3, H, W), float32.
    """
    count, channels, height, width = images.shape
    side = max(kernel.size for kernel in kernels)
    weights = np.stack([np.pad(kernel.weights(), (side - kernel.size) // 2) for kernel in kernels])
    filters = torch.from_numpy(weights.astype(np.float32)).to(images.device).repeat_interleave(channels, 0)[:, None]
    rows, columns = (_reflected(length, side // 2).to(images.device) for length in (height, width))
    padded = images.index_select(2, rows).index_select(3, columns)
    planes = padded.reshape(1, count * channels, *padded.shape[2:])
    return functional.conv2d(planes, filters, groups=count * channels).reshape(images.shape)


def resize(images: Tensor, size: Size, mode: str) -> Tensor:
    """Resize (N, 3, H, W) to `size` by `area`, `bilinear` or `bicubic` (a = -0.75), without antialiasing."""
    if tuple(images.shape[-2:]) == size:
        return images
    if mode == "area":
        return functional.interpolate(images, size, mode="area")
    return functional.interpolate(images, size, mode=mode, align_corners=False)


def noisy(image: Tensor, noise: Noise) -> Tensor:
    """(3, h, w) with its noise, clipped to [0, 1]; the noise depends on the seed, the picture and the kind of device."""
    if noise.strength == 0:
        return image.clamp(0, 1)
    generator = torch.Generator(image.device).manual_seed(noise.seed)
    make = gaussian_noise if noise.kind == "gaussian" else poisson_noise
    return (image + make(image, generator, noise.strength, noise.gray)).clamp(0, 1)


def gaussian_noise(image: Tensor, generator: torch.Generator, levels: float, gray: bool) -> Tensor:
    """Noise of standard deviation `levels` / 255 for (3, h, w): of its shape, or (1, h, w) if gray."""
    shape = (1 if gray else image.shape[0], *image.shape[1:])
    return torch.randn(shape, generator=generator, device=image.device) * (levels / 255)


def poisson_noise(image: Tensor, generator: torch.Generator, scale: float, gray: bool) -> Tensor:
    """Shot noise of (3, h, w), as `degrade.poisson_noise`: of its shape, or (1, h, w) if gray."""
    base = torch.stack([weight * plane for weight, plane in zip(LUMA, image, strict=True)]).sum(0, True) if gray else image
    levels = (base.clamp(0, 1) * 255).round()
    seen = torch.zeros(256, device=image.device).scatter_(0, levels.long().flatten(), 1.0)
    powers = torch.tensor([1 << exponent for exponent in range(9)], dtype=torch.float32, device=image.device)
    photons = powers.index_select(0, torch.searchsorted(powers, seen.sum(0, True)))  # (1,): 2^ceil(log2(distinct))
    rates = levels / 255 * photons
    return (torch.poisson(rates, generator) - rates) * (scale / photons)


# --- over lists of pictures ------------------------------------------------------------------------------------------


def _in_groups(images: list[Tensor], keys: Sequence[Hashable], work: Callable[[Tensor, list[int]], Tensor]) -> list[Tensor]:
    """`work` on stacks of the pictures whose size and key agree; it is given their indices, too."""
    groups: dict[Hashable, list[int]] = {}
    for index, (image, key) in enumerate(zip(images, keys, strict=True)):
        groups.setdefault((tuple(image.shape), key), []).append(index)
    result = list(images)
    for indices in groups.values():
        done = work(torch.stack([images[index] for index in indices]), indices)
        for index, image in zip(indices, done, strict=True):
            result[index] = image
    return result


def _stage(images: list[Tensor], draws: Sequence[StageDraws]) -> list[Tensor]:
    images = _blur_each(images, [each.kernel for each in draws])
    images = _resize_each(images, [each.size for each in draws], [each.mode for each in draws])
    return [noisy(image, each.noise) for image, each in zip(images, draws, strict=True)]


def _blur_each(images: list[Tensor], kernels: Sequence[Kernel | None]) -> list[Tensor]:
    chosen = [index for index, kernel in enumerate(kernels) if kernel is not None and kernel.kind != "identity"]
    filters = [kernel for kernel in kernels if kernel is not None and kernel.kind != "identity"]
    blurred = _in_groups(
        [images[index] for index in chosen],
        [None] * len(chosen),
        lambda group, indices: blur(group, [filters[index] for index in indices]),
    )
    return _replaced(images, chosen, blurred)


def _resize_each(images: list[Tensor], sizes: Sequence[Size], modes: Sequence[str]) -> list[Tensor]:
    keys = list(zip(sizes, modes, strict=True))
    return _in_groups(images, keys, lambda group, indices: resize(group, *keys[indices[0]]))


def _jpeg_each(images: list[Tensor], qualities: Sequence[float | None], chosen: Sequence[int]) -> list[Tensor]:
    """The `chosen` pictures, clipped and through JPEG files where there is a quality; one way to the host and one back."""
    images = _replaced(images, chosen, [images[index].clamp(0, 1) for index in chosen])
    coded = [index for index in chosen if qualities[index] is not None]
    if not coded:
        return images
    shapes = [(images[index].shape[1], images[index].shape[2], 3) for index in coded]
    levels = [(images[index].permute(1, 2, 0) * 255).round().to(torch.uint8).flatten() for index in coded]
    counts = [level.numel() for level in levels]
    pictures = [
        part.view(shape).numpy() for part, shape in zip(torch.split(torch.cat(levels).cpu(), counts), shapes, strict=True)
    ]
    jobs = zip(pictures, [quality for index in coded if (quality := qualities[index]) is not None], strict=True)
    with ThreadPoolExecutor(min(len(coded), os.cpu_count() or 1, _JPEG_THREADS)) as pool:
        decoded = list(pool.map(lambda job: jpeg_levels(*job), jobs))
    flat = torch.from_numpy(np.concatenate([picture.ravel() for picture in decoded])).to(images[0].device)
    parts = torch.split(flat, counts)
    result = [part.view(shape).permute(2, 0, 1).contiguous().float() / 255 for part, shape in zip(parts, shapes, strict=True)]
    return _replaced(images, coded, result)


def _resize_back(lq: Tensor, size: Size, mode: str) -> Tensor:
    if mode != INFERENCE:
        return resize(lq, size, mode).clamp(0, 1)
    for axis_size in ((lq.shape[-2], size[1]), size):  # Pillow clips and rounds between its passes, along x and along y
        lq = functional.interpolate(lq, axis_size, mode="bicubic", antialias=True)  # its kernel, a = -0.5
        lq = (lq.clamp(0, 1) * 255).round() / 255
    return lq


def _replaced(images: list[Tensor], indices: Sequence[int], by: Sequence[Tensor]) -> list[Tensor]:
    result = list(images)
    for index, image in zip(indices, by, strict=True):
        result[index] = image
    return result


def _where(draws: Sequence[Draws], *, resize_first: bool) -> list[int]:
    return [index for index, each in enumerate(draws) if each.resize_first == resize_first]


def _reflected(length: int, margin: int) -> Tensor:
    """Indices that pad an axis by reflection; of any margin, unlike torch's own, which must be below the length."""
    period = max(1, 2 * (length - 1))
    place = torch.arange(-margin, length + margin).remainder(period)
    return torch.minimum(place, (period - place).clamp(min=0)) if length > 1 else torch.zeros_like(place)


def _check(hq: Tensor, draws: Sequence[Draws]) -> None:
    sizes = {(each.hq_size, each.lq_size) for each in draws}
    if len(draws) != len(hq) or len(sizes) != 1 or hq.shape[1:] != (3, *draws[0].hq_size):
        raise ValueError(f"{len(draws)} draws for photos and results of {sorted(sizes)} do not fit {tuple(hq.shape)}")
