"""Rows that srcli writes into the user's own `models.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srcli.disk import write_whole
from srcli.errors import ModelError
from srcli.rows.spec import raise_faults, read_row, specs_of, user_models_file
from srcli.rows.toml import parse, parsed_or_none, read_text, row_as_toml, with_row


def add_user_row(name: str, row: Mapping[str, Any], file: Path | None = None) -> Path:
    """Write `[models.NAME]` into the user's models.toml, in place of an earlier row of that name.

    Every other row and its comments stay as they are, and the file is replaced in one step.

    Args:
        name: the row's name, of letters, digits, `-` and `_`.
        row: the row's keys as TOML would give them: text, numbers, lists of text and tables.
        file: another file than the user's own; created where it does not exist.

    Returns:
        The file written.

    Raises:
        ModelError: the row or the file has faults, or the file cannot be written; the file is as it was.
    """
    file = file or user_models_file()
    read_row(name, row, file)
    faults: list[str] = []
    old = parse(file, faults) if file.exists() else {}
    specs_of(old, file, faults)
    raise_faults(faults, f"cannot add model `{name}` to `{file}`")
    try:
        new_row = row_as_toml(name, row)
        new_text = with_row(read_text(file) if file.exists() else "", name, new_row)
        wanted = {**old.get("models", {}), **(parsed_or_none(new_row) or {})["models"]}
        if parsed_or_none(new_text) != {**old, "models": wanted}:
            raise ModelError(
                f"cannot replace the row of model `{name}` in `{file}`: it is not written as a `[models.{name}]` table",
                "delete that row by hand and try again",
            )
        write_whole(file.resolve(), new_text.encode())
    except UnicodeEncodeError as fault:
        raise ModelError(f"cannot write the row of model `{name}`: {fault.object!r} is not UTF-8 text") from fault
    except OSError as fault:
        raise ModelError(f"cannot write `{file}`: {fault.strerror}", "check the rights of its folder") from fault
    return file
