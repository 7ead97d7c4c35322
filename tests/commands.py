"""The command as a user runs it: in this process, which has torch already, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from srcli.cli.main import main


@dataclass
class Done:
    """What a finished command left."""

    returncode: int
    stdout: str
    stderr: str


def srcli(*arguments: object) -> Done:
    """The command in this process; `in_process_of_its_own` is the real thing."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["srcli", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def upscale(models_file: Path, *arguments: object) -> Done:
    """`srcli upscale` with the model `small` of that file, on the CPU."""
    return srcli("upscale", *arguments, "--models-file", models_file, "--model", "small", "--device", "cpu", "--dtype", "fp32")


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own, warnings being errors."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-W", "error", "-m", "srcli", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def in_process_of_its_own(*arguments: object) -> Done:
    process = start(*arguments)
    stdout, stderr = process.communicate(timeout=120)
    return Done(process.returncode, stdout, stderr)


@contextlib.contextmanager
def another_run_in(folder: Path, lock: str) -> Iterator[None]:
    """A process of its own holds the folder: a training run by `lockf` of a file in it, a sweep by `flock` of itself."""
    take = f"fcntl.{lock}(file, fcntl.LOCK_EX)"
    program = f"import fcntl, os, sys; file = os.open(sys.argv[1], int(sys.argv[2])); {take}; print(flush=True); sys.stdin.read()"
    what = (folder / ".lock", os.O_CREAT | os.O_WRONLY) if lock == "lockf" else (folder, os.O_RDONLY)
    command = [sys.executable, "-c", program, *map(str, what)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield
        holder.communicate("")
