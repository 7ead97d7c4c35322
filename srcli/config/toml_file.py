"""TOML files of users: read whole, or refused with the reason."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

_DEEPEST = 20
"""Tables and lists within each other: far more than a row or recipe has, far fewer than Python can follow."""
_TOO_LARGE = 2**63
_LONG_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]+[ \t]*\.[ \t]*){200}""")
"""Part of a dotted key for which the parser would need minutes."""


class TomlError(ValueError):
    """A file that is not read, with the reason in words that follow its name and a colon."""


def read_toml(file: Path) -> dict[str, Any]:
    """The content of a file.

    Raises:
        TomlError: it cannot be read, is no TOML, or nested deeper than anything that is meant.
    """
    try:
        text = read_text(file)
        if _LONG_KEY.search(text):
            raise RecursionError
        content: dict[str, Any] = tomllib.loads(text)
        _check_reach(content)
    except OSError as fault:
        raise TomlError(fault.strerror or str(fault)) from fault
    except UnicodeDecodeError as fault:
        raise TomlError("not UTF-8 text") from fault
    except tomllib.TOMLDecodeError as fault:
        raise TomlError(f"not valid TOML: {fault}") from fault
    except ValueError as fault:  # of Python, at thousands of digits
        raise TomlError("not valid TOML: a number needs more than 64 bits") from fault
    except RecursionError as fault:
        raise TomlError("its tables and lists are nested too deep") from fault
    return content


def read_text(file: Path) -> str:
    """A file's text, UTF-8, without the byte-order mark that some editors of Windows put before it."""
    return file.read_bytes().decode("utf-8-sig")


def _check_reach(content: Any) -> None:
    """Raises: ValueError: a number needs more than 64 bits. RecursionError: nested deeper than any row."""
    level = [content]
    for _ in range(_DEEPEST):
        if any(isinstance(part, int) and abs(part) >= _TOO_LARGE for part in level):
            raise ValueError
        parts = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list))]
        level = [inner for part in parts for inner in part]
    if level:
        raise RecursionError
