"""Names of rows and folders that differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterable


def distinct(names: Iterable[str]) -> list[str]:
    """The same names, with a number on those that an earlier one has already.

    >>> distinct(["a", "b", "a"])
    ['a', 'b', 'a-2']
    """
    found: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        found.append(next(each for each in itertools.chain([name], numbered) if each not in found))
    return found
