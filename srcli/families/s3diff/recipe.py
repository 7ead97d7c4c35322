"""What the recipes of the stages have beside every recipe's keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from srcli.config.recipe import STRICT, Losses, Positive, Recipe, Weight
from srcli.families.s3diff import ESTIMATOR, SEMANTIC


@dataclass(frozen=True, config=STRICT)
class SemanticRecipe(Recipe):
    """What is trained, by what, on what kind of damage."""

    vae_rank: Annotated[int, Field(ge=1, le=1 << 12, description="of the encoder's layers; `rank` is of the UNet's")] = 16
    negative_ratio: Annotated[
        float, Field(ge=0, le=1, description="share of samples whose target is their own input, under the negative prompt")
    ] = 0.05
    scores: Annotated[
        Literal["estimated", "drawn"],
        Field(description="estimated: of the input, as S3Diff has it; drawn: of damage by degrees, which then is all the damage"),
    ] = "estimated"
    start: Annotated[
        Literal["identity", "reference"],
        Field(description="identity: at first the matrices are 1, plain LoRA; reference: about 1e-10, as S3Diff's code begins"),
    ] = "identity"


@dataclass(frozen=True, config=STRICT)
class EstimatorLosses(Losses):
    """Weights; a loss of weight 0 is not computed."""

    ranking: Annotated[Weight, Field(description="by how much a worse version's score is not `margin` above the other's")] = 0.01
    anchors: Annotated[Weight, Field(description="squared error of scores of clean photos to 0, and of the worst ones to 1")] = (
        1e-4
    )
    grades: Annotated[
        Weight,
        Field(description="squared error of all scores to how strong the damage is, so that they mean the same in all photos"),
    ] = 0.0


@dataclass(frozen=True, config=STRICT)
class EstimatorRecipe(Recipe):
    """What is trained, by what, on what kind of damage."""

    width: Annotated[int, Field(ge=1, le=1 << 10, description="channels of the estimator; 64 is MM-RealSR's")] = 64
    margin: Annotated[Positive, Field(description="of `losses.ranking`")] = 0.05
    losses: EstimatorLosses = Field(default_factory=EstimatorLosses)


RECIPES: dict[str, type[Recipe]] = {SEMANTIC: SemanticRecipe, ESTIMATOR: EstimatorRecipe}
