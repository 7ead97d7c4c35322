"""What was drawn for a photo is done to it, in torch, on the CPU or a CUDA device; only the JPEG codec works on the host.

Photos are degraded one by one, by operators whose results do not hang on the number of threads: what a photo becomes depends on
its draws alone, and on the kind of device, whose own generators make the noise.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from srcli.training.degrade.draws import INFERENCE, RAW, Draws, Noise, Size, StageDraws
from srcli.training.degrade.kernels import Kernel

Levels = npt.NDArray[np.uint8]
LUMA = (0.2989, 0.587, 0.114)
_STRIPS = 5
"""A blur takes so many strips of a photo as channels of their own: on CPUs, 15 channels cost little more than 3."""


def degrade(hq: Tensor, draws: Draws) -> Tensor:
    """Degrade and shrink one photo.

    Args:
        hq: (3, H, W), RGB, float32 in [0, 1]; of the size that the draws were made for.
        draws: of `draws.draw`.

    Returns:
        lq: (3, H // scale, W // scale), RGB, float32 in [0, 1], on the grid of 8-bit levels, on the device of `hq`.

    Raises:
        ValueError: the photo has another size than the draws.
    """
    if hq.shape != (3, *draws.hq_size):
        raise ValueError(f"draws for a photo of {draws.hq_size} do not fit a tensor of shape {tuple(hq.shape)}")
    image = jpeg(_stage(hq.contiguous(), draws.first), draws.first_quality)
    image = _stage(image, draws.second)
    if not draws.resize_first:
        image = jpeg(image, draws.final_quality)
    image = blur(resize(image, draws.lq_size, draws.final_mode), draws.final_kernel)
    if draws.sharpening is not None:
        image = blur(image, draws.sharpening)
    if draws.resize_first:
        image = jpeg(image, draws.final_quality)
    return (image.clamp(0, 1) * 255).round() / 255


def resize_back(lq: Tensor, size: Size, mode: str) -> Tensor:
    """Enlarge a degraded photo to the clean one's size.

    Args:
        lq: (3, h, w), RGB, float32 in [0, 1].
        size: height and width of the result.
        mode: `inference` (Pillow's bicubic on 8-bit levels, as `srcli upscale` enlarges its input), a mode of `resize`, or `raw`,
            which enlarges nothing.

    Returns:
        (3, H, W), RGB, float32 in [0, 1], on the grid of 8-bit levels.
    """
    if mode == RAW:
        return lq
    if mode != INFERENCE:
        return (resize(lq, size, mode).clamp(0, 1) * 255).round() / 255
    levels = (lq[None] * 255).round()
    for axis_size in ((lq.shape[1], size[1]), size):  # Pillow clips and rounds after each pass, along x and along y
        levels = functional.interpolate(levels, axis_size, mode="bicubic", antialias=True)  # its kernel, a = -0.5
        levels = (levels + 0.5).floor().clamp(0, 255)
    return levels[0] / 255


def from_levels(levels: Levels) -> Tensor:
    """(H, W, 3), uint8, to (3, H, W), float32 in [0, 1]."""
    return torch.from_numpy(levels.transpose(2, 0, 1).astype(np.float32, order="C")) / 255


def to_levels(image: Tensor) -> Levels:
    """(3, H, W) in [0, 1], rounded, to (H, W, 3), uint8."""
    levels: Levels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    return levels


def blur(image: Tensor, kernel: Kernel) -> Tensor:
    """Correlate every channel of (3, H, W) with the kernel, reflected at the borders (the outermost pixel is not doubled)."""
    if kernel.kind == "identity":
        return image
    (height, width), margin = image.shape[1:], kernel.size // 2
    strip = -(-height // _STRIPS)
    columns = np.pad(np.arange(width), margin, mode="reflect")
    rows = np.pad(np.arange(height), (margin, margin + _STRIPS * strip - height), mode="reflect")
    rows = np.lib.stride_tricks.sliding_window_view(rows, strip + 2 * margin)[::strip].ravel()
    for axis, places in ((2, columns), (1, rows)):
        image = image.index_select(axis, torch.from_numpy(places).to(image.device))
    groups = 3 * _STRIPS
    weights = torch.from_numpy(kernel.weights()).float().to(image.device).expand(groups, 1, -1, -1)
    planes = image.reshape(groups, strip + 2 * margin, width + 2 * margin)
    return functional.conv2d(planes[None], weights, groups=groups).reshape(3, -1, width)[:, :height]


def resize(image: Tensor, size: Size, mode: str) -> Tensor:
    """Resize (3, H, W) to `size` by `area` (adaptive averaging), `bilinear` or `bicubic` (a = -0.75), without antialiasing."""
    if image.shape[1:] == size:
        return image
    if mode != "bilinear":
        return functional.interpolate(image[None], size, mode=mode)[0]
    for axis, length in enumerate(size, 1):  # by hand: the last bits of torch's own depend on the number of threads
        last = image.shape[axis] - 1
        places = ((torch.arange(length, device=image.device) + 0.5) * ((last + 1) / length) - 0.5).clamp(0, last)
        low, share = places.long(), places.frac()[:, None] if axis == 1 else places.frac()
        before, after = (image.index_select(axis, index) for index in (low, (low + 1).clamp(max=last)))
        image = before * (1 - share) + after * share
    return image


def jpeg(image: Tensor, quality: float | None) -> Tensor:
    """Clip (3, H, W) to [0, 1] and take it through a JPEG file of `quality` (none: only clip).

    Chroma is halved in both axes (4:2:0), as cameras do.
    """
    image = image.clamp(0, 1)
    if quality is None:
        return image
    subsampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    bgr = cv2.cvtColor(to_levels(image), cv2.COLOR_RGB2BGR)
    _, coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, round(quality), *subsampling])
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return from_levels(np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)).to(image.device)


def noisy(image: Tensor, noise: Noise) -> Tensor:
    """(3, H, W) with its noise, clipped to [0, 1]."""
    if noise.strength == 0:
        return image.clamp(0, 1)
    generator = torch.Generator(image.device).manual_seed(noise.seed)
    make = gaussian_noise if noise.kind == "gaussian" else poisson_noise
    return (image + make(image, generator, noise.strength, noise.gray)).clamp(0, 1)


def gaussian_noise(image: Tensor, generator: torch.Generator, levels: float, gray: bool) -> Tensor:
    """Noise of standard deviation `levels` / 255 for (3, H, W): of its shape, or (1, H, W) if gray."""
    shape = (1 if gray else 3, *image.shape[1:])
    return torch.randn(shape, generator=generator, device=image.device) * (levels / 255)


def poisson_noise(image: Tensor, generator: torch.Generator, scale: float, gray: bool) -> Tensor:
    """Shot noise of (3, H, W), times `scale`: of its shape, or (1, H, W) if gray, then of its luma.

    On the image x rounded to 8 bits: (Poisson(x·V) / V − x) · scale, where white is V photons, V = 2^ceil(log2(number of
    distinct values)).
    """
    if gray:
        red, green, blue = (weight * plane for weight, plane in zip(LUMA, image, strict=True))
        image = (red + green + blue)[None]
    levels = (image.clamp(0, 1) * 255).round()
    photons = photons_of_white(int(torch.bincount(levels.flatten().int()).count_nonzero()))
    rates = levels / 255 * photons
    return (torch.poisson(rates, generator) - rates) * (scale / photons)


def photons_of_white(distinct: int) -> int:
    """2^ceil(log2(distinct)), in integers."""
    return 1 << (distinct - 1).bit_length()


def _stage(image: Tensor, draws: StageDraws) -> Tensor:
    if draws.kernel is not None:
        image = blur(image, draws.kernel)
    return noisy(resize(image, draws.size, draws.mode), draws.noise)
