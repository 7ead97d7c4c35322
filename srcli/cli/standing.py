"""What of the results that are there is kept, and whether it is of the settings that are asked for now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from srcli.images.files import EXISTS, OTHERWISE, UNKNOWN, Job
from srcli.shards.ledger import Ledger


@dataclass
class Standing:
    """Results that are there."""

    reasons: dict[Job, str] = field(default_factory=dict)
    """One of `EXISTS`, `OTHERWISE`, `UNKNOWN` and `OUTDATED` for each job that has a result."""
    outdated: set[Job] = field(default_factory=set)
    """Those whose photos, or the maps of these, are newer."""
    makers: Counter[str] = field(default_factory=Counter)
    """Digest of other settings -> how many results they have made."""

    @property
    def changed(self) -> list[Job]:
        """Those that are not known to be what the command would make."""
        return [job for job, reason in self.reasons.items() if reason != EXISTS]

    def without(self, jobs: Iterable[Job]) -> Standing:
        """The others; the makers are not counted."""
        left = set(jobs)
        reasons = {job: reason for job, reason in self.reasons.items() if job not in left}
        return Standing(reasons, self.outdated - left)


def standing_of(jobs: Sequence[Job], ledger: Ledger | None) -> Standing:
    """Look for the jobs' results, and where these come from; without a ledger that is not known of any."""
    sizes = {job: state for job in jobs if (state := _size_and_time(job.target)) and state[0]}
    paths = {} if ledger is None else {job: job.target.relative_to(ledger.output).as_posix() for job in sizes}
    makers = {} if ledger is None else ledger.makers({paths[job]: size for job, (size, _) in sizes.items()})
    standing = Standing(outdated={job for job, (_, time) in sizes.items() if _newest(job) > time})
    for job in sizes:
        maker = makers.get(paths.get(job, ""))
        reason = UNKNOWN if ledger is None else ledger.standing(maker, outdated=job in standing.outdated)
        standing.reasons[job] = reason
        standing.makers += Counter([maker] if maker and reason == OTHERWISE else [])
    return standing


def _size_and_time(path: Path) -> tuple[int, float] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return (state.st_size, state.st_mtime) if path.is_file() else None


def _newest(job: Job) -> float:
    """When the photo or its map was last changed; whoever opens what is missing tells so."""
    times = [0.0]
    for path in filter(None, (job.source, job.map)):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times)
