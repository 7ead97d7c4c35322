"""Options that all training commands share."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from srcli.cli.options import FILES, MODEL, REPORT, WORK

log = logging.getLogger("srcli")

TRAINING = "Training (the recipe)"
LOSSES = "Losses (the recipe)"


def _training(help: str, *names: str, panel: str = TRAINING, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


def _number_or_word(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text


Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Photos: a folder, also of a store as `s3://bucket/folder`, a list file, "
        "or `HQ,lq=LQ` for pairs; `,weight=2` draws from it twice as often. Repeatable.",
        metavar="SOURCE",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Folder for adapter, checkpoints, samples and metrics.", show_default=False),
]
Model = Annotated[str, typer.Option(help="The model whose base, prompts and recipe are used.", rich_help_panel=MODEL)]
Base = Annotated[
    str | None,
    typer.Option(
        help="Another base than the model's: a folder in diffusers' layout, or a hub repository.",
        rich_help_panel=MODEL,
        metavar="DIR_OR_REPO",
    ),
]
RecipeFile = Annotated[
    Path | None, _training("TOML file of settings, laid over the model's own; options go above both.", "--recipe", metavar="FILE")
]
ShowRecipe = Annotated[
    bool, typer.Option("--show-recipe", help="Print the whole recipe as TOML and stop.", rich_help_panel=TRAINING)
]
Steps = Annotated[int | None, _training("Updates of the adapter; the recipe's if not given.")]
BatchSize = Annotated[int | None, _training("Crops in a batch, of each process.", "--batch")]
Accumulate = Annotated[int | None, _training("Batches that make one step.")]
Crop = Annotated[int | None, _training("Side of the crops in output pixels.")]
Rank = Annotated[
    Any | None,
    _training(
        "Rank of the adapter: how much it can learn, and its size; or `auto` or `full`, where the method has these.",
        metavar="N",
        parser=_number_or_word,
    ),
]
Alpha = Annotated[float | None, _training("Strength of the adapter, which is scaled by alpha / rank.")]
Targets = Annotated[str | None, _training("Regular expression of the layers that get an adapter.", metavar="REGEX")]
LearningRate = Annotated[float | None, _training("Peak of AdamW's learning rate.", "--lr", "--learning-rate")]
Schedule = Annotated[str | None, _training("Learning rate after the warm-up: constant, cosine, linear.", metavar="NAME")]
Warmup = Annotated[int | None, _training("Steps of linear warm-up.")]
ClipNorm = Annotated[float | None, _training("Largest norm of the gradient; 0 clips nothing.")]
Ema = Annotated[float | None, _training("Decay of the average of the weights that is saved; 0 saves the last ones.")]
L2 = Annotated[float | None, _training("Weight of the squared error.", "--l2", panel=LOSSES)]
L1 = Annotated[float | None, _training("Weight of the absolute error.", "--l1", panel=LOSSES)]
PsnrWeight = Annotated[float | None, _training("Weight of the decibels missing to a PSNR of 40.", "--psnr", panel=LOSSES)]
SsimWeight = Annotated[float | None, _training("Weight of the SSIM loss: 1 - SSIM of the luma.", "--ssim", panel=LOSSES)]
Lpips = Annotated[float | None, _training("Weight of LPIPS (VGG); see `srcli models fetch lpips-vgg`.", panel=LOSSES)]
FeaturesWeight = Annotated[
    float | None,
    _training("Weight of the distance of features; see `features.network` in the recipe.", "--features", panel=LOSSES),
]
GanWeight = Annotated[float | None, _training("Weight of the adversarial loss.", "--gan", panel=LOSSES)]
FrequencyWeight = Annotated[float | None, _training("Weight of the frequency-domain loss.", "--frequency", panel=LOSSES)]
GridWeight = Annotated[float | None, _training("Weight of the loss against a grid of latent cells.", "--grid", panel=LOSSES)]
Seed = Annotated[
    int, typer.Option(help="Seed of all random numbers; the same seed gives the same adapter.", rich_help_panel=TRAINING)
]
Workers = Annotated[int, typer.Option(help="Processes that prepare crops; with 0, training does.", rich_help_panel=WORK)]
GradientCheckpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Save memory, for a third more time.", rich_help_panel=WORK)
]
DecodeChunk = Annotated[
    int, typer.Option(help="Pictures decoded at once; 1 needs the least memory, and 0 lets srcli choose.", rich_help_panel=WORK)
]
StartFrom = Annotated[
    Path | None,
    typer.Option(
        help="Begin with the weights of this adapter (folder or file) instead of an empty one: it learns on.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint in --output, if there is one.", rich_help_panel=FILES)
]
SaveEvery = Annotated[int, typer.Option(help="Steps between checkpoints.", rich_help_panel=FILES)]
Keep = Annotated[int, typer.Option(help="Number of latest checkpoints that are kept, besides the best.", rich_help_panel=FILES)]
Licence = Annotated[str, typer.Option(help="Licence of the adapter, written into its metadata.", rich_help_panel=FILES)]
Val = Annotated[
    str,
    typer.Option(
        help="Photos to validate on, as in `--data`, or `none`. A few of --data are held out if not given.",
        rich_help_panel=REPORT,
        metavar="SOURCE",
        show_default=False,
    ),
]
ValImages = Annotated[int, typer.Option(help="Most photos in the validation set.", rich_help_panel=REPORT)]
ValEvery = Annotated[int, typer.Option(help="Steps between validations.", rich_help_panel=REPORT)]
LogEvery = Annotated[int, typer.Option(help="Steps between records of the losses.", rich_help_panel=REPORT)]
Preview = Annotated[
    int,
    typer.Option(
        help="Write a sheet of N training pairs to OUTPUT/preview.png and stop.",
        rich_help_panel=REPORT,
        metavar="N",
        show_default=False,
    ),
]
