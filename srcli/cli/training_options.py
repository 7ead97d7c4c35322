"""Options that `train-pixel` and `train-semantic` share, and what both do with them."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from srcli.cli.options import FILES, MODEL, REPORT, WORK
from srcli.errors import UsageError

log = logging.getLogger("srcli")

TRAINING = "Training (the recipe)"
LOSSES = "Losses (the recipe)"
PROMPTS = "Prompts"

_RECIPE_KEYS = (
    *("steps", "batch", "accumulate", "crop", "rank", "alpha", "targets", "schedule", "warmup", "clip_norm", "ema"),
    *("learning_rate", "orthogonal"),
)
_CSD_KEYS = ("guidance_scale", "step_range", "null_prompt_ratio")
_CSD_OPTIONS = (*_CSD_KEYS, "prompt", "negative_prompt")
_LOSS_KEYS = ("l2", "l1", "psnr", "ssim", "lpips", "csd", "gan", "matching", "frequency", "grid")


def _training(help: str, *names: str, panel: str = TRAINING, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Photos: a folder, a list file, or `HQ,lq=LQ` for pairs; `,weight=2` draws it more often. May be repeated.",
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
    Path | None, _training("Settings as TOML, laid over the model's own; options go above both.", "--recipe", metavar="FILE")
]
ShowRecipe = Annotated[
    bool, typer.Option("--show-recipe", help="Print the whole recipe as TOML and stop.", rich_help_panel=TRAINING)
]
Steps = Annotated[int | None, _training("Updates of the adapter. Else the recipe's.")]
BatchSize = Annotated[int | None, _training("Crops a step and process.", "--batch")]
Accumulate = Annotated[int | None, _training("Batches that make one step.")]
Crop = Annotated[int | None, _training("Side of the crops in output pixels.")]
Rank = Annotated[int | None, _training("Of the adapter.")]
Alpha = Annotated[float | None, _training("The adapter is scaled by alpha / rank.")]
Targets = Annotated[str | None, _training("Regular expression of the UNet's layers that get an adapter.", metavar="REGEX")]
LearningRate = Annotated[float | None, _training("Peak of AdamW's learning rate.", "--lr", "--learning-rate")]
Schedule = Annotated[str | None, _training("constant, cosine or linear.", metavar="NAME")]
Warmup = Annotated[int | None, _training("Steps of linear warm-up.")]
ClipNorm = Annotated[float | None, _training("Largest norm of the gradient; 0 for no clipping.")]
Ema = Annotated[float | None, _training("Decay of the averaged weights that are saved; 0 saves the last ones.")]
Orthogonal = Annotated[
    bool | None, _training("Keep the adapter's update off what the pixel adapter spans.", "--orthogonal/--no-orthogonal")
]
L2 = Annotated[float | None, _training("Weight of the squared error.", "--l2", panel=LOSSES)]
L1 = Annotated[float | None, _training("Weight of the absolute error.", "--l1", panel=LOSSES)]
PsnrWeight = Annotated[float | None, _training("Weight of the decibels short of 40 dB.", "--psnr", panel=LOSSES)]
SsimWeight = Annotated[float | None, _training("Weight of 1 - SSIM of luma.", "--ssim", panel=LOSSES)]
Lpips = Annotated[float | None, _training("Weight of LPIPS (VGG); see `srcli models fetch lpips-vgg`.", panel=LOSSES)]
CsdWeight = Annotated[float | None, _training("Weight of score distillation.", "--csd", panel=LOSSES)]
GanWeight = Annotated[float | None, _training("Weight of the adversarial loss.", "--gan", panel=LOSSES)]
MatchingWeight = Annotated[
    float | None, _training("Weight of the distance of what the discriminator sees.", "--matching", panel=LOSSES)
]
FrequencyWeight = Annotated[float | None, _training("Weight of the frequency-domain loss.", "--frequency", panel=LOSSES)]
GridWeight = Annotated[float | None, _training("Weight of the loss against a grid of the latent cells.", "--grid", panel=LOSSES)]
GuidanceScale = Annotated[float | None, _training("Guidance of the teacher in score distillation.", panel=LOSSES)]
StepRange = Annotated[
    tuple[float, float] | None, _training("Noise steps of score distillation, as two shares.", panel=LOSSES, metavar="LOW HIGH")
]
NullPromptRatio = Annotated[float | None, _training("Share of samples seen under the empty prompt.", panel=LOSSES)]
Prompt = Annotated[str | None, _training("Positive prompt, after the caption if there is one. Else the model's.", panel=PROMPTS)]
NegativePrompt = Annotated[str | None, _training("Negative prompt. Else the model's.", panel=PROMPTS)]
Captions = Annotated[
    str,
    typer.Option(
        help="`sidecar` (photo.txt beside photo.jpg), a list file (path<tab>caption), or `model:REPO` to have them written.",
        rich_help_panel=PROMPTS,
        metavar="SOURCE",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(help="Of all chance.", rich_help_panel=TRAINING)]
Workers = Annotated[int, typer.Option(help="Processes that prepare crops; 0 prepares them in between.", rich_help_panel=WORK)]
GradientCheckpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.", rich_help_panel=WORK)
]
DecodeChunk = Annotated[
    int, typer.Option(help="Pictures decoded at once; 0 chooses. 1 needs least memory.", rich_help_panel=WORK)
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
Keep = Annotated[int, typer.Option(help="Checkpoints that are kept, beside the best.", rich_help_panel=FILES)]
Licence = Annotated[str, typer.Option(help="Of the adapter, kept in its metadata.", rich_help_panel=FILES)]
Val = Annotated[
    str,
    typer.Option(
        help="Source of the validation set; `none` for none. A few photos are held out if not given.",
        rich_help_panel=REPORT,
        metavar="SOURCE",
        show_default=False,
    ),
]
ValImages = Annotated[int, typer.Option(help="Photos in the validation set, at most.", rich_help_panel=REPORT)]
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


def run_training(stage: str, given: Mapping[str, Any]) -> None:
    """What both commands do; `given` are their options by name."""
    from srcli.config.recipe_file import build_recipe, read_recipe_file, recipe_as_toml
    from srcli.config.training import Prompts, TrainConfig
    from srcli.rows.spec import find_model, replace_base

    spec = find_model(given["model"], given["models_file"])
    if given["base"] is not None:
        spec = replace_base(spec, given["base"])
    layers = spec.training.layers(stage) if spec.training else []
    if given["base"] is not None:  # which layers there are is a thing of the row's own base
        layers = [{key: value for key, value in layer.items() if key != "targets"} for layer in layers]
    if given["recipe"] is not None:
        layers.append(read_recipe_file(given["recipe"]))
    recipe = build_recipe(stage, [*layers, _recipe_layer(given)])
    if given["show_recipe"]:
        typer.echo(recipe_as_toml(recipe, f"srcli train-{stage} --model {spec.name}"), nl=False)
        return
    if given["output"] is None:
        raise UsageError("no `--output` given", f"see `srcli train-{stage} --help`")
    _refuse_without_effect(stage, given, recipe)
    prompts = Prompts(
        spec.prompt,
        _or(given.get("prompt"), spec.prompts.positive),
        _or(given.get("negative_prompt"), spec.prompts.negative),
        given.get("captions", ""),
    )
    kept = ("output", "model", "seed", "val", "val_images", "val_every", "workers", "device", "dtype", "gradient_checkpointing")
    more = ("decode_chunk", "log_every", "save_every", "keep", "resume", "licence", "start_from")
    config = TrainConfig(
        stage=stage,
        data=tuple(given["data"] or ()),
        recipe=recipe,
        base_name=spec.base.names[0],
        pixel=given.get("pixel"),
        prompts=prompts,
        scale=spec.native_scale,
        timestep=spec.timestep,
        **{name: given[name] for name in (*kept, *more)},
    )
    if given["preview"] < 0:
        raise UsageError(f"`--preview {given['preview']}` is negative", f"see `srcli train-{stage} --help`")
    if given["preview"]:
        from srcli.training.preview import write_preview

        log.info("wrote `%s`", write_preview(config, given["preview"]))
        return
    _train(config, spec)


def _refuse_without_effect(stage: str, given: Mapping[str, Any], recipe: Any) -> None:
    """Raises: UsageError: options of score distillation are given where its weight is 0."""
    if stage != "semantic" or recipe.losses.csd:
        return
    idle = [f"`--{name.replace('_', '-')}`" for name in _CSD_OPTIONS if given[name] is not None]
    idle += ["`--captions`"] if given["captions"] else []
    if idle:
        message = f"without score distillation there is no use for {', '.join(idle)}"
        raise UsageError(message, "its weight is 0 in the recipe: give one, as `--csd 1`, or leave these options out")


def _train(config: Any, spec: Any) -> None:
    from srcli.store.weights import base_folder
    from srcli.training.loop import STOPPED_BY_USER, train
    from srcli.training.output import begin_output

    begin_output(config)
    outcome = train(config, base_folder(spec))
    if outcome is None:
        return
    if isinstance(outcome, Path):
        _tell_result(config, spec, outcome)
        return
    words = [word for word in sys.argv[1:] if word != "--resume"]
    again = "the same command and `--resume`" if outcome.processes > 1 else f"`srcli {shlex.join(words)} --resume`"
    log.info("stopped at step %d; resume with %s", outcome.step, again)
    if outcome.reason == STOPPED_BY_USER:
        raise typer.Exit(130)


def _tell_result(config: Any, spec: Any, folder: Path) -> None:
    """The adapter's place, a row for it, and how to use it."""
    from srcli.networks.adapters import ADAPTER_FILE, find_adapter, row_with
    from srcli.rows.spec import ROW_NAME
    from srcli.rows.user_rows import add_user_row

    adapters = {config.stage: folder / ADAPTER_FILE}
    if config.pixel is not None:
        adapters = {"pixel": find_adapter(config.pixel, "pixel"), **adapters}
    name = config.output.resolve().name
    name = name if ROW_NAME.fullmatch(name) else "trained"
    row_file = config.output / "models.toml"
    add_user_row(name, row_with(spec, adapters, config.output), row_file)
    log.info("saved `%s`, and a row for it in `%s`", folder, row_file)
    log.info("use it: `srcli upscale PHOTOS -o OUT --model %s`", shlex.quote(str(config.output)))


def _recipe_layer(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the options say of the recipe."""
    layer: dict[str, Any] = {key: given[key] for key in _RECIPE_KEYS if given.get(key) is not None}
    losses = {key: given[key] for key in _LOSS_KEYS if given.get(key) is not None}
    csd = {key: given[key] for key in _CSD_KEYS if given.get(key) is not None}
    return layer | ({"losses": losses} if losses else {}) | ({"csd": csd} if csd else {})


def _or(value: str | None, other: str) -> str:
    return other if value is None else value
