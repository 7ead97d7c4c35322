"""What a launcher tells each process that it starts: which one it is, of how many. Nothing here needs torch.

Accelerate understands the variables of `torchrun`, and some of MPI's where the CPU is asked for. Here those of every launcher
become `torchrun`'s, so that the processes are one run on any device.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from srcli.disk import first_line
from srcli.errors import UsageError

PORT = "29500"
"""Where the processes of one machine meet if nothing else is said; torch's own."""
_HINT = "start several processes by `accelerate launch` or `torchrun`; for one alone, unset this variable"


@dataclass(frozen=True)
class _Launcher:
    """The variables by which one kind of launcher tells it; the local ones are of the process's machine."""

    name: str
    rank: str
    processes: str
    local_rank: str
    local_processes: str
    address_hint: str = "let the launcher hand on the first machine's name: `mpirun -x MASTER_ADDR=NAME` (Intel: `-genv`)"


_SCONTROL = '`export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)` before `srun`'
_LAUNCHERS = (  # those that others start come first: `srun torchrun`, and `mpirun`, whose helpers `srun` starts
    _Launcher("the launcher", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    _Launcher("Open MPI", *(f"OMPI_COMM_WORLD_{word}" for word in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    _Launcher("MVAPICH", *(f"MV2_COMM_WORLD_{word}" for word in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    _Launcher("MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    # SLURM_NTASKS is set in a script of `sbatch`, too, which is one process whatever was asked for
    _Launcher("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", _SCONTROL),
)


@dataclass(frozen=True)
class Place:
    """Of a process among those of its run, of which there are two at least."""

    rank: int
    processes: int
    local_rank: int | None
    """Among those of its machine; None where the launcher does not say it."""
    local_processes: int | None
    """Of its machine, about; None where the launcher does not say it."""
    address: tuple[str, str]
    """Machine and port where the processes meet."""

    def as_torchrun(self, devices: int) -> dict[str, str]:
        """The variables that `torchrun` would have set; `devices` of this machine are dealt out by rank if nothing is said."""
        local = self.rank % max(devices, 1) if self.local_rank is None else self.local_rank
        numbers = {"RANK": self.rank, "WORLD_SIZE": self.processes, "LOCAL_RANK": local}
        numbers["LOCAL_WORLD_SIZE"] = self.local_processes or 1
        machine, port = self.address
        return {key: str(value) for key, value in numbers.items()} | {"MASTER_ADDR": machine, "MASTER_PORT": port}


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Where a launcher has put this process; None where it is the only one.

    Raises:
        UsageError: what the variables say makes no sense, or leaves open where the processes meet.
    """
    for launcher in _LAUNCHERS:
        processes = _number(launcher.processes, environment)
        if processes is not None:
            return _place(launcher, processes, environment) if processes > 1 else None
    for name in ("RANK", "LOCAL_RANK"):
        if _number(name, environment):
            raise UsageError(f"`{name}` is set, but `WORLD_SIZE` is not", _HINT)
    return None


@contextmanager
def meeting(place: Place | None) -> Iterator[None]:
    """Context in which the processes find each other.

    Raises:
        UsageError: they do not.
    """
    try:
        yield
    except (RuntimeError, ValueError) as fault:
        if place is None:
            raise
        hint = "start them all at once; where another run has the port, set `MASTER_PORT` to another one"
        where = ":".join(place.address)
        raise UsageError(f"{place.processes} processes cannot meet at `{where}`: {first_line(fault)}", hint) from fault


@contextmanager
def spread() -> Iterator[None]:
    """Context in which a network is spread over the processes, without buffers, which all have the same.

    That option goes by another name in the newest torch, which warns of the old one, the only one that others know.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
        yield


def lost_another(fault: BaseException) -> bool:
    """Whether an exception says that another process of the run is not there any more."""
    words = ("gloo/", "DistBackendError", "DistNetworkError")
    return any(word in f"{type(fault).__name__}: {fault}" for word in words)


def _place(launcher: _Launcher, processes: int, environment: Mapping[str, str]) -> Place:
    rank = _number(launcher.rank, environment)
    if rank is None or rank >= processes:
        found = f"`{launcher.rank}` is {'not set' if rank is None else rank}"
        raise UsageError(f"{found}, but `{launcher.processes}` is {processes}", _HINT)
    counts = re.match(r"\d+", environment.get(launcher.local_processes, ""))  # in Slurm's way `2(x3),1`, from machine to machine
    local = int(counts[0]) if counts else None
    machine = environment.get("MASTER_ADDR") or ("127.0.0.1" if local == processes else "")
    if not machine:
        message = f"{launcher.name} has started {processes} processes, and `MASTER_ADDR` does not say where they meet"
        raise UsageError(message, launcher.address_hint)
    port = environment.get("MASTER_PORT") or PORT
    return Place(rank, processes, _number(launcher.local_rank, environment), local, (machine, port))


def _number(name: str, environment: Mapping[str, str]) -> int | None:
    """The value of a variable; None where it is not set, or -1, as some write it."""
    text = environment.get(name, "").strip()
    if text in ("", "-1"):
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UsageError(f"`{name}` is `{text}`, which is no number of processes", _HINT)
    return int(text)
