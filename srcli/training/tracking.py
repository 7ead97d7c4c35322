"""What a run tells while it goes: a bar or lines, `metrics.jsonl`, TensorBoard."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from srcli.console import LINE_EVERY_S, rough_duration
from srcli.disk import write_whole

log = logging.getLogger("srcli")

METRICS_FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class Tracker:
    """Writes each record to `output/metrics.jsonl`, a JSON object a line, and to `output/tensorboard`.

    Args:
        output: of the run.
        step: where the run goes on; later records of an earlier attempt are dropped.
        enabled: False writes nothing (all processes but the first).
    """

    def __init__(self, output: Path, step: int, *, enabled: bool) -> None:
        self._file, self._board = None, None
        if not enabled:
            return
        path = output / METRICS_FILE
        write_whole(path, "".join(_records_until(path, step) if step else []).encode())
        self._file = path.open("a", encoding="utf-8")
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(output / TENSORBOARD), purge_step=step + 1 if step else None)

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Note `values` after `step` steps; `kind` is `train` or `val`."""
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def picture(self, step: int, name: str, levels: Any) -> None:
        """A picture (H, W, 3), uint8, for TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, levels, step, dataformats="HWC")

    def close(self) -> None:
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def _records_until(path: Path, step: int) -> list[str]:
    """Lines of an earlier attempt up to `step`; a line that a kill cut short is dropped."""
    kept = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and record.get("step", 0) <= step:
            kept.append(line)
    return kept


class Progress:
    """A bar for people, lines for log files, one a minute at least; nothing from other processes than the main one.

    Args:
        steps: of the whole run.
        step: how many are done already.
        every: steps between lines, unless a minute is over before.
        shown: False keeps silent.
        clock: seconds of a clock that only goes forward.
    """

    def __init__(self, steps: int, step: int, every: int, *, shown: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._every, self._clock = steps, every, clock
        self._first, self._start = step, clock()
        self._told = self._start
        on_screen = sys.stderr.isatty() and log.isEnabledFor(logging.INFO)
        self._lines = shown and not on_screen
        self._bar = tqdm(total=steps, initial=step, unit="step", disable=not (shown and on_screen), dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def update(self, step: int, losses: Mapping[str, float]) -> None:
        """After `step` steps; `losses` are means over the last steps."""
        words = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        self._bar.set_postfix_str(words, refresh=False)
        self._bar.update()
        now = self._clock()
        if self._lines and (step % self._every == 0 or step == self._steps or now - self._told >= LINE_EVERY_S):
            self._told = now
            pace = (now - self._start) / (step - self._first)
            left = f", about {rough_duration(pace * (self._steps - step))} left" if step < self._steps else ""
            log.info("step %d of %d: %s; %.2f s a step%s", step, self._steps, words, pace, left)


class Means:
    """Means of named values since the last `take`."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def now(self) -> dict[str, float]:
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def take(self) -> dict[str, float]:
        """The means, and start anew."""
        means = self.now()
        self._sums.clear()
        self._counts.clear()
        return means
