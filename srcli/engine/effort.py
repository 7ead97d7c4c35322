"""What a stream's work has cost."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Effort:
    """Counts and seconds; those of several streams can be added."""

    exact_tiles: int = 0
    """Done again in float32."""
    memory_retries: int = 0
    waiting_for_input: float = 0.0
    """Seconds of the model's thread, as are the next two."""
    model: float = 0.0
    waiting_for_output: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))
