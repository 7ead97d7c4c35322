"""Scripts and benchmarks tell how they are used, without the seconds that torch takes."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(file for folder in ("benchmarks", "scripts") for file in (ROOT / folder).iterdir() if file.is_file())
LIBRARIES = [file for file in FILES if file.suffix == ".py" and "__main__" not in file.read_text(encoding="utf-8")]
"""What others import, and nobody runs."""
HEAVY = ("torch", "diffusers", "peft", "transformers", "srcli.networks")
PROGRAM = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(*sys.modules, file=sys.stderr)
"""


def help_of(file: Path) -> subprocess.CompletedProcess[str]:
    """`FILE --help`; a Python file's modules, as they are then, go to stderr."""
    runner = ["sh"] if file.suffix == ".sh" else [sys.executable, "-c", PROGRAM]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*runner, str(file), "--help"], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


def test_every_script_and_benchmark_shows_its_help_without_heavy_imports() -> None:
    scripts = [file for file in FILES if file not in LIBRARIES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = dict(zip(scripts, pool.map(help_of, scripts), strict=True))
    for file, done in answers.items():
        assert done.returncode == 0, (file, done.stderr)
        assert f"{file.parent.name}/{file.name} " in done.stdout, "no example"
        assert not {*HEAVY} & {*done.stderr.split()}, file
