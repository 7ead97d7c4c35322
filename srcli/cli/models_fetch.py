"""`srcli models fetch`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from srcli.cli.options import ModelsFile
from srcli.cli.stopping import exit_code
from srcli.console import console, counted, tell
from srcli.errors import ModelError, joined_faults
from srcli.rows.base import REPO_NAME, BaseSource, base_of, is_folder
from srcli.rows.lookup import find_model
from srcli.rows.spec import ModelSpec

if TYPE_CHECKING:
    from srcli.store.hub import HubFile, Plan

_LOGGER = logging.getLogger("srcli")
_METRIC_NETWORK, _FEATURE_NETWORK = "lpips-vgg", "dino-vitb16"  # as in srcli.networks, which imports torch


def fetch_model(
    name: Annotated[
        str,
        typer.Argument(
            help="A name from `srcli models list`, owner/name on the hub, `lpips-vgg` or `dino-vitb16`.",
            metavar="NAME",
            show_default=False,
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell sizes, licences and free space, and download nothing.")
    ] = False,
    models_file: ModelsFile = None,
) -> None:
    """Download a model's base, check all of its files, and print the base's folder.

    Only what is needed is downloaded: UNet, autoencoder, noise schedule and
    text encoder, in half precision where the repository has it. Mirrors are
    tried in turn. Every file is checked against the hub's sums and the
    row's. Repeat the command to go on with an interrupted download. A base
    that is in the hub's cache (`HF_HOME`) is not downloaded again.

    `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and proxy variables hold.

    Two are no models to upscale with, but networks to train by. `lpips-vgg` is
    the VGG16 of the perceptual loss and metric LPIPS and of the feature network
    `vgg16`, 528 MiB, licence BSD-3-Clause (torchvision). It goes into
    torch.hub's cache (`TORCH_HOME`), and the file's path is printed. A mirror
    of the file can be named in the variable `SRCLI_LPIPS_URL`. `dino-vitb16` is
    DINO's feature network, 343 MB, licence Apache-2.0, of
    `facebook/dino-vitb16` on the hub.

    Example: srcli models fetch pisa-sr
    """
    if name == _METRIC_NETWORK:
        _fetch_metric_network(dry_run=dry_run)
        return
    if name == _FEATURE_NETWORK:
        _fetch_feature_network(dry_run=dry_run)
        return
    if _is_repository(name):
        _fetch(base_of(name), None, name, dry_run=dry_run)
        return
    spec = find_model(name, models_file)
    for each in _with_files(spec):
        _fetch(each.base, each, each.name, dry_run=dry_run)
        _fetch_checkpoint(each, dry_run=dry_run)
    if not dry_run:
        tell_next_step(find_model(name, models_file))  # anew, as it may have been imported


def _with_files(spec: ModelSpec) -> list[ModelSpec]:
    """The model, or those that it is made of."""
    return [each for parent in spec.parents.values() for each in _with_files(parent)] or [spec]


def _fetch(base: BaseSource, spec: ModelSpec | None, name: str, *, dry_run: bool) -> None:
    folder = _fetch_base(base, spec, name, dry_run=dry_run)
    if folder is None or dry_run:
        return
    if spec is not None:
        _check_adapters(spec)
    _keep_prompts(folder, spec)
    typer.echo(folder)


def tell_next_step(spec: ModelSpec) -> None:
    """Say what is still to be done before a model can be used, or how to use it."""
    from srcli.store.weights import models_file_option, steps_left

    if left := steps_left(spec):
        _LOGGER.info("%s", left)
        return
    _LOGGER.info("model `%s` is ready", spec.name)
    _LOGGER.info("use it: `srcli upscale PHOTOS -o OUT --model %s%s`", spec.name, models_file_option(spec))


def _is_repository(name: str) -> bool:
    """Whether a name is no row and no folder with one, but a repository."""
    return REPO_NAME.fullmatch(name) is not None and not is_folder(Path(name))


def _fetch_metric_network(*, dry_run: bool) -> None:
    from srcli.networks.perceptual import fetch_vgg_weights, vgg_weights_path

    if dry_run:
        tell(f"528 MiB, licence BSD-3-Clause (torchvision), to `{vgg_weights_path()}`")
        return
    typer.echo(fetch_vgg_weights())


def _fetch_feature_network(*, dry_run: bool) -> None:
    from srcli.networks.dino import SOURCE

    try:
        _fetch(SOURCE, None, _FEATURE_NETWORK, dry_run=dry_run)
    except ModelError as fault:
        if not fault.message.startswith("cannot fetch"):  # of the disk
            raise
        more = (
            "or copy the hub's cache (`HF_HOME`) from a machine that has it; or train by `efficientnet-lite0`, which needs no hub"
        )
        raise ModelError(fault.message, f"try again, or name a mirror of the hub in `HF_ENDPOINT`; {more}") from fault


def _fetch_checkpoint(spec: ModelSpec, *, dry_run: bool) -> None:
    """Fetch and import the files that adapters are made of, where the row says where they are."""
    from srcli.cli.models_import import import_into_row
    from srcli.store.weights import fetchable_sources, import_command

    sources = fetchable_sources(spec)
    try:
        files = [_fetch_repo(source, f"`{source.file}`", f"`{source.file}` of", dry_run=dry_run) for source in sources]
    except ModelError as fault:
        by_hand = f"or get the files elsewhere, and import them: `{import_command(spec)}`"
        raise ModelError(fault.message, f"{fault.hint}; {by_hand}") from fault
    if sources and not dry_run:
        import_into_row(spec, [file for file in files if file is not None])


def _fetch_base(base: BaseSource, spec: ModelSpec | None, name: str, *, dry_run: bool) -> Path | None:
    from srcli.store.weights import base_place

    if spec is not None:
        _LOGGER.info("licence of model `%s`: %s", spec.name, spec.licence)
        if not base.names:
            raise ModelError(f"model `{spec.name}` has no base to fetch", "use it as it is")
        if base.repo is None:
            return base_place(spec)
    return _fetch_repo(base, f"the base of {'' if spec is None else 'model '}`{name}`", "base", dry_run=dry_run)


def _fetch_repo(base: BaseSource, what: str, shown: str, *, dry_run: bool) -> Path | None:
    """The folder, or the one file; None from a dry run where something is missing."""
    from srcli.store.hub import fetch_base

    progress = _DownloadProgress(shown, tell if dry_run else _LOGGER.info)
    try:
        with progress.bar:
            folder = fetch_base(base, what, progress, dry_run=dry_run)
    except KeyboardInterrupt:
        _LOGGER.warning("stopped; what has come is kept, and the same command goes on from there")
        raise typer.Exit(exit_code()) from None
    return folder if folder is None or base.file is None else folder / base.file


def _check_adapters(spec: ModelSpec) -> None:
    """Check the adapters that are there; those to be imported may be missing."""
    from srcli.store.weights import adapter_path, waiting_adapters

    faults: list[ModelError] = []
    waiting = waiting_adapters(spec)
    for adapter in spec.adapters:
        try:
            if adapter not in waiting:
                adapter_path(spec, adapter)
        except ModelError as fault:
            faults.append(fault)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        messages = [fault.message.replace("\n", "\n  ") for fault in faults]
        raise ModelError(joined_faults(f"model `{spec.name}` cannot be used", messages), faults[0].hint)


def _keep_prompts(folder: Path, spec: ModelSpec | None) -> None:
    """Have the embeddings of the row's prompts computed now, so that upscaling needs no text encoder."""
    if not (folder / "text_encoder" / "config.json").is_file():
        return
    from srcli.networks.backbone import keep_prompts

    prompts = ["", *spec.prompts] if spec is not None else [""]
    keep_prompts(folder, prompts)


class _DownloadProgress:
    """The plan as lines; then a bar on a terminal, and in a log a line for each file and each tenth."""

    def __init__(self, what: str, tell: Callable[[str], None]) -> None:
        self._what, self._tell = what, tell
        columns = (BarColumn(bar_width=14), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True))
        shown = console.is_terminal and _LOGGER.isEnabledFor(logging.INFO)
        file = TextColumn("{task.description}", markup=False)
        self.bar = Progress(*columns, file, console=console, transient=True, disable=not shown)
        self._task = self.bar.add_task("", total=None, visible=False)
        self._told = 0

    def plan(self, plan: Plan) -> None:
        licence = f", licence by its model card: {plan.licence}" if plan.licence else ""
        self._tell(f"{self._what} `{plan.repo}`, commit `{plan.folder.name[:12]}`{licence}")
        if not plan.missing:
            self._tell(f"all {decimal(plan.present_bytes)} are already here, nothing is to be downloaded")
            return
        least = "at least " if any(file.size_bytes is None for file in plan.missing) else ""
        here = plan.present_bytes + plan.partial_bytes
        to_come = f"{least}{decimal(plan.missing_bytes)} to download in {counted(len(plan.missing), 'file')}"
        self._tell(f"{to_come}, {decimal(here)} already here; {decimal(plan.free_bytes)} free in `{plan.cache}`")
        self._told = 0
        self.bar.reset(self._task, total=plan.missing_bytes or None, visible=True)

    def start(self, file: HubFile) -> None:
        self.bar.update(self._task, description=file.path)
        if self.bar.disable:
            _LOGGER.info("fetching `%s`%s", file.path, f", {decimal(file.size_bytes)}" if file.size_bytes is not None else "")

    def advance(self, size_bytes: int) -> None:
        self.bar.advance(self._task, size_bytes)
        (task,) = self.bar.tasks
        tenth = int(task.percentage) // 10
        if self.bar.disable and self._told < tenth < 10:
            self._told = tenth
            _LOGGER.info("%d %% of %s has come", tenth * 10, decimal(int(task.total or 0)))
