"""Where workers are to be: the devices of this machine, or those of all machines of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srcli.config.upscale import ALL_DEVICES


@dataclass(frozen=True)
class Place:
    """One device of a machine."""

    device: str
    """As torch calls it there."""
    threads: int
    """Its share of the machine's cores."""
    node: str = ""
    """Ray's name of the machine; empty for this one."""
    address: str = ""
    """Of the machine, for people."""

    def __str__(self) -> str:
        return f"`{self.device}`" + (f" of `{self.address}`" if self.address else "")


def cores() -> int:
    """How many of this machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def places_here(devices: Sequence[str]) -> list[Place]:
    """A place for each of these devices."""
    return [Place(device, max(1, cores() // len(devices))) for device in devices]


def places_of(nodes: Sequence[Mapping[str, Any]], devices: Sequence[str]) -> list[Place]:
    """Places on all machines of a cluster.

    Args:
        nodes: as `ray.nodes()` has them.
        devices: of each machine; `auto` and `all` are all its GPUs, or its processor where it has none.
    """
    places = []
    for node in nodes:
        if not node["Alive"]:
            continue
        resources = node["Resources"]
        gpus = ["cuda"] * int(resources.get("GPU", 0))  # Ray shows each of its actors the one that it is given
        own = (gpus or ["cpu"]) if list(devices) in (["auto"], [ALL_DEVICES]) else devices
        threads = max(1, int(resources.get("CPU", 1)) // len(own))
        places += [Place(device, threads, node["NodeID"], node["NodeManagerAddress"]) for device in own]
    return places
