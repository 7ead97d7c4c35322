"""What the recipes of networks have beside every recipe's keys: which layers get adapters, and how large these are."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PlainValidator, field_validator, model_validator
from pydantic.dataclasses import dataclass

from srcli.config.recipe import STRICT, Positive, Recipe
from srcli.families.network import PIXEL, SEMANTIC

Kind = Literal["conv", "attention", "mlp"]
AUTO: Literal["auto"] = "auto"
FULL: Literal["full"] = "full"
RANK = 8
"""Of all layers, where nothing is said of it."""


def _read_rank(value: Any) -> Any:
    if value not in (AUTO, FULL) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f'must be a whole number above 0, "{AUTO}" or "{FULL}"')
    return value


@dataclass(frozen=True, config=STRICT)
class NetworkRecipe(Recipe):
    """What is trained, by what, on what kind of damage."""

    rank: Annotated[
        Any,  # an int, `AUTO` or `FULL`
        PlainValidator(_read_rank),
        Field(description="of the adapter's layers; auto = more where it matters more; full = whole weights and biases"),
    ] = RANK
    alpha: Annotated[
        Positive, Field(description=f"the adapter is scaled by alpha / rank, where rank is auto by alpha / {RANK}")
    ] = float(RANK)
    budget: Annotated[
        int, Field(ge=0, description=f"auto: numbers that are trained, at most; 0 = as many as rank {RANK} everywhere has")
    ] = 0
    layers: Annotated[
        tuple[Kind, ...], Field(description="kinds of layers that get an adapter, of those that `targets` fits")
    ] = get_args(Kind)

    @property
    def uniform(self) -> int:
        """The rank of all layers if none were measured, by which the adapter is scaled."""
        return RANK if self.rank in (AUTO, FULL) else int(self.rank)

    @property
    def all_layers(self) -> bool:
        """Whether no choice is made among layers."""
        return not self.targets and set(self.layers) == set(get_args(Kind))

    @field_validator("layers", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("layers")
    @classmethod
    def _some(cls, value: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if not value:
            raise ValueError(f"must be some of {', '.join(get_args(Kind))}")
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _budget_is_shared_out(self) -> NetworkRecipe:
        if self.budget and self.rank != AUTO:
            raise ValueError(f'`budget` is shared out where `rank` is "{AUTO}", not where it is {self.rank}')
        return self

    @model_validator(mode="after")
    def _alpha_scales_ranks(self) -> NetworkRecipe:
        if self.rank == FULL and self.alpha != RANK:
            raise ValueError(f'`alpha` has no effect where `rank` is "{FULL}": leave it at {RANK}')
        return self


RECIPES: dict[str, type[Recipe]] = {PIXEL: NetworkRecipe, SEMANTIC: NetworkRecipe}
