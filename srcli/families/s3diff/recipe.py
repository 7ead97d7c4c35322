"""What the recipe of the semantic stage has beside every recipe's keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from srcli.config.recipe import STRICT, Recipe
from srcli.families.s3diff import SEMANTIC


@dataclass(frozen=True, config=STRICT)
class SemanticRecipe(Recipe):
    """What is trained, by what, on what kind of damage."""

    vae_rank: Annotated[int, Field(ge=1, le=1 << 12, description="of the encoder's layers; `rank` is of the UNet's")] = 16
    negative_ratio: Annotated[
        float, Field(ge=0, le=1, description="share of samples whose target is their own input, under the negative prompt")
    ] = 0.05
    start: Annotated[
        Literal["identity", "reference"],
        Field(description="identity: at first the matrices are 1, plain LoRA; reference: about 1e-10, as S3Diff's code begins"),
    ] = "identity"


RECIPES: dict[str, type[Recipe]] = {SEMANTIC: SemanticRecipe}
