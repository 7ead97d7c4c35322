"""The recipe of a training run: everything that decides what the adapter becomes, apart from photos, base and seed.

A stage may have keys of its own beside these (`recipe.py` of its family), and other defaults (its declaration). The defaults here
are PiSA-SR's (Sun et al., CVPR 2025, section 4.1 and supplement; what the paper leaves open, from its code).
`srcli train-pixel --show-recipe` prints a recipe with its comments, `--recipe FILE` reads it back.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from srcli.config.degradation import Degradation

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
SIGMA_PX = 1.2
"""Of `References`."""
FeatureName = Literal["efficientnet-lite0", "efficientnet-lite1", "vgg16", "dino-vitb16"]
"""The first two need the extra `features`, the others are fetched: `srcli models fetch lpips-vgg`, `… dino-vitb16`."""
FEATURE_SIDE = 32
"""Of the smallest pictures that all networks of `Features` take, in pixels."""

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class Losses:
    """Weights; a loss of weight 0 is not computed."""

    l2: Annotated[Weight, Field(description="squared error of pixels in [-1, 1]")] = 1.0
    l1: Annotated[Weight, Field(description="absolute error of pixels")] = 0.0
    psnr: Annotated[Weight, Field(description="decibels that each picture's PSNR is short of 40 dB")] = 0.0
    ssim: Annotated[Weight, Field(description="1 - SSIM of luma")] = 0.0
    lpips: Annotated[Weight, Field(description="LPIPS (VGG); needs `srcli models fetch lpips-vgg`")] = 0.0
    features: Annotated[Weight, Field(description="distance of a feature network's answers; see `features.network`")] = 0.0
    gan: Annotated[Weight, Field(description="adversarial, by a discriminator trained beside; see `gan`")] = 0.0
    frequency: Annotated[Weight, Field(description="distance of Fourier coefficients")] = 0.0
    grid: Annotated[Weight, Field(description="steps that are uneven over the latent cells' grid, beyond the reference's")] = 0.0


@dataclass(frozen=True, config=STRICT)
class Gan:
    """The adversarial loss, used where `losses.gan` is above 0."""

    kind: Annotated[Literal["vanilla", "hinge", "relativistic"], Field(description="vanilla, hinge or relativistic")] = "vanilla"
    network: Annotated[
        Literal["unet", FeatureName],
        Field(description="unet: all of it is trained; else heads on that frozen network of `features`, by augmented pictures"),
    ] = "unet"
    features: Annotated[
        int, Field(ge=1, le=1 << 12, description="channels of the discriminator's first layer, or of its heads")
    ] = 64
    target: Annotated[float, Field(gt=0.5, le=1, description="vanilla: what is real counts as, of 1")] = 1.0
    learning_rate: Annotated[Positive, Field(description="of the discriminator")] = 1e-4
    start: Annotated[int, Field(ge=0, description="steps that the discriminator trains alone before its loss counts")] = 0
    r1: Annotated[Weight, Field(description="weight of the zero-centred gradient penalty on real pictures; 0 = none")] = 0.0

    @model_validator(mode="after")
    def _keys_have_their_kind(self) -> Gan:
        if self.target != 1 and self.kind != "vanilla":
            raise ValueError(f"`target` is for the kind `vanilla`, not for `{self.kind}`")
        if self.r1 and self.network != "unet":
            raise ValueError(f"`r1` is for the network `unet`, not for `{self.network}`")
        return self


@dataclass(frozen=True, config=STRICT)
class Features:
    """The distance of features, used where `losses.features` is above 0."""

    network: Annotated[
        FeatureName,
        Field(description="efficientnet-lite0, efficientnet-lite1 (by which `srcli eval` measures), vgg16 or dino-vitb16"),
    ] = "efficientnet-lite0"
    weights: Annotated[
        tuple[Weight, ...], Field(description="of the network's depths, the finest first; dino-vitb16 has 3, the others 5")
    ] = ()

    @field_validator("weights")
    @classmethod
    def _some(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value and not any(value):
            raise ValueError("are all 0: there is nothing to compare")
        return value

    @model_validator(mode="after")
    def _one_for_each_depth(self) -> Features:
        depths = 3 if self.network == "dino-vitb16" else 5
        object.__setattr__(self, "weights", self.weights or (1.0,) * depths)
        if len(self.weights) != depths:
            raise ValueError(f"`weights` are {len(self.weights)}, and `{self.network}` has {depths} depths")
        return self


@dataclass(frozen=True, config=STRICT)
class Frequency:
    """The frequency-domain loss, used where `losses.frequency` is above 0."""

    mode: Annotated[
        Literal["complex", "amplitude"], Field(description="complex: with phase; amplitude: energy alone, for texture")
    ] = "complex"
    patch: Annotated[int, Field(ge=0, description="side of windowed patches in pixels, even, 0 = the whole crop")] = 0
    excess: Annotated[Positive, Field(description="amplitude: how much worse too strong is than too weak")] = 1.0

    @field_validator("patch")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("patches overlap by half: give an even number")
        return value

    @model_validator(mode="after")
    def _excess_has_its_mode(self) -> Frequency:
        if self.excess != 1 and self.mode != "amplitude":
            raise ValueError(f"`excess` is for the mode `amplitude`, not for `{self.mode}`")
        return self


@dataclass(frozen=True, config=STRICT)
class References:
    """What losses compare with; validation measures against the photos as they are."""

    sharpening: Annotated[Weight, Field(description="amount of an unsharp mask on them, flat areas excepted; 0 = none")] = 0.0
    sigma_px: Annotated[float, Field(gt=0, le=5, description="width of that mask in pixels")] = SIGMA_PX

    @model_validator(mode="after")
    def _width_has_its_mask(self) -> References:
        if self.sigma_px != SIGMA_PX and not self.sharpening:
            raise ValueError("`sigma_px` is of the mask of `sharpening`, which is 0")
        return self


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """What is trained, by what, on what kind of damage."""

    steps: Annotated[int, Field(ge=1, description="updates of the adapter")] = 4000
    batch: Annotated[int, Field(ge=1, description="crops a step and process")] = 16
    accumulate: Annotated[int, Field(ge=1, description="batches whose gradients make one step")] = 1
    crop: Annotated[int, Field(ge=16, description="side of the crops, in output pixels")] = 512
    rank: Annotated[int, Field(ge=1, le=1 << 16, description="of the adapter")] = 4
    alpha: Annotated[Positive, Field(description="the adapter is scaled by alpha / rank")] = 8.0
    targets: Annotated[
        str, Field(description="regular expression of the layers that get an adapter; empty = those of the method")
    ] = ""
    learning_rate: Annotated[Positive, Field(description="peak, of AdamW")] = 5e-5
    schedule: Annotated[Literal["constant", "cosine", "linear"], Field(description="after the warm-up")] = "constant"
    warmup: Annotated[int, Field(ge=0, description="steps of linear warm-up")] = 0
    weight_decay: Annotated[Weight, Field(description="of AdamW")] = 1e-2
    clip_norm: Annotated[Weight, Field(description="largest norm of the gradient; 0 = no clipping")] = 1.0
    ema: Annotated[float, Field(ge=0, lt=1, description="decay of the average that is saved; 0 = save the last weights")] = 0.0
    losses: Losses = Field(default_factory=Losses)
    features: Features = Field(default_factory=Features)
    gan: Gan = Field(default_factory=Gan)
    frequency: Frequency = Field(default_factory=Frequency)
    references: References = Field(default_factory=References)
    degradation: Degradation = Field(default_factory=Degradation)

    @field_validator("targets")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _something_to_learn(self) -> Recipe:
        if not any(asdict(self.losses).values()):
            raise ValueError("`losses` are all 0: there is nothing to learn")
        if not any(weight for name, weight in asdict(self.losses).items() if name != "gan") and self.gan.start >= self.steps:
            raise ValueError(f"`losses.gan` alone, from step {self.gan.start} of {self.steps} on: there is nothing to learn")
        return self

    @model_validator(mode="after")
    def _losses_fit_the_crop(self) -> Recipe:
        if self.frequency.patch > self.crop:
            raise ValueError(f"`frequency.patch` {self.frequency.patch} is larger than `crop` {self.crop}")
        projected = self.losses.gan and self.gan.network != "unet"
        if (self.losses.features or projected) and self.crop < FEATURE_SIDE:
            needing = "losses.features" if self.losses.features else "gan"
            raise ValueError(f"`crop` {self.crop} is below {FEATURE_SIDE}, which the network of `{needing}` needs")
        if self.losses.gan and not projected and self.crop % 8:
            raise ValueError(f"`crop` {self.crop} is no multiple of 8, which the discriminator of `losses.gan` needs")
        return self
