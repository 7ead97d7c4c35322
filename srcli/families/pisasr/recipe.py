"""What the recipe of the semantic stage has beside every recipe's keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from srcli.config.recipe import STRICT, Losses, Positive, Recipe, Weight
from srcli.families.pisasr import SEMANTIC


@dataclass(frozen=True, config=STRICT)
class SemanticLosses(Losses):
    """Weights; a loss of weight 0 is not computed."""

    csd: Annotated[Weight, Field(description="classifier score distillation by the frozen base")] = 0.0


@dataclass(frozen=True, config=STRICT)
class Csd:
    """Classifier score distillation (PiSA-SR, eqs. 5, 6, S4)."""

    guidance_scale: Annotated[Positive, Field(description="classifier-free guidance of the teacher")] = 7.5
    step_range: Annotated[
        tuple[float, float], Field(description="noise steps drawn, as shares of the base's, upper end excluded")
    ] = (0.02, 0.5)
    null_prompt_ratio: Annotated[
        float, Field(ge=0, le=1, description="share of samples that the trained UNet sees under the empty prompt")
    ] = 0.5

    @field_validator("step_range")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 1:
            raise ValueError("must be two shares, 0 <= low < high <= 1")
        return value


@dataclass(frozen=True, config=STRICT)
class SemanticRecipe(Recipe):
    """What is trained, by what, on what kind of damage."""

    orthogonal: Annotated[bool, Field(description="keep the update off what the pixel adapter spans")] = False
    orthogonal_energy: Annotated[
        float, Field(gt=0, le=1, description="share of the pixel adapter's energy that is kept free")
    ] = 0.95
    losses: SemanticLosses = Field(default_factory=SemanticLosses)
    csd: Csd = Field(default_factory=Csd)


RECIPES: dict[str, type[Recipe]] = {SEMANTIC: SemanticRecipe}
