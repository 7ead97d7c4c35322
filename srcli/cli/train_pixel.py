"""`srcli train-pixel`: a pixel adapter from a folder of photos."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from srcli.cli.options import FILES, MODEL, REPORT, WORK, Device, Dtype, ModelsFile
from srcli.config import TrainPixelConfig

log = logging.getLogger("srcli")

TRAINING = "Training"


def train_pixel(
    photos: Annotated[Path, typer.Argument(help="Folder of sharp photos to learn from.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the adapter.", show_default=False)],
    model: Annotated[
        str,
        typer.Option(help="The model whose base, prompt and recipe are used.", rich_help_panel=MODEL),
    ] = "tiny",
    base: Annotated[
        str | None,
        typer.Option(
            help="Another base than the model's: a folder in diffusers' layout, or a hub repository.",
            rich_help_panel=MODEL,
            metavar="DIR_OR_REPO",
        ),
    ] = None,
    models_file: ModelsFile = None,
    rank: Annotated[int | None, typer.Option(help="Of the adapter. The recipe's, else 4.", rich_help_panel=TRAINING)] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="The adapter is scaled by alpha / rank. The recipe's, else 8.", rich_help_panel=TRAINING),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="The recipe's, else 4000.", rich_help_panel=TRAINING)] = None,
    batch: Annotated[
        int | None, typer.Option(help="Crops a step and process. The recipe's, else 16.", rich_help_panel=TRAINING)
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(help="Side of the crops in pixels. The recipe's, else 512.", rich_help_panel=TRAINING),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak, of AdamW on a half cosine. The recipe's, else 5e-5.", rich_help_panel=TRAINING),
    ] = None,
    l1_weight: Annotated[
        float | None,
        typer.Option(
            help="Weight of a mean absolute error beside the squared one. The recipe's, else 0.", rich_help_panel=TRAINING
        ),
    ] = None,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.", rich_help_panel=TRAINING)] = 100,
    seed: Annotated[int, typer.Option(help="Of all chance.", rich_help_panel=TRAINING)] = 0,
    workers: Annotated[
        int, typer.Option(help="Processes that prepare crops; 0 prepares them in between.", rich_help_panel=WORK)
    ] = 1,
    device: Device = "auto",
    dtype: Dtype = "auto",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=WORK)
    ] = False,
    log_every: Annotated[int, typer.Option(help="Steps between lines of progress.", rich_help_panel=REPORT)] = 50,
    save_every: Annotated[
        int, typer.Option(help="Steps between checkpoints; a killed run goes on from the last.", rich_help_panel=FILES)
    ] = 500,
    licence: Annotated[str, typer.Option(help="Of the adapter, kept in its metadata.", rich_help_panel=FILES)] = "",
) -> None:
    """Train a pixel adapter: PiSA-SR's first stage.

    Photos are degraded as Real-ESRGAN does; the adapter learns to undo it, by
    squared error. Repeating the command after an interruption goes on from the
    last checkpoint.

    Example: srcli train-pixel ~/photos -o my-adapter --steps 2000
    """
    from srcli.models.spec import find_model, replace_base
    from srcli.models.weights import base_folder

    spec = find_model(model, models_file)
    if base is not None:
        spec = replace_base(spec, base)
    recipe = spec.training
    config = TrainPixelConfig(
        photos=photos,
        output=output,
        base_name=base or spec.base.embedded or spec.base.repo or str(spec.base.path),
        scale=spec.native_scale,
        timestep=spec.timestep,
        prompt=spec.prompt,
        warmup=warmup,
        seed=seed,
        workers=workers,
        device=device,
        dtype=dtype,
        gradient_checkpointing=gradient_checkpointing,
        log_every=log_every,
        save_every=save_every,
        licence=licence,
        **_settled(
            recipe, rank=rank, alpha=alpha, steps=steps, batch=batch, crop=crop, learning_rate=learning_rate, l1_weight=l1_weight
        ),
    )
    from srcli.training.loop import train_pixel as run

    try:
        path = run(config, base_folder(spec))
    except KeyboardInterrupt:
        log.warning("interrupted: repeat the command to go on from the last checkpoint")
        raise typer.Exit(130) from None
    log.info("saved `%s`", path)


def _settled(recipe: Any, **given: Any) -> dict[str, Any]:
    """What was given, else what the recipe says; what neither says is left to the config's default."""
    settled = {}
    for name, value in given.items():
        chosen = value if value is not None else getattr(recipe, name, None)
        if chosen is not None:
            settled[name] = chosen
    return settled
