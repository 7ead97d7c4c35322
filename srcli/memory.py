"""Memory of whatever device: how much there is, and whether it ran out."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

from srcli.errors import says_no_memory

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_large_blocks() -> bool:
    """Let the C library keep freed blocks for the next tensor instead of giving them back: True if it does.

    A network on the CPU allocates and frees tensors of many megabytes all the time. glibc maps each anew, and the page faults
    cost as much time as convolutions in bf16 do. Up to two gigabytes of freed memory stay with the process.
    """
    mallopt = _of_glibc("mallopt")
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


def give_freed_back() -> None:
    """Let the C library give all freed blocks back to the system, where it has kept them (`keep_large_blocks`).

    For between the steps of a large picture, whose blocks differ so in size that one step can make little use of another's.
    """
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of it; None where there is another C library, as on musl."""
    if sys.platform != "linux":
        return None
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    return function


def free_bytes(device: torch.device) -> int:
    """Memory that could be had on `device` now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return free_host_bytes()


def free_host_bytes(root: Path = Path("/")) -> int:
    """Memory that could be had beside the CPU now: what the machine has, or what the container or batch job may still take.

    A process that takes more than its control group's share is killed, however much the machine has.

    Args:
        root: what `proc` and `sys` are below.
    """
    shares = [share for folder in _control_groups(root) if (share := _free_of_group(folder)) is not None]
    return min([int(psutil.virtual_memory().available), *shares])


def host_limit_hint(device: str = "cpu") -> str:
    """What to try first where memory ran out on a type of device; empty but on a CPU where the process has a limit of its own."""
    if sys.platform == "win32" or device != "cpu":
        return ""
    import resource

    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    limited = most != resource.RLIM_INFINITY
    return f"raise this process's own limit of {most / 1e9:.1f} GB (`ulimit -v`, or the batch job's), or " if limited else ""


def _control_groups(root: Path) -> Iterator[Path]:
    """The folders of the memory control groups around this process, of Linux' first or second version."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, kinds, path = [*line.split(":", 2), "", ""][:3]
        if kinds and "memory" not in kinds.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if kinds else "")
        own = mount / path.strip("/")  # seen from outside a container, it may not be there; the container's own is the mount
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(mount) and folder.is_dir())


def _free_of_group(folder: Path) -> int | None:
    """What a group may still take, caches of files included, which give way. None where it has no limit."""
    for limit, used, total in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        try:
            most, taken = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            caches = sum(int(stat.get(f"{total}{kind}_file", 0)) for kind in ("active", "inactive"))
            return max(0, most - taken + caches)
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, torch or its back ends says that memory ran out."""
    if says_no_memory(error) or isinstance(error, torch.OutOfMemoryError):
        return True
    words = ("out of memory", "not enough memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
