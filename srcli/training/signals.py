"""Schedulers end a job with SIGTERM, terminals with SIGHUP, people with Ctrl-C: all ask, the loop stops between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

ASKING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
"""Signals that ask for the end; Windows has no SIGHUP."""


class StopSignals:
    """Context in which SIGTERM, SIGHUP and SIGINT set `asked`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self.interrupted = False
        """Whether it was SIGINT."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in ASKING:
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP is by `nohup`
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        self.interrupted = number == signal.SIGINT
