"""Free memory is what the container or batch job may still take, not what the machine has."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from srcli.memory import free_host_bytes

MIB = 1 << 20


def group(folder: Path, limit: str, used: int, cache: int, *, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    total = "total_" if version == 1 else ""
    (folder / "memory.stat").write_text(f"anon 5\n{total}inactive_file {cache - 1}\n{total}active_file 1\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


def test_the_tightest_of_nested_groups_counts(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/job/step\n")
    mount = root / "sys/fs/cgroup"
    group(mount / "job/step", "max", 5 * MIB, 1, version=2)
    group(mount / "job", str(100 * MIB), 60 * MIB, 10 * MIB, version=2)
    assert free_host_bytes(root) == 50 * MIB
    group(mount / "job/step", str(20 * MIB), 5 * MIB, 1, version=2)
    assert free_host_bytes(root) == 15 * MIB + 1


def test_a_container_sees_its_own_group_as_the_mount(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("5:cpu:/docker/a\n4:memory:/docker/a\n0::/docker/a\n")
    group(root / "sys/fs/cgroup/memory", str(64 * MIB), 60 * MIB, 3 * MIB, version=1)
    assert free_host_bytes(root) == 7 * MIB


def test_a_group_that_is_over_its_limit_has_nothing_left(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/\n")
    group(root / "sys/fs/cgroup", str(10 * MIB), 12 * MIB, 1, version=2)
    assert free_host_bytes(root) == 0


@pytest.mark.parametrize("lines", [None, "", "0::/\n", "nonsense\n", "4:memory:/../../etc\n"])
def test_without_a_limit_it_is_the_machine_s(root: Path, lines: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if lines is not None:
        (root / "proc/self/cgroup").write_text(lines)
    group(root / "sys/fs/cgroup", "max", 1, 1, version=2)
    group(root / "sys/fs/cgroup/memory", str((1 << 63) - 4096), 1, 1, version=1)
    memory = type("Memory", (), {"available": 123 * MIB})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert free_host_bytes(root) == 123 * MIB
