"""How far the shards of an output folder are, from their ledgers and from what lies there; works while they are being written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srcli.errors import UsageError
from srcli.images.search import OWN_FOLDER
from srcli.shards.ledger import ledger_file, lines_of, shard_count
from srcli.shards.shard import Shard


@dataclass
class ShardStatus:
    """Of one shard, since its last run began."""

    shard: Shard
    begun: bool = False
    planned: int | None = None
    """Files; None where it is not known yet: they are still being listed, or that was broken off."""
    kept: int = 0
    """Results that were there when the run began."""
    made: int = 0
    """Results of the run that are there."""
    failed: list[dict[str, str]] = field(default_factory=list)
    """`input` and `reason` of each."""
    made_with: str = ""
    """Digest of the settings."""
    _seen: set[bytes] = field(default_factory=set, repr=False)

    @property
    def done(self) -> int:
        """Results that are there, as far as it is known."""
        return self.kept + self.made

    @property
    def missing(self) -> int:
        """How many are still to be done, or were broken off."""
        return max(0, (self.planned or 0) - self.done - len(self.failed))

    @property
    def complete(self) -> bool:
        """Whether all results are there."""
        return self.begun and self.planned is not None and self.done >= self.planned

    def note(self, result: str) -> None:
        """A result that is there as it was written; one that was begun twice is one."""
        key = hashlib.blake2b(result.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        self.made += key not in self._seen
        self._seen.add(key)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        counts = {"planned": self.planned, "done": self.done, "failed": self.failed, "missing": self.missing}
        return {"shard": str(self.shard), "begun": self.begun, **counts, "made_with": self.made_with}


def status_of(output: Path) -> list[ShardStatus]:
    """Each shard of the division that the last run worked by.

    Raises:
        UsageError: there are no ledgers.
        SrcliError: one cannot be read.
    """
    count = shard_count(output)
    if not count:
        raise no_ledger(output)

    def size_of(result: str) -> int | None:
        try:
            return (output / result).stat().st_size
        except OSError:
            return None

    shards = [Shard(index, count) for index in range(1, count + 1)]
    return [shard_status(shard, lines_of(ledger_file(output, shard)), size_of) for shard in shards]


def no_ledger(output: object) -> UsageError:
    """The error for a folder, or a store's prefix, to which no run has written."""
    message = f"`{output}` has no ledger (`{OWN_FOLDER}`) that would tell what is to be done there"
    return UsageError(message, "name the folder that `srcli upscale` was given as `--output`")


def shard_status(shard: Shard, lines: Iterable[dict[str, Any]], size_of: Callable[[str], int | None]) -> ShardStatus:
    """What the lines of a shard's ledger tell.

    Args:
        shard: which one.
        lines: in the order of writing.
        size_of: gives the bytes of a result that is there, by its path below the output.
    """
    status = ShardStatus(shard)
    for line in lines:
        if "settings" in line:
            status = ShardStatus(shard, begun=True, made_with=line["made_with"])
        if "planned" in line:
            status.planned, status.kept = line["planned"], line["kept"]
        elif "failed" in line:
            status.failed.append({"input": line["failed"], "reason": line["reason"]})
        elif "result" in line and size_of(line["result"]) == line["bytes"]:
            status.note(line["result"])
    return status
