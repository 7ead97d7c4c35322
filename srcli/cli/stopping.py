"""SIGTERM (of `docker stop`, systemd, Slurm) and SIGHUP (of a closed terminal) end a command as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked = signal.SIGINT
"""What has asked for the end. Not kept in the exception: packages that wait in C raise one of their own in its place."""


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """Signals raise `KeyboardInterrupt` in the block, once: a second one ends the process at once.

    What is ignored from outside, as SIGHUP by `nohup`, stays ignored.
    """
    global _asked
    _asked = signal.SIGINT
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names]
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    asked = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}

    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        global _asked
        for each in asked:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() != owner:  # a forked process of some package, which knows nothing of us
            signal.raise_signal(number)
            return
        _asked = signal.Signals(number)
        raise KeyboardInterrupt

    for number in asked:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in asked.items():
            signal.signal(number, handler)


def exit_code() -> int:
    """What the process tells of its end: 128 and the signal's number, as shells have it."""
    return 128 + _asked


def word() -> str:
    """For people: `interrupted`, or `terminated`."""
    return "interrupted" if _asked == signal.SIGINT else "terminated"
