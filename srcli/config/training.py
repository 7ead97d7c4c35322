"""The settings of the training commands; needs pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from srcli.config._checks import device_faults, raise_faults
from srcli.config.recipe import Recipe
from srcli.families import families


@dataclass(frozen=True)
class TrainConfig:
    """What a training command is to do; `recipe` holds what decides the result, the rest how it is carried out."""

    family: str
    stage: str
    """One of the family's."""
    data: tuple[str, ...]
    """Sources as `PATH[,lq=DIR][,weight=W]`."""
    output: Path
    recipe: Recipe
    told: Mapping[str, str | int | float] = field(default_factory=dict)
    """What the networks are told: the values of the row's own keys and of its dials."""
    model: str = "tiny"
    base_name: str = ""
    """As the adapter's metadata will name it."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Files or folders of the adapters that the stage builds on."""
    start_from: Path | None = None
    """File or folder of an adapter of this stage whose weights the training begins with, instead of an empty one."""
    captions: str = ""
    """`sidecar`, a list file, `model:REPO`, or nothing."""
    scale: int = 4
    seed: int = 0
    val: str = ""
    """A source, `none`, or nothing to hold photos out of the data."""
    val_images: int = 8
    val_every: int = 500
    workers: int = 1
    device: str = "auto"
    dtype: str = "auto"
    gradient_checkpointing: bool = False
    decode_chunk: int = 0
    """Pictures whose decoder graph is in memory at once; 0 leaves it to the autoencoder."""
    log_every: int = 50
    save_every: int = 500
    keep: int = 3
    resume: bool = False
    licence: str = ""

    def __post_init__(self) -> None:
        stage = families()[self.family].stages[self.stage]
        faults = [] if self.data else ["no `--data` given"]
        faults += [f"it builds on the {name} adapter: give `--{name}`" for name in stage.needs if name not in self.adapters]
        faults += stage.check(self)
        for name in ("val_images", "val_every", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                faults.append(f"`--{name.replace('_', '-')} {getattr(self, name)}` is not positive")
        for name in ("workers", "decode_chunk"):
            if getattr(self, name) < 0:
                faults.append(f"`--{name.replace('_', '-')} {getattr(self, name)}` is negative")
        if not 0 <= self.seed < 1 << 32:
            faults.append(f"`--seed {self.seed}` is not between 0 and {(1 << 32) - 1}")
        if self.recipe.crop % self.scale:
            faults.append(f"`--crop {self.recipe.crop}` is not a multiple of the scale {self.scale}")
        faults += device_faults(self.device, self.dtype)
        raise_faults(faults, f"srcli train-{self.stage} --help")
