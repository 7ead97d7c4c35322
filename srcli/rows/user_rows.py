"""Rows that srcli writes: a file each in the user's `models.d`, or a place in a file that the user names."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srcli.config.toml_file import read_text
from srcli.disk import write_whole
from srcli.errors import ModelError
from srcli.rows.spec import raise_faults, read_row, specs_of, user_rows_folder
from srcli.rows.toml import parse


def add_user_row(name: str, row: Mapping[str, Any], file: Path | None = None) -> Path:
    """Write the row `[models.NAME]`, in place of an earlier one of that name in the same file.

    Args:
        name: the row's name, of letters, digits, `-` and `_`.
        row: the row's keys as TOML would give them: text, numbers, lists and tables.
        file: where it is to stand, among other rows, which stay as they are with their comments; made where it does not exist.
            None for a file of its own in the user's `models.d`.

    Returns:
        The file written.

    Raises:
        ModelError: the row or the file has faults, or the file cannot be written; the file is as it was.
    """
    own = user_rows_folder() / f"{name}.toml"
    read_row(name, row, file or own)
    try:
        text = _text_with_row(file, name, row) if file is not None and file.exists() else _text_of_row(name, row)
        write_whole((file or own).resolve(), text.encode())
    except UnicodeEncodeError as fault:
        raise ModelError(f"cannot write the row of model `{name}`: {fault.object!r} is not UTF-8 text") from fault
    except OSError as fault:
        raise ModelError(f"cannot write `{file or own}`: {fault.strerror}", "check the rights of its folder") from fault
    return file or own


def _text_of_row(name: str, row: Mapping[str, Any]) -> str:
    import tomlkit

    return tomlkit.dumps({"models": {name: row}})


def _text_with_row(file: Path, name: str, row: Mapping[str, Any]) -> str:
    """The file's text with the row in it: where it stood, or else at the end."""
    import tomlkit

    faults: list[str] = []
    old = parse(file, faults)
    specs_of(old, file, faults)
    raise_faults(faults, f"cannot add model `{name}` to `{file}`")
    text = read_text(file)
    document = tomlkit.parse(text.replace("\r\n", "\n"))
    models = document.setdefault("models", tomlkit.table(True))
    new = tomlkit.item(dict(row))
    for item in _next_rows_heading(models.get(name)):
        new.append(None, item)
    models[name] = new
    edited = document.as_string()
    if tomlkit.parse(edited).unwrap() != {**old, "models": {**old.get("models", {}), name: row}}:
        raise ModelError(
            f"cannot add model `{name}` to `{file}`: its rows are not written as tables",
            f"begin each row there with a line such as `[models.{name}]`",
        )
    return edited.replace("\n", "\r\n" if "\r\n" in text else "\n")


def _next_rows_heading(table: Any) -> list[Any]:
    """Blank lines and comments at a row's end, which tell of what comes after it."""
    from tomlkit.items import Comment, Table, Whitespace

    if not isinstance(table, Table):
        return []
    items = [item for _, item in table.value.body]
    if items and isinstance(items[-1], Table):
        return _next_rows_heading(items[-1])
    kept = list(itertools.takewhile(lambda item: isinstance(item, (Comment, Whitespace)), reversed(items)))
    return kept[::-1]
