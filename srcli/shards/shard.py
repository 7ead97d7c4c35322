"""Which shard a file belongs to: decided by its path alone, so that no run has to ask another."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from srcli.errors import UsageError

AUTO = "auto"
COUNT_VARIABLE = "SRCLI_SHARDS"
"""How many shards there are, for schedulers that number their tasks and do not say how many these are."""
_FORM = re.compile(r"(\d{1,9})/(\d{1,9})")


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of the inputs."""

    index: int
    """From 1 to `count`."""
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, path: str) -> bool:
        """Whether the file belongs to it, by its path below the searched folder, with `/`.

        Neither the order of a listing nor other files matter.
        """
        return Shard.of(path, self.count) == self

    @classmethod
    def of(cls, path: str, count: int) -> Shard:
        """The one of `count` shards that has the file."""
        digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return cls(int.from_bytes(digest, "big") % count + 1, count)


WHOLE = Shard(1, 1)


def read_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """What `--shard` means: `3/40`, or `auto` for what a scheduler says.

    Args:
        text: as typed.
        environment: of the process.

    Raises:
        UsageError: it is neither, or no scheduler says anything, or what it says makes no sense.
    """
    if text == AUTO:
        return _of_scheduler(environment)
    found = _FORM.fullmatch(text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"`--shard {text}` is no shard", "write the third of 40 as `3/40`, or `auto` in a job of a scheduler")
    return Shard(int(found[1]), int(found[2]))


def _of_scheduler(environment: Mapping[str, str]) -> Shard:
    """Array tasks and tasks of a step of Slurm (both together too), nodes and pool jobs of SkyPilot, pods of Kubernetes."""
    numbers = _Numbers(environment)
    if "SLURM_ARRAY_TASK_ID" in environment or "SLURM_STEP_ID" in environment:
        place, count = _of_slurm(numbers)
    elif "SKYPILOT_JOB_RANK" in environment:
        place, count = numbers.of("SKYPILOT_JOB_RANK"), numbers.of("SKYPILOT_NUM_JOBS")
    elif "SKYPILOT_NODE_RANK" in environment:
        place, count = numbers.of("SKYPILOT_NODE_RANK"), numbers.of("SKYPILOT_NUM_NODES")
    elif "JOB_COMPLETION_INDEX" in environment:
        place, count = numbers.of("JOB_COMPLETION_INDEX"), numbers.of(COUNT_VARIABLE)
    else:
        hint = "write it out, as `--shard 3/40`; Slurm's, SkyPilot's and Kubernetes' variables are known"
        raise UsageError("`--shard auto` finds no scheduler's variables", hint)
    if not 0 <= place < count:
        message = f"`--shard auto` is told of task {place}, counted from 0, of {count}"
        raise UsageError(message, f"number the tasks without gaps, set `{COUNT_VARIABLE}`, or write it out, as `--shard 3/40`")
    return Shard(place + 1, count)


def _of_slurm(numbers: _Numbers) -> tuple[int, int]:
    place, count = 0, 1
    if "SLURM_ARRAY_TASK_ID" in numbers.environment:
        place, count = _of_array(numbers)
    if "SLURM_STEP_ID" in numbers.environment and place >= 0:  # without it the batch script asks, which is one process
        tasks = numbers.of("SLURM_STEP_NUM_TASKS", numbers.of("SLURM_NTASKS", 1))
        place, count = place * tasks + numbers.of("SLURM_PROCID", 0), count * tasks
    return place, count


def _of_array(numbers: _Numbers) -> tuple[int, int]:
    """An array that is submitted again in part tells of that part alone: then the whole's count is to be set."""
    task = numbers.of("SLURM_ARRAY_TASK_ID")
    if COUNT_VARIABLE in numbers.environment:
        return task, numbers.of(COUNT_VARIABLE)
    place, gap = divmod(task - numbers.of("SLURM_ARRAY_TASK_MIN", 0), numbers.of("SLURM_ARRAY_TASK_STEP", 1) or 1)
    return (-1 if gap else place), numbers.of("SLURM_ARRAY_TASK_COUNT")


@dataclass(frozen=True)
class _Numbers:
    environment: Mapping[str, str]

    def of(self, name: str, default: int | None = None) -> int:
        """Raises: UsageError: the variable is missing and has no default, or is no number."""
        text = self.environment.get(name, "" if default is None else str(default))
        if not text.isdecimal():
            what = f"is `{text}`, which is no number" if text else "is not set"
            raise UsageError(f"`--shard auto` needs the variable `{name}`, which {what}", "set it, or write `--shard 3/40`")
        return int(text)
