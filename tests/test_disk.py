"""The one writer of whole files: what becomes of a file, and of what is beside it, whatever interrupts the writing."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from srcli import disk
from srcli.disk import first_line, held, held_as_it_is, whole, write_text, write_whole
from srcli.errors import SrcliError, UsageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=[False, True], ids=["shared", "alone"])
def alone(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Path]:
    """A file with content; whatever a test does to it, nothing may be left beside it."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    yield path
    assert names(tmp_path) == ["file"]


def test_a_file_comes_into_place_at_the_end_of_the_block(old: Path, alone: bool) -> None:
    with whole(old, alone=alone) as file:
        file.write(b"new, longer")
        file.seek(0)
        file.write(b"N")
        file.flush()
        assert old.read_bytes() == b"old"
    assert old.read_bytes() == b"New, longer"


def test_missing_folders_are_made_and_permissions_are_those_of_any_new_file(tmp_path: Path, alone: bool) -> None:
    (tmp_path / "any").write_bytes(b"")
    path = tmp_path / "a" / "b" / "file"
    with whole(path, alone=alone) as file:
        file.write(b"new")
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_replaced_file_hands_its_permissions_on(old: Path, mode: int, alone: bool) -> None:
    old.chmod(mode)
    with whole(old, alone=alone) as file:
        file.write(b"new")
    assert (stat.S_IMODE(old.stat().st_mode), old.read_bytes()) == (mode, b"new")


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), ValueError("ours"), KeyboardInterrupt()])
def test_a_fault_in_the_block_leaves_the_old_file_and_nothing_else(old: Path, fault: BaseException, alone: bool) -> None:
    def write_half() -> None:
        with whole(old, alone=alone) as file:
            file.write(b"half")
            raise fault

    with pytest.raises(type(fault)):
        write_half()
    assert old.read_bytes() == b"old"


def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(old: Path, alone: bool) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"), whole(old, alone=alone) as file:
            file.write(b"x" * 50_001)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("step", ["os.fsync", "Path.replace"])
def test_a_fault_of_the_disk_at_the_end_does_no_harm(old: Path, monkeypatch: pytest.MonkeyPatch, step: str, alone: bool) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(f"srcli.disk.{step}", full)
    with pytest.raises(OSError, match="Input/output error"), whole(old, alone=alone) as file:
        file.write(b"new")
    assert old.read_bytes() == b"old"


def test_the_content_is_on_the_disk_before_it_has_the_name(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, real = [], os.fsync

    def watched(handle: int) -> None:
        synced.append((os.fstat(handle).st_size, old.read_bytes()))
        real(handle)

    monkeypatch.setattr("srcli.disk.os.fsync", watched)
    write_whole(old, b"newer")
    assert synced == [(5, b"old")]


def test_several_may_write_the_same_file_and_the_last_one_counts(old: Path) -> None:
    with whole(old) as first:
        first.write(b"the first")
        with whole(old) as second:
            second.write(b"the second")
        assert old.read_bytes() == b"the second"
    assert old.read_bytes() == b"the first"


def test_alone_a_second_one_is_refused_and_harms_nobody(old: Path) -> None:
    with whole(old, alone=True) as first:
        first.write(b"the first")
        with pytest.raises(BlockingIOError, match="another run is writing it"), whole(old, alone=True):
            raise AssertionError
    assert old.read_bytes() == b"the first"


def test_alone_a_file_that_another_run_finished_meanwhile_is_not_written_into(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, done, real = old.with_name(".file.part"), old.with_name("done"), fcntl.flock
    part.write_bytes(b"of another run")

    def late(file: Any, how: int) -> None:
        monkeypatch.setattr("srcli.disk.fcntl.flock", real)
        part.replace(done)
        part.write_bytes(b"begun by a third")
        real(file, how)

    monkeypatch.setattr("srcli.disk.fcntl.flock", late)
    with whole(old, alone=True) as file:
        file.write(b"new")
    assert old.read_bytes() == b"new"
    assert done.read_bytes() == b"of another run"
    done.unlink()


def killed_while_writing(path: Path, alone: bool) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from srcli.disk import whole\n"
        f"with whole(Path(sys.argv[1]), alone={alone}) as file:\n"
        "    file.write(b'half' * 9999); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_kill_leaves_the_old_file_and_alone_a_rerun_clears_up(old: Path) -> None:
    killed_while_writing(old, alone=True)
    assert old.read_bytes() == b"old"
    assert names(old.parent) == [".file.part", "file"]
    with whole(old, alone=True) as file:
        file.write(b"new")
    assert old.read_bytes() == b"new"


def test_a_kill_leaves_the_old_file_and_keeps_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    killed_while_writing(path, alone=False)
    assert path.read_bytes() == b"old"
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert all(name == "file" or name.startswith(".") for name in names(tmp_path))


@pytest.mark.parametrize("letter", ["x", "\u00e9"])
def test_the_longest_names_can_be_written(tmp_path: Path, letter: str, alone: bool) -> None:
    name = letter * (255 // len(letter.encode()))
    with whole(tmp_path / name, alone=alone) as file:
        file.write(b"new")
    assert names(tmp_path) == [name]


def test_a_folder_that_takes_no_file_is_the_systems_error_and_that_of_results_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", read_only)  # the tests may run as root, whom no mode keeps out
    with pytest.raises(OSError, match="Read-only"):
        write_whole(tmp_path / "file", b"new")
    with pytest.raises(SrcliError, match="file` cannot be written: Read-only file system") as caught:
        write_text(tmp_path / "file", "new")
    assert "folder that you may write to" in caught.value.hint
    assert names(tmp_path) == []


def test_texts_keep_line_ends_and_names_that_are_no_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "file", f"{os.fsdecode(b'caf' + bytes([233]))}\r\n\n")
    assert (tmp_path / "file").read_bytes() == b"caf\xe9\r\n\n"


@pytest.mark.parametrize("hold", [held, held_as_it_is])
def test_a_folder_is_held_by_one_run_and_free_after_it(tmp_path: Path, hold: Any) -> None:
    program = f"import pathlib, sys; from srcli import disk\nwith disk.{hold.__name__}(pathlib.Path(sys.argv[1])): pass"
    other = [sys.executable, "-c", program, str(tmp_path)]
    with hold(tmp_path):
        refused = subprocess.run(other, capture_output=True, text=True, check=False)
    assert f"another run writes into `{tmp_path}`" in refused.stderr
    subprocess.run(other, check=True)


@pytest.mark.parametrize("hold", [held, held_as_it_is])
def test_a_folder_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hold: Any
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    for name in ("flock", "lockf"):
        monkeypatch.setattr(disk.fcntl, name, fail)
    with hold(tmp_path):
        pass
    assert "cannot be locked (No locks available): have no second run" in caplog.text


def test_a_file_or_a_place_below_one_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="file` is a file"):
        disk.make_output_folder(tmp_path / "file")
    with pytest.raises(UsageError, match="below`: Not a directory"):
        disk.make_output_folder(tmp_path / "file" / "below")
    disk.make_output_folder(tmp_path / "new" / "folder")
    assert names(tmp_path / "new" / "folder") == []


@pytest.mark.parametrize(
    ("fault", "line"),
    [(ValueError("\n one\ntwo"), "one"), (KeyError(), "KeyError"), (OSError(28, "full", "a"), "[Errno 28] full: 'a'")],
)
def test_the_first_line_of_an_exception(fault: Exception, line: str) -> None:
    assert first_line(fault) == line
