"""`srcli models import`."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from srcli.cli.models_fetch import tell_next_step
from srcli.cli.options import FILES, ModelsFile
from srcli.console import counted
from srcli.errors import ModelError, UsageError
from srcli.families import convert_checkpoint, families
from srcli.protocol.declarations import Import
from srcli.rows.base import ROW_NAME, BaseSource, base_of
from srcli.rows.imported import IMPORTED_FILE, imported_folder, record_sums
from srcli.rows.lookup import find_model
from srcli.rows.spec import ModelSpec, load_registry, read_row, user_rows_folder
from srcli.rows.user_rows import add_user_row

_LOGGER = logging.getLogger("srcli")


def import_help() -> str:
    """The command's help, with what the families declare that can be imported."""
    files = [" ".join(imports.files) for imports in importing().values()] or ["FILE"]
    return f"""Import a checkpoint of a method's authors.

    Its adapters are compared with the base's layers and written as safetensors
    into your data folder. Code that the checkpoint may hold is not run. Of the
    base small files are enough, and are fetched where they are missing: import
    and fetch may come in either order.

    With `--base` a new model is made: its row goes into a file of its own in
    the folder models.d beside your own models.toml, or into the file given as
    `--models-file`. `srcli models remove` undoes it.

    Example: srcli models import NAME {files[0]}
    """


def importing() -> dict[str, Import]:
    """The methods whose authors' checkpoints can be imported, and what they say of these."""
    return {name: each.imports for name, each in families().items() if each.imports}


def import_model(
    name: Annotated[
        str,
        typer.Argument(
            help="A model that waits for an import, or the name of a new one: letters, digits, - and _.",
            metavar="NAME",
            show_default=False,
        ),
    ],
    files: Annotated[
        list[Path],
        typer.Argument(help=" ".join(imports.about for imports in importing().values()), metavar="FILE...", show_default=False),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="For a new model, the base it was trained on: a folder in diffusers' layout, or owner/name on the hub.",
            metavar="DIR_OR_REPO",
            rich_help_panel=FILES,
            show_default=False,
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            help=f"For a new model, its method, where files' names do not tell it: {' or '.join(importing())}.",
            metavar="FAMILY",
            rich_help_panel=FILES,
            show_default=False,
            hidden=len(importing()) < 2,
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="Licence of the checkpoint, kept with it.", metavar="TEXT", rich_help_panel=FILES, show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model of that name.", rich_help_panel=FILES)] = False,
    models_file: ModelsFile = None,
) -> None:
    """See `import_help`."""
    if not ROW_NAME.fullmatch(name):
        raise UsageError(f"`{name}` cannot be a model's name", "use letters, digits, `-` and `_`")
    rows = models_file if models_file is not None and models_file.exists() else None  # a new row may make the file
    registry = load_registry(rows)
    known = registry.get(name)
    for file in files:
        if not file.is_file():
            raise UsageError(f"`{file}` is no file", "give the path of the checkpoint, which you get from its authors")
    if known is not None and _takes_import(known) and (base is None or _is_base_of(known, base)):
        if rows != models_file:
            raise UsageError(
                f"`{models_file}` is no file", f"correct `--models-file`, or leave it out: `{name}` is known without it"
            )
        if family not in (None, known.family):
            raise UsageError(f"model `{name}` is of the family `{known.family}`, not `{family}`", "leave `--family` out")
        import_into_row(known, files, licence, force=force)
    else:
        _check_place(name, known, force=force)
        method = _method(name, family, known, files)
        _import_as_new(name, method, files, _known_base(name, method, base, registry), licence, models_file)
        if known is not None:
            _LOGGER.info("it replaces the row in `%s`", known.origin)
    tell_next_step(find_model(name, models_file))


# Into a row that waits for it ----------------------------------------------------------------------------------------


def _takes_import(spec: ModelSpec) -> bool:
    return any(adapter.imported_from for adapter in spec.adapters.values())


def _is_base_of(spec: ModelSpec, base: str) -> bool:
    return base in (spec.base.repo, *spec.base.mirrors)


def import_into_row(spec: ModelSpec, files: Sequence[Path], licence: str | None = None, *, force: bool = False) -> None:
    """Import the adapters that a row waits for.

    Args:
        spec: the row.
        files: the checkpoint.
        licence: of the checkpoint; the row's if None.
        force: replace what was imported before.

    Raises:
        UsageError: they are there, or there are too many files.
        ModelError: the files are not what the row needs.
    """
    from srcli.store.weights import import_command, waiting_adapters

    folder = imported_folder(spec.name)
    if not force and not waiting_adapters(spec):
        raise UsageError(f"model `{spec.name}` has imported adapters, in `{folder}`", "`--force` replaces them")
    with _converted(spec, files, folder, licence or spec.licence) as sums:
        lacking = [
            f"`{adapter.name}`" for adapter in spec.adapters.values() if adapter.imported_from and adapter.name not in sums
        ]
        if lacking:
            told = " and ".join(_quoted(str(file)) for file in files)
            message = f"there is no adapter {', '.join(lacking)} in {told}, which model `{spec.name}` needs"
            raise ModelError(message, f"give all of the checkpoint at once: `{import_command(spec)}`")
    _LOGGER.info("imported the adapters of model `%s` into `%s`", spec.name, folder)


# As a new model ------------------------------------------------------------------------------------------------------


def _check_place(name: str, known: ModelSpec | None, *, force: bool) -> None:
    if force:
        return
    if known is not None:
        raise UsageError(
            f"model `{name}` exists, in `{known.origin}`", "take another name, or `--force` to have a new row replace that one"
        )
    folder = imported_folder(name)
    if folder.exists():
        raise UsageError(f"`{folder}` exists", "take another name, or `--force` to replace it")


def _method(name: str, given: str | None, known: ModelSpec | None, files: Sequence[Path]) -> str:
    """The family of a new row: as asked for, that of the row it replaces, or the only one that has files of these names."""
    choices = importing()
    if given is None and known is not None and known.family in choices:
        return known.family
    if given in choices:
        return given
    if given is not None:
        raise UsageError(f"`{given}` has no checkpoints to import", f"`--family` is {' or '.join(map(_quoted, choices))}")
    alike = [family for family, imports in choices.items() if all(file.name in imports.files for file in files)]
    if len(choices) == 1 or len(alike) == 1:
        return next(iter(alike or choices))
    raise UsageError(
        f"the method of the new model `{name}` is not known", f"give `--family` {' or '.join(map(_quoted, choices))}"
    )


def _known_base(name: str, family: str, base: str | None, registry: Mapping[str, ModelSpec]) -> str:
    if base is not None:
        return base
    others = [spec for spec in registry.values() if spec.family == family and _takes_import(spec) and spec.base.repo]
    example = f"--base {others[0].base.repo if others else 'owner/name'}"
    instead = f"; or import it as {' or '.join(_quoted(spec.name) for spec in others)}, whose base is known" if others else ""
    raise UsageError(f"the base of the new model `{name}` is not known", f"`{example}`, or a folder{instead}")


def _quoted(word: str) -> str:
    return f"`{word}`"


def _import_as_new(
    name: str, family: str, files: Sequence[Path], base: str, licence: str | None, models_file: Path | None
) -> None:
    row: dict[str, Any] = {
        "family": family,
        **importing()[family].row,
        "base": _base_row(base_of(base)),
        "adapters": {slot.name: {"import": files[0].name} for slot in families()[family].adapters if slot.required},
        "licence": licence or "unknown",
        "source": f"imported from {' and '.join(file.name for file in files)}",
    }
    spec = read_row(name, row, models_file or user_rows_folder() / f"{name}.toml")
    folder = imported_folder(name)
    with _converted(spec, files, folder, spec.licence) as sums:
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
def _converted(spec: ModelSpec, files: Sequence[Path], folder: Path, licence: str) -> Iterator[dict[str, str]]:
    """Convert the checkpoint into `folder`; whatever fails, then or in the `with` block, `folder` is as it was.

    Yields:
        The SHA-256 of the adapters' files by their names; the files are in place.
    """
    base_files = _base_files(spec, files)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{spec.name}-") as work:
            new, old = Path(work) / "new", Path(work) / "old"
            new.mkdir()
            sums = _convert(spec, files, base_files, new, licence)
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


def _convert(spec: ModelSpec, files: Sequence[Path], base_files: Sequence[Path], new: Path, licence: str) -> dict[str, str]:
    from srcli.store.weights import sha256_of

    base_name = spec.base.embedded or spec.base.repo or str(spec.base.path)
    adapters = convert_checkpoint(spec.family, files, base_files, new, base_name, licence)
    sums = {name: sha256_of(path) for name, path in adapters.items()}
    record_sums(new, {f"{name}/{IMPORTED_FILE}": digest for name, digest in sums.items()})
    return sums


def _base_files(spec: ModelSpec, files: Sequence[Path]) -> list[Path]:
    """The files of the base that tell its layers; they alone are fetched where the base is not there.

    Raises:
        UsageError: the checkpoint is of fewer files than these.
    """
    from srcli.store.hub import cached_base, fetch_config
    from srcli.store.weights import base_folder

    imports = spec.declared.imports
    assert imports is not None
    if len(files) > len(imports.files):
        told = f"a checkpoint of {spec.declared.title} is {counted(len(imports.files), 'file')}, and {len(files)} are given"
        raise UsageError(told, f"give {' and '.join(map(_quoted, imports.files))}")
    if spec.base.repo is None or cached_base(spec.base) is not None:
        return [base_folder(spec) / file for file in imports.base_files]
    return [fetch_config(spec.base, file, f"model `{spec.name}`") for file in imports.base_files]
