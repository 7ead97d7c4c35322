"""`srcli models remove`."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from srcli.cli.options import ModelsFile
from srcli.errors import ModelError, UsageError
from srcli.rows.imported import imported_folder
from srcli.rows.lookup import find_model
from srcli.rows.spec import ModelSpec, load_registry, packaged_models_file, user_rows_folder

_LOGGER = logging.getLogger("srcli")


def remove_model(
    name: Annotated[str, typer.Argument(help="A model that was imported.", metavar="NAME", show_default=False)],
    models_file: ModelsFile = None,
) -> None:
    """Remove an imported model: its adapters in your data folder, and its row.

    Asks nothing. A base that was downloaded stays in the hub's cache, where
    other models and programs may use it. A row that you wrote yourself is
    yours to delete.

    Example: srcli models remove my-model
    """
    spec = find_model(name, models_file)
    folder = imported_folder(spec.name)
    of_row_below = any(adapter.imported_from for adapter in spec.adapters.values())  # which that of `models tune` is laid over
    if spec.origin.parent != user_rows_folder():
        raise _refusal(spec, folder)
    try:
        if folder.exists() and not of_row_below:
            size = decimal(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
            shutil.rmtree(folder)
            _LOGGER.info("removed the adapters in `%s`, %s", folder, size)
        spec.origin.unlink()
    except OSError as fault:
        message = f"cannot remove `{fault.filename or folder}`: {fault.strerror or fault}"
        raise ModelError(message, "correct that, and repeat the command") from fault
    _LOGGER.info("removed the row of model `%s`, `%s`", spec.name, spec.origin)
    if spec.base.repo is not None:
        _LOGGER.info("its base `%s` stays in the hub's cache, if it is there", spec.base.repo)
    if below := load_registry(models_file).get(spec.name):
        _LOGGER.info("`%s` is again the model in `%s`", spec.name, below.origin)


def _refusal(spec: ModelSpec, folder: Path) -> UsageError:
    """Why a model is not srcli's to remove, and what the user can do."""
    if spec.origin == packaged_models_file():
        message = f"model `{spec.name}` ships with srcli, and its row stays"
        hints = [] if folder.exists() else ["nothing of it was imported"]
    else:
        message = f"the row of model `{spec.name}` stands among others, and srcli does not remove it"
        hints = [f"delete the row by hand in `{spec.origin}`"]
    if folder.exists():
        hints.append(f"delete the folder of its imported adapters, `{folder}`")
    return UsageError(message, ", and ".join(hints))
