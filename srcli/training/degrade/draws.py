"""Real-ESRGAN's second-order degradation: from a clean photo to the input that training sees.

Source: Wang et al., "Real-ESRGAN", 2021, with the numbers of PiSA-SR's training. Chance and work are apart: `draw` decides
everything, `engine.degrade` carries it out.
Where the reference approximates JPEG by a differentiable stand-in with known slips, a real codec is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from srcli.config.degradation import RESIZE_MODES, Degradation, FirstStage, SecondStage
from srcli.errors import ImageError
from srcli.training.degrade.kernels import Kernel, draw_final_kernel, draw_kernel, draw_unsharp_mask

Size = tuple[int, int]
"""Height and width in pixels."""

INFERENCE = "inference"
"""The mode of `resize_back` that enlarges as `srcli upscale` does."""
RAW = "raw"
"""The mode that leaves the degraded photo as small as it is."""
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
