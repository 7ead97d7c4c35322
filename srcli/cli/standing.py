"""What of the results that are there is kept, and whether it is of the settings that are asked for now."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from srcli.images.files import EXISTS, OTHERWISE, UNKNOWN, Job
from srcli.shards.ledger import Ledger


@dataclass
class Standing:
    """Results that are there."""

    reasons: list[str]
    """One of `EXISTS`, `OTHERWISE`, `UNKNOWN` and `OUTDATED` for each job that has a result; empty for the others."""
    outdated: int = 0
    """How many have photos, or maps of these, that are newer."""
    makers: Counter[str] = field(default_factory=Counter)
    """Digest of other settings -> how many results they have made."""

    @property
    def kept(self) -> int:
        """How many there are."""
        return len(self.reasons) - self.reasons.count("")

    def unchanged(self) -> Standing:
        """Only what is known to be what the command would make."""
        return Standing([reason if reason == EXISTS else "" for reason in self.reasons])


def standing_of(jobs: Sequence[Job], ledger: Ledger | None) -> Standing:
    """Look for the jobs' results, and where these come from; without a ledger that is not known of any."""
    standing = Standing([])
    sizes: dict[str, int] = {}
    outdated: list[bool] = []
    for job in jobs:
        size, time = _size_and_time(job.target)
        outdated.append(bool(size) and _newest(job) > time)
        standing.reasons.append(EXISTS if size else "")
        if size:
            sizes[_path(job, ledger)] = size
    standing.outdated = sum(outdated)
    makers = {} if ledger is None else ledger.makers(sizes)
    for index, job in enumerate(jobs if sizes else ()):
        if standing.reasons[index]:
            maker = makers.get(_path(job, ledger))
            reason = UNKNOWN if ledger is None else ledger.standing(maker, outdated=outdated[index])
            standing.reasons[index] = reason
            standing.makers += Counter([maker] if maker and reason == OTHERWISE else [])
    return standing


def _path(job: Job, ledger: Ledger | None) -> str:
    """Of a result, as ledgers have it."""
    return "" if ledger is None else job.target.relative_to(ledger.output).as_posix()


def _size_and_time(path: Path) -> tuple[int, float]:
    """Of a file; zeros where there is none."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0.0
    return (state.st_size, state.st_mtime) if stat.S_ISREG(state.st_mode) else (0, 0.0)


def _newest(job: Job) -> float:
    """When the photo or its map was last changed; whoever opens what is missing tells so."""
    times = [0.0]
    for path in filter(None, (job.source, job.map)):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times)
