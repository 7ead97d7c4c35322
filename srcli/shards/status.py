"""How far the shards of an output folder are, from their ledgers and from what lies there; works while they are being written."""

from __future__ import annotations

import hashlib
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
    planned: int = 0
    done: int = 0
    """Results that are there, those of earlier runs included."""
    failed: list[dict[str, str]] = field(default_factory=list)
    """`input` and `reason` of each."""
    made_with: str = ""
    """Digest of the settings."""
    _seen: set[bytes] = field(default_factory=set, repr=False)

    @property
    def missing(self) -> int:
        """How many are still to be done, or were broken off."""
        return max(0, self.planned - self.done - len(self.failed))

    @property
    def complete(self) -> bool:
        """Whether all results are there."""
        return self.begun and self.done >= self.planned

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
        message = f"`{output}` has no ledger (`{OWN_FOLDER}`) that would tell what is to be done there"
        raise UsageError(message, "name the folder that `srcli upscale` was given as `--output`")
    return [_read(output, Shard(index, count)) for index in range(1, count + 1)]


def _read(output: Path, shard: Shard) -> ShardStatus:
    status = ShardStatus(shard)
    for line in lines_of(ledger_file(output, shard)):
        if "planned" in line:
            status = ShardStatus(shard, True, line["planned"], line["kept"], made_with=line["made_with"])
        elif "failed" in line:
            status.failed.append({"input": line["failed"], "reason": line["reason"]})
        elif "result" in line:
            _count(status, output, line)
    return status


def _count(status: ShardStatus, output: Path, line: dict[str, Any]) -> None:
    """A result that is there as it was written; one that was begun twice is one."""
    key = hashlib.blake2b(line["result"].encode("utf-8", "surrogateescape"), digest_size=8).digest()
    try:
        there = (output / line["result"]).stat().st_size == line["bytes"]
    except OSError:
        there = False
    if there and key not in status._seen:
        status._seen.add(key)
        status.done += 1
