"""The settings of `srcli train-pixel` and `srcli train-semantic`; needs pydantic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from srcli.config._checks import device_faults, raise_faults
from srcli.config.recipe import STAGES, Recipe


@dataclass(frozen=True)
class Prompts:
    """What the networks are told; names of embeddings where the base has no text encoder."""

    inference: str = ""
    """Also the empty prompt of `csd.null_prompt_ratio`."""
    positive: str = ""
    """Appended to each caption, or alone where there are no captions."""
    negative: str = ""
    captions: str = ""
    """`sidecar`, a list file, `model:REPO`, or nothing."""


@dataclass(frozen=True)
class TrainConfig:
    """What a training command is to do; `recipe` holds what decides the result, the rest how it is carried out."""

    stage: str
    """`pixel` or `semantic`."""
    data: tuple[str, ...]
    """Sources as `PATH[,lq=DIR][,weight=W]`."""
    output: Path
    recipe: Recipe
    model: str = "tiny"
    base_name: str = ""
    """As the adapter's metadata will name it."""
    pixel: Path | None = None
    """Semantic stage: the pixel adapter's file or folder."""
    start_from: Path | None = None
    """File or folder of an adapter of this stage whose weights the training begins with, instead of an empty one."""
    prompts: Prompts = Prompts()
    scale: int = 4
    timestep: int = 1
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
        faults = []
        if self.stage not in STAGES:
            faults.append(f"`{self.stage}` is no stage: {', '.join(STAGES)}")
        if not self.data:
            faults.append("no `--data` given")
        if self.stage == "semantic" and self.pixel is None:
            faults.append("the semantic stage needs `--pixel`, the adapter that `srcli train-pixel` made")
        if self.stage == "pixel" and self.recipe.orthogonal:
            faults.append("`--orthogonal` belongs to the semantic stage")
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
