"""Lines of CSV tables that every program splits alike, and whose texts no spreadsheet runs."""

from __future__ import annotations

import re
from collections.abc import Iterable

_FORMULA = re.compile(r"'*(\s*[=+\-@＝＋－＠]|[\t\r\n])")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|inf)")
_TO_QUOTE = re.compile(r'[",;\t\r\n]')


def csv_line(cells: Iterable[str]) -> str:
    r"""One line with its end, `\n`, of comma-separated cells.

    A text that a spreadsheet may take for a formula (OWASP, "CSV Injection") gets a `'` before it; numbers stay numbers. What
    holds a mark that ends cells or lines anywhere is quoted: Python's own writer leaves `\r` as it is, and `;` parts cells in
    half of the world's spreadsheets.

    >>> csv_line(["=1+1", "-0.5", "a, b", "a-b"])
    '\'=1+1,-0.5,"a, b",a-b\n'
    """
    return ",".join(map(_quoted, map(_guarded, cells))) + "\n"


def unguarded(cell: str) -> str:
    """The text that `csv_line` got, of a cell that was read back."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _guarded(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def _quoted(cell: str) -> str:
    escaped = cell.replace('"', '""')
    return f'"{escaped}"' if _TO_QUOTE.search(cell) else cell
