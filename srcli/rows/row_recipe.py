"""The `training` table of a row: where the training commands start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srcli.rows.toml import Table

LOSSES = ("l2", "l1", "psnr", "ssim", "lpips", "csd", "gan", "matching", "frequency", "grid")


@dataclass(frozen=True)
class TrainingRecipe:
    """What training starts from where the user says nothing; None where the row says nothing either."""

    crop: int | None = None
    """Side of a training crop, in output pixels."""
    batch: int | None = None
    steps: int | None = None
    learning_rate: float | None = None
    l1_weight: float | None = None
    """Of a mean absolute error beside the squared one."""
    rank: int | None = None
    alpha: float | None = None
    targets: str | None = None
    """A regular expression of the layers that get an adapter; training checks it."""
    schedule: str | None = None
    """`constant`, `cosine` or `linear`."""
    warmup: int | None = None
    ema: float | None = None
    losses: Mapping[str, float] | None = None
    """Weights by the names of `srcli train-pixel --show-recipe`."""
    gan: Mapping[str, Any] | None = None
    """Settings of the discriminator, as in a recipe's table of that name; training checks them."""
    frequency: Mapping[str, Any] | None = None
    """The same for the frequency loss."""
    references: Mapping[str, Any] | None = None
    """The same for what losses compare with."""
    degradation: Mapping[str, Any] | None = None
    """The same for the damage done to photos."""
    semantic: TrainingRecipe | None = None
    """What is other in the semantic stage."""

    def layers(self, stage: str) -> list[dict[str, Any]]:
        """What the row says of a stage, to be laid over the stage's defaults in this order."""
        own = {key: value for key, value in self.__dict__.items() if value is not None and key != "semantic"}
        if "l1_weight" in own:
            own["losses"] = {**own.get("losses", {}), "l1": own.pop("l1_weight")}
        return [own] + (self.semantic.layers(stage) if stage == "semantic" and self.semantic else [])


def read_training(table: Table) -> TrainingRecipe:
    """What is faulty is noted in the table."""
    recipe = TrainingRecipe(
        crop=table.count("crop"),
        batch=table.count("batch"),
        steps=table.count("steps"),
        learning_rate=table.rate("learning_rate"),
        l1_weight=table.rate("l1_weight"),
        rank=table.count("rank"),
        alpha=table.rate("alpha"),
        targets=table.find("targets", str),
        schedule=table.find("schedule", str),
        warmup=table.count("warmup"),
        ema=table.rate("ema"),
        losses=_read_losses(table.table("losses")) if table.has("losses") else None,
        gan=table.find("gan", dict),
        frequency=table.find("frequency", dict),
        references=table.find("references", dict),
        degradation=table.find("degradation", dict),
        semantic=read_training(table.table("semantic")) if table.has("semantic") else None,
    )
    table.close()
    return recipe


def _read_losses(table: Table) -> dict[str, float]:
    losses = {name: table.find(name, float) for name in LOSSES}
    for name, weight in losses.items():
        if weight is not None and not 0 <= weight < float("inf"):
            table.fault(f"`{name}` must be 0 or more, not {weight}")
    table.close()
    return {name: weight for name, weight in losses.items() if weight is not None}
