"""Real-ESRGAN's second-order degradation: from a clean photo to the input that training sees.

Source: Wang et al., "Real-ESRGAN", 2021, with the numbers of PiSA-SR's training. Chance and work are apart: `draw` decides
everything, `apply` carries it out on one photo on the CPU, `degrade_batch.apply_batch` on a batch on any device.
Where the reference approximates JPEG by a differentiable stand-in with known slips, a real codec is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
import torch

from srcli.config.degradation import RESIZE_MODES, Degradation, FirstStage, SecondStage
from srcli.errors import ImageError
from srcli.images.resize import enlarge_bicubic
from srcli.training.degrade.kernels import Kernel, draw_final_kernel, draw_kernel, draw_unsharp_mask

Array = npt.NDArray[np.float32]
Size = tuple[int, int]
"""Height and width in pixels."""

LUMA = (0.2989, 0.587, 0.114)
INFERENCE = "inference"
"""The mode of `resize_back` that enlarges as `srcli upscale` does."""
_SEEDS = 1 << 63


@dataclass(frozen=True)
class Noise:
    """Noise as it was drawn.

    Attributes:
        kind: `gaussian` or `poisson`.
        strength: standard deviation in 8-bit levels, or factor of the shot noise; 0 is no noise.
        gray: the same in all channels.
        seed: of the noise's own generator.
    """

    kind: str
    strength: float
    gray: bool
    seed: int


@dataclass(frozen=True)
class StageDraws:
    """A round of blur, resize and noise; `kernel` is None where there is no blur, `size` is what the picture is resized to."""

    kernel: Kernel | None
    size: Size
    mode: str
    noise: Noise


@dataclass(frozen=True)
class Draws:
    """All that chance decides for one photo.

    Attributes:
        hq_size, lq_size: of the clean photo and of the result, in pixels.
        first_quality, final_quality: of the two JPEG files, 1 to 100; None is no JPEG.
        final_kernel, final_mode: the last filter, and how the picture is brought to `lq_size`.
        resize_first: the end is resize, filter, JPEG; else it is JPEG, resize, filter.
        back_mode: for `resize_back`.
        sharpening: an unsharp mask after the last filter, as cameras have it; None is none.
    """

    hq_size: Size
    lq_size: Size
    first: StageDraws
    first_quality: float | None
    second: StageDraws
    final_kernel: Kernel
    final_mode: str
    final_quality: float | None
    resize_first: bool
    back_mode: str
    sharpening: Kernel | None = None


def degrade(hq: Array, rng: np.random.Generator, scale: int = 4, how: Degradation | None = None) -> Array:
    """Degrade and shrink one photo: `draw`, then `apply`.

    Args:
        hq: (H, W, 3), RGB, float32 in [0, 1]; H and W at least `scale`.
        rng: the only source of chance; the same state gives the same bytes.
        scale: the factor by which the result is smaller.
        how: the degradation's parameters; PiSA-SR's if None.

    Returns:
        lq: (H // scale, W // scale, 3), RGB, float32 in [0, 1], on the grid of 8-bit levels.

    Raises:
        ImageError: a side of the photo is below `scale`.
    """
    return apply(hq, draw(rng, (hq.shape[0], hq.shape[1]), scale, how))


# --- chance ----------------------------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, size: Size, scale: int = 4, how: Degradation | None = None) -> Draws:
    """Decide how one photo is degraded.

    Args:
        rng: the only source of chance.
        size: height and width of the photo in pixels.
        scale: the factor by which the result is smaller.
        how: the degradation's parameters; PiSA-SR's if None.

    Raises:
        ImageError: a side of the photo is below `scale`.
    """
    how = how or Degradation()
    height, width = size
    if min(size) < scale:
        raise ImageError(f"a photo of `{width} x {height}` px cannot be shrunk by `{scale}`", "use larger photos or crops")
    kernels = [draw_kernel(rng, stage.kernels, stage.sigma) for stage in (how.first, how.second)]
    final_kernel = draw_final_kernel(rng, how.final)
    draws = Draws(
        hq_size=size,
        lq_size=(height // scale, width // scale),
        first=_draw_stage(rng, how.first, kernels[0], (height, width)),
        first_quality=_draw_quality(rng, how.first.jpeg_probability, how.first.jpeg_quality),
        second=_draw_stage(rng, how.second, kernels[1], (height / scale, width / scale)),
        final_kernel=final_kernel,
        final_mode=_draw_mode(rng, how.final.resize_modes),
        final_quality=_draw_quality(rng, how.final.jpeg_probability, how.final.jpeg_quality),
        resize_first=rng.random() < how.final.resize_first_probability,
        back_mode=_draw_mode(rng, RESIZE_MODES) if how.resize_back == "random" else INFERENCE,
    )
    if how.mild_probability and rng.random() < how.mild_probability:  # nothing is drawn where it is 0: the draws stay the same
        draws = _weakened(draws, rng.random())
        if how.mild_sharpening:
            return replace(draws, sharpening=draw_unsharp_mask(rng, how.mild_sharpening))
    return draws


def _weakened(draws: Draws, factor: float) -> Draws:
    """The same blur and sizes with `factor` times the noise and the JPEG's distance from quality 100."""

    def quality(drawn: float | None) -> float | None:
        return None if drawn is None else 100 - (100 - drawn) * factor

    def stage(drawn: StageDraws) -> StageDraws:
        return replace(drawn, noise=replace(drawn.noise, strength=drawn.noise.strength * factor))

    return replace(
        draws,
        first=stage(draws.first),
        first_quality=quality(draws.first_quality),
        second=stage(draws.second),
        final_quality=quality(draws.final_quality),
    )


def _draw_stage(rng: np.random.Generator, how: FirstStage | SecondStage, kernel: Kernel, base: tuple[float, float]) -> StageDraws:
    blurred = rng.random() < how.blur_probability
    odds = np.array(how.resize_odds)
    direction = int(rng.choice(3, p=odds / odds.sum()))
    factor = (rng.uniform(*how.enlarge), rng.uniform(*how.shrink), 1.0)[direction]
    size = (max(1, int(base[0] * factor)), max(1, int(base[1] * factor)))
    mode = _draw_mode(rng, how.resize_modes)
    return StageDraws(kernel if blurred else None, size, mode, _draw_noise(rng, how))


def _draw_noise(rng: np.random.Generator, how: FirstStage | SecondStage) -> Noise:
    gaussian = rng.random() < how.gaussian_probability
    strength = rng.uniform(*(how.gaussian_sigma if gaussian else how.poisson_scale))
    gray = rng.random() < how.gray_probability
    return Noise("gaussian" if gaussian else "poisson", strength, gray, int(rng.integers(_SEEDS)))


def _draw_mode(rng: np.random.Generator, modes: Sequence[str]) -> str:
    return modes[int(rng.integers(len(modes)))]


def _draw_quality(rng: np.random.Generator, probability: float, ends: tuple[float, float]) -> float | None:
    quality = rng.uniform(*ends)
    return quality if rng.random() < probability else None


# --- work ------------------------------------------------------------------------------------------------------------


def apply(hq: Array, draws: Draws) -> Array:
    """Degrade one photo as `draws` say; the noise comes from generators of their seeds, so nothing is left to chance.

    Args:
        hq: (H, W, 3), RGB, float32 in [0, 1]; of the size that the draws were made for.
        draws: of `draw`.

    Returns:
        lq: (H // scale, W // scale, 3), RGB, float32 in [0, 1], on the grid of 8-bit levels.

    Raises:
        ValueError: the photo has another size than the draws.
    """
    if hq.shape != (*draws.hq_size, 3):
        raise ValueError(f"draws for a photo of {draws.hq_size} do not fit an array of shape {hq.shape}")
    image = jpeg(_stage(hq, draws.first), draws.first_quality)
    image = _stage(image, draws.second)
    if not draws.resize_first:
        image = jpeg(image, draws.final_quality)
    image = _filtered(resize(image, draws.lq_size, draws.final_mode), draws.final_kernel)
    if draws.sharpening is not None:
        image = _filtered(image, draws.sharpening)
    if draws.resize_first:
        image = jpeg(image, draws.final_quality)
    return _on_the_8_bit_grid(image)


def resize_back(lq: Array, size: Size, mode: str) -> Array:
    """Enlarge a degraded photo to the clean one's size.

    Args:
        lq: (h, w, 3), RGB, float32 in [0, 1].
        size: height and width of the result.
        mode: `inference` (Pillow's bicubic on 8-bit levels, as `srcli upscale` enlarges its input), or a mode of `resize`.

    Returns:
        (H, W, 3), RGB, float32 in [0, 1]; on the grid of 8-bit levels in the mode `inference`.
    """
    if mode == INFERENCE:
        return enlarge_bicubic(lq, size, 8)
    enlarged: Array = resize(lq, size, mode).clip(0, 1)
    return enlarged


def blur(image: Array, weights: npt.NDArray[np.floating]) -> Array:
    """Correlate every channel of (H, W, 3) with `weights`, reflected at the borders (the outermost pixel is not doubled)."""
    return np.asarray(cv2.filter2D(image, -1, weights, borderType=cv2.BORDER_REFLECT_101), dtype=np.float32)


def resize(image: Array, size: Size, mode: str) -> Array:
    """Resize (H, W, 3) to `size` by `area`, `bilinear` or `bicubic` (a = -0.75), without antialiasing."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if mode == "area":  # adaptive averaging: cv2's own `INTER_AREA` turns bilinear where an axis grows
        planes = torch.from_numpy(image).permute(2, 0, 1)[None]
        pooled = torch.nn.functional.adaptive_avg_pool2d(planes, (height, width))[0]
        return np.ascontiguousarray(pooled.permute(1, 2, 0).numpy())
    flag = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[mode]
    return np.asarray(cv2.resize(image, (width, height), interpolation=flag), dtype=np.float32)


def jpeg(image: Array, quality: float | None) -> Array:
    """Clip (H, W, 3) to [0, 1] and take it through a JPEG file of `quality` (none: only clip)."""
    if quality is None:
        clipped: Array = image.clip(0, 1)
        return clipped
    levels = jpeg_levels((image.clip(0, 1) * 255).round().astype(np.uint8), quality)
    decoded: Array = levels.astype(np.float32) / np.float32(255)
    return decoded


def jpeg_levels(levels: npt.NDArray[np.uint8], quality: float) -> npt.NDArray[np.uint8]:
    """(H, W, 3), RGB, uint8, through a JPEG file and back; chroma is halved in both axes (4:2:0), as cameras do."""
    subsampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    bgr = cv2.cvtColor(levels, cv2.COLOR_RGB2BGR)
    _, coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, round(quality), *subsampling])
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def gaussian_noise(shape: Size, rng: np.random.Generator, levels: float, gray: bool) -> Array:
    """Noise of standard deviation `levels` / 255: (H, W, 3), or (H, W, 1) if gray."""
    noise = rng.standard_normal((*shape, 1 if gray else 3), dtype=np.float32)
    noise *= np.float32(levels / 255)
    return noise


def poisson_noise(image: Array, rng: np.random.Generator, scale: float, gray: bool) -> Array:
    """Shot noise of `image`, times `scale`: (H, W, 3), or (H, W, 1) if gray, then of its luma.

    On the image x rounded to 8 bits: (Poisson(x·V) / V − x) · scale, where white is V photons, V = 2^ceil(log2(number of
    distinct values)).
    """
    base = (image @ np.array(LUMA, dtype=np.float32))[..., None] if gray else image
    levels = (base.clip(0, 1) * 255).round().astype(np.uint8)
    photons = photons_of_white(int(np.count_nonzero(np.bincount(levels.ravel(), minlength=256))))
    rates = np.arange(256) / 255 * photons
    noise: Array = rng.poisson(rates[levels]).astype(np.float32)
    noise -= rates.astype(np.float32)[levels]
    noise *= np.float32(scale / photons)
    return noise


def photons_of_white(distinct: int) -> int:
    """2^ceil(log2(distinct)), in integers."""
    return 1 << (distinct - 1).bit_length()


def _stage(image: Array, draws: StageDraws) -> Array:
    if draws.kernel is not None:
        image = _filtered(image, draws.kernel)
    return _noisy(resize(image, draws.size, draws.mode), draws.noise)


def _filtered(image: Array, kernel: Kernel) -> Array:
    weights = kernel.weights()
    if kernel.kind == "identity":
        return image
    if kernel.kind == "isotropic":  # an outer product: two passes are several times faster
        row = weights.sum(0)
        return np.asarray(cv2.sepFilter2D(image, -1, row, row, borderType=cv2.BORDER_REFLECT_101), dtype=np.float32)
    return blur(image, weights)


def _noisy(image: Array, noise: Noise) -> Array:
    rng = np.random.default_rng(noise.seed)
    if noise.strength == 0:
        added = np.zeros((1, 1, 1), dtype=np.float32)
    elif noise.kind == "gaussian":
        added = gaussian_noise((image.shape[0], image.shape[1]), rng, noise.strength, noise.gray)
    else:
        added = poisson_noise(image, rng, noise.strength, noise.gray)
    noisy: Array = (image + added).clip(0, 1)
    return noisy


def _on_the_8_bit_grid(image: Array) -> Array:
    rounded: Array = (image.clip(0, 1) * 255).round().astype(np.float32) / np.float32(255)
    return rounded
