"""Memory that threads share."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Budget:
    """Counts the bytes that are held, and lets one thread wait for others to give some back.

    Args:
        limit: bytes; what is larger than that is let in alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = 0
        self._changed = threading.Condition()

    @property
    def held(self) -> int:
        """Bytes taken and not given back."""
        return self._held

    def fits(self, cost: int) -> bool:
        """Whether `cost` more bytes may be taken now."""
        return not self._held or self._held + cost <= self.limit

    def take(self, cost: int) -> None:
        """Count `cost` more bytes, whether they fit or not."""
        with self._changed:
            self._held += cost

    def give(self, cost: int) -> None:
        """Give bytes back, and wake who waits."""
        with self._changed:
            self._held -= cost
            self._changed.notify_all()

    def wait_until(self, true: Callable[[], bool]) -> None:
        """Sleep until a condition holds; it is looked at whenever bytes are given back."""
        with self._changed:
            self._changed.wait_for(true)
