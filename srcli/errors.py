"""The errors that srcli raises on purpose.

Each carries what failed and, apart from it, what the user can do next. They are raised low, where the fault is seen, and
shown once, at the top (`srcli.cli.main`). Any other exception that reaches the top is a bug of ours.
"""

from __future__ import annotations

import re

# those of terminals, ends of lines, and marks that turn the direction of writing
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escaped(text: object) -> str:
    r"""A text in one line, as it is but for control characters, which are shown as `\n` or `\x1b`.

    Names of files may hold any, and could else forge messages, or do harm to a terminal.
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


class SrcliError(Exception):
    """Something that srcli cannot do, said for its user.

    Attributes:
        message: what failed, one sentence without a full stop, literal values in backticks.
        hint: the next action, or an empty string where there is none.
        exit_code: the process's exit status when this error ends the command.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message


class UsageError(SrcliError):
    """The command line or a configuration file asks for something that makes no sense."""

    exit_code = 2


class ImageError(SrcliError):
    """One image could not be read, restored or written; the others go on."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(escaped(message), escaped(hint))


class ModelError(SrcliError):
    """A model's row, files or weights are missing, damaged or do not fit together: the command cannot start."""

    exit_code = 2


class TrainingError(SrcliError):
    """A training run that had begun cannot go on."""


class OutOfMemoryError(SrcliError):
    """An image does not fit into memory even at the smallest tile and batch, or a training step at its settings."""


def says_no_memory(fault: BaseException) -> bool:
    """Whether an exception of Python or of a library says that the memory of the host ran out, or a limit of it."""
    words = ("can't allocate memory", "cannot allocate memory", "failed to map segment", "can't start new thread", "bad_alloc")
    kinds = (RuntimeError, OSError, ImportError)
    return isinstance(fault, MemoryError) or (isinstance(fault, kinds) and any(word in str(fault).lower() for word in words))


def joined_faults(title: str, faults: list[str], hint: str = "") -> str:
    """Several faults as one message: the title, then a line per fault."""
    return "\n".join([title, *(f"  - {escaped(fault)}" for fault in faults)]) + (f"\n{hint}" if hint else "")
