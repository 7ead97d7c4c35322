"""The training commands, `srcli train-STAGE`: one for each stage that a family declares."""

from __future__ import annotations

import inspect
import itertools
import logging
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from srcli.cli import training_options as o
from srcli.cli.family_options import stage_options, with_needed_adapters, with_stage_options
from srcli.cli.options import Device, Dtype, ModelsFile
from srcli.errors import UsageError
from srcli.families import all_stages, families
from srcli.protocol.declarations import Base

if TYPE_CHECKING:
    from srcli.config.recipe import Recipe
    from srcli.config.training import TrainConfig
    from srcli.rows.spec import ModelSpec

log = logging.getLogger("srcli")


def training_command(stage: str) -> Callable[..., None]:
    """The command of a stage, as typer takes it."""

    def command(
        data: o.Data = None,
        output: o.Output = None,
        adapters: Mapping[str, Path] = {},
        model: o.Model = "tiny",
        base: o.Base = None,
        start_from: o.StartFrom = None,
        models_file: ModelsFile = None,
        recipe: o.RecipeFile = None,
        show_recipe: o.ShowRecipe = False,
        steps: o.Steps = None,
        batch: o.BatchSize = None,
        accumulate: o.Accumulate = None,
        crop: o.Crop = None,
        rank: o.Rank = None,
        alpha: o.Alpha = None,
        targets: o.Targets = None,
        learning_rate: o.LearningRate = None,
        schedule: o.Schedule = None,
        warmup: o.Warmup = None,
        clip_norm: o.ClipNorm = None,
        ema: o.Ema = None,
        seed: o.Seed = 0,
        l2: o.L2 = None,
        l1: o.L1 = None,
        psnr: o.PsnrWeight = None,
        ssim: o.SsimWeight = None,
        lpips: o.Lpips = None,
        features: o.FeaturesWeight = None,
        gan: o.GanWeight = None,
        frequency: o.FrequencyWeight = None,
        grid: o.GridWeight = None,
        own: Mapping[str, Any] = {},
        device: Device = "auto",
        dtype: Dtype = "auto",
        workers: o.Workers = 1,
        gradient_checkpointing: o.GradientCheckpointing = False,
        decode_chunk: o.DecodeChunk = 0,
        resume: o.Resume = False,
        save_every: o.SaveEvery = 500,
        keep: o.Keep = 3,
        licence: o.Licence = "",
        val: o.Val = "",
        val_images: o.ValImages = 8,
        val_every: o.ValEvery = 500,
        log_every: o.LogEvery = 50,
        preview: o.Preview = 0,
    ) -> None:
        run_training(stage, locals())

    command.__name__ = f"train_{stage}"
    command.__doc__ = _help(stage)
    return with_needed_adapters(stage)(with_stage_options(stage)(command))


def _help(stage: str) -> str:
    """What the methods say of their stage; where several have it, below a sentence that names them."""
    declared = sorted((families()[family].title, inspect.cleandoc(each.about)) for family, each in all_stages()[stage].items())
    titles, abouts = zip(*declared, strict=True)
    several = [f"Train a {stage} adapter, for models of these kinds: {', '.join(titles)}."] if len(declared) > 1 else []
    return "\n\n".join([*several, *abouts])


def run_training(stage: str, given: Mapping[str, Any]) -> None:
    """What every training command does; `given` are its options by name."""
    from srcli.config.recipe_file import recipe_as_toml
    from srcli.rows.lookup import find_model
    from srcli.rows.spec import replace_base

    spec = find_model(given["model"], given["models_file"])
    if stage not in spec.declared.stages:
        trainings = ", ".join(f"`train-{name}`" for name in spec.declared.stages) or "none"
        message = f"the model `{spec.name}` ({spec.declared.title}) has no training `train-{stage}`"
        raise UsageError(message, f"its trainings: {trainings}; another model is given as `--model`")
    _refuse_foreign(spec, stage, given)
    if given["base"] is not None:
        if spec.declared.base is not Base.DIFFUSERS:
            message = f"the model `{spec.name}` ({spec.declared.title}) takes no `--base`: it is one file"
            raise UsageError(message, "name that file, or a row for it, as `--model`")
        spec = replace_base(spec, given["base"])
    recipe = _recipe(spec, stage, given)
    if given["show_recipe"]:
        typer.echo(recipe_as_toml(recipe, f"srcli train-{stage} --model {spec.name}"), nl=False)
        return
    if given["output"] is None:
        raise UsageError("no `--output` given", f"see `srcli train-{stage} --help`")
    _refuse_without_effect(spec, stage, given, recipe)
    config = _config(spec, stage, given, recipe)
    if given["preview"] < 0:
        raise UsageError(f"`--preview {given['preview']}` is negative", f"see `srcli train-{stage} --help`")
    if given["preview"]:
        from srcli.training.preview import write_preview

        log.info("wrote `%s`", write_preview(config, given["preview"]))
        return
    _train(config, spec)


def _refuse_foreign(spec: ModelSpec, stage: str, given: Mapping[str, Any]) -> None:
    """Raises: UsageError: options that other families' stages of that name have."""
    declared = spec.declared.stages[stage]
    known = {option.name for option in declared.options} | set(declared.needs) | ({"captions"} if declared.captions else set())
    foreign = [name for name in (*given["own"], *given["adapters"]) if name not in known]
    if foreign:
        options = ", ".join(f"`--{name.replace('_', '-')}`" for name in foreign)
        own = ", ".join(f"`--{name.replace('_', '-')}`" for name in sorted(known)) or "none"
        raise UsageError(f"the training of `{spec.name}` ({spec.declared.title}) has no {options}", f"its own options: {own}")


def _recipe(spec: ModelSpec, stage: str, given: Mapping[str, Any]) -> Recipe:
    from srcli.config.recipe_file import build_recipe, read_recipe_file

    layers = spec.recipe_layers(stage)
    if given["base"] is not None:  # which layers there are is a thing of the row's own base
        layers = [{key: value for key, value in layer.items() if key != "targets"} for layer in layers]
    if given["recipe"] is not None:
        layers.append(read_recipe_file(given["recipe"]))
    return build_recipe(spec.family, stage, [*layers, *_option_layers(stage, given)])


def _option_layers(stage: str, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the options say of the recipe."""
    from srcli.config.recipe import Losses, Recipe

    weights = {each.name: given[each.name] for each in fields(Losses)}
    chosen = {each.name: given.get(each.name) for each in fields(Recipe) if each.name not in weights}
    layers: list[dict[str, Any]] = [{key: value for key, value in chosen.items() if value is not None}]
    layers.append({"losses": {key: value for key, value in weights.items() if value is not None}})
    for name, option in stage_options(stage).items():
        if name in given["own"] and option.key and not option.of_row:
            head, _, last = option.key.rpartition(".")
            value = {last: given["own"][name]}
            layers.append({head: value} if head else value)
    return layers


def _refuse_without_effect(spec: ModelSpec, stage: str, given: Mapping[str, Any], recipe: Recipe) -> None:
    """Raises: UsageError: options are given that belong to a loss whose weight is 0."""

    def idle(loss: str) -> bool:
        return bool(loss) and not getattr(recipe.losses, loss)

    options = (option for name, option in stage_options(stage).items() if name in given["own"])
    found = [(option.name, option.only_with) for option in options if idle(option.only_with)]
    if found:
        names, loss = ", ".join(f"`--{name.replace('_', '-')}`" for name, _ in found), found[0][1]
        message = f"with a weight of 0, the loss `{loss}` leaves nothing to do for {names}"
        raise UsageError(message, f"give it a weight, as `--{loss} 1`, or leave these options out")


def _config(spec: ModelSpec, stage: str, given: Mapping[str, Any], recipe: Recipe) -> TrainConfig:
    from srcli.config.training import TrainConfig
    from srcli.opening import complete

    options = stage_options(stage)
    told = {options[name].key: value for name, value in given["own"].items() if options[name].of_row}
    kept = ("output", "model", "adapters", "seed", "val", "val_images", "val_every", "workers", "device", "dtype")
    more = ("gradient_checkpointing", "decode_chunk", "log_every", "save_every", "keep", "resume", "start_from")
    return TrainConfig(
        family=spec.family,
        stage=stage,
        data=tuple(given["data"] or ()),
        recipe=recipe,
        told={**spec.own, **complete(spec, {}), **told},
        base_name=next(iter(spec.base.names), ""),
        scale=spec.native_scale,
        captions=given["own"].get("captions", ""),
        licence=given["licence"] or ("" if spec.packaged else spec.licence),
        **{name: given[name] for name in (*kept, *more)},
    )


def _train(config: TrainConfig, spec: ModelSpec) -> None:
    from srcli.store.weights import base_place

    base = base_place(spec) if spec.base.names else None
    from srcli.training.checkpoint import LongerError
    from srcli.training.loop import STOPPED_BY_USER, train
    from srcli.training.output import begin_output

    begin_output(config)
    try:
        outcome = train(config, base)
    except LongerError as fault:
        command = _further_command(config.output, fault.folder, fault.steps)
        raise UsageError(fault.message, f"train its adapter further, into another folder: `{command}`") from fault
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


def _further_command(output: Path, adapter: Path, steps: int) -> str:
    """This command, to train on from an adapter into a folder beside the output."""
    place = output.resolve() if output.name in ("", "..") else output
    names = (place.with_name(f"{place.name}-{number}") for number in itertools.count(2))
    changed = {"--output": next(name for name in names if not name.exists()), "--start-from": adapter, "--steps": steps}
    words = iter(sys.argv[1:])
    kept = list[str]()
    for word in words:
        name = "--output" if word.startswith("-o") else word.partition("=")[0]
        if name in changed:
            if word in ("-o", name):
                next(words)
        elif word != "--resume":
            kept.append(word)
    return shlex.join(["srcli", *kept, *(str(part) for option in changed.items() for part in option)])


def _tell_result(config: TrainConfig, spec: ModelSpec, folder: Path) -> None:
    """The adapter's place, a row for it, and how to use it."""
    from srcli.config.recipe_file import build_recipe, recipe_differences
    from srcli.rows.base import ROW_NAME
    from srcli.rows.user_rows import add_user_row
    from srcli.store.adapter_files import ADAPTER_FILE, find_adapter, row_of_run

    needed = {name: find_adapter(path, name) for name, path in config.adapters.items()}
    recipe = recipe_differences(config.recipe, build_recipe(config.family, config.stage, []))
    row = row_of_run(spec, config.stage, {**needed, config.stage: folder / ADAPTER_FILE}, config.output, recipe, config.licence)
    name = config.output.resolve().name
    row_file = config.output / "models.toml"
    add_user_row(name if ROW_NAME.fullmatch(name) else "trained", row, row_file)
    log.info("saved `%s`, and a row for it in `%s`", folder, row_file)
    made = {*needed, config.stage}
    if any(slot.required and slot.name not in made for slot in spec.declared.adapters):  # it is a part of a model
        words = f"{shlex.quote(config.model)} --{config.stage} {shlex.quote(str(config.output))}"
    else:
        words = shlex.quote(str(config.output))
    log.info("use it: `srcli upscale PHOTOS -o OUT --model %s`", words)
