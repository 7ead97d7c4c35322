"""`srcli upscale` where something is in its way: nothing is lost, and it is told before the work where it can be."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import upscale
from PIL import Image
from tiny_model import make_model

from srcli.engine import stream as stream_module
from srcli.engine.restore import Engine


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def test_a_report_never_takes_the_place_of_a_picture(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    before = (photo_folder / "a.png").read_bytes()
    (tmp_path / "link").symlink_to(photo_folder)
    for name in ("photos/a.png", "link/a.png", "out/b.jpg", "photos/not-taken.psd"):
        report = tmp_path / name
        done = upscale(models_file, photo_folder, "-o", tmp_path / "out", "--report", report)
        assert done.returncode == 2
        assert f"the report `{report}`" in done.stderr
        assert "is an input" in done.stderr or report.name != "a.png"
    assert (photo_folder / "a.png").read_bytes() == before
    assert not (photo_folder / "not-taken.psd").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "*.*"])
def test_a_run_beside_the_originals_can_be_repeated(models_file: Path, photo_folder: Path, text: str) -> None:
    options = [photo_folder / text, "-o", photo_folder, "--suffix", "_x4", "--json", "--no-recursive"]
    assert json.loads(upscale(models_file, *options).stdout)["done"] == 2
    again = upscale(models_file, *options)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["skipped"] == 2


def test_a_dry_run_knows_what_would_fail(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    Image.new("L", (4096, 1)).save(photo_folder / "wide.png")
    (photo_folder / "bad.png").write_bytes(b"no picture")
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out", "--format", "webp", "--dry-run")
    assert done.returncode == 1
    assert "16384 x 4 px is over" in done.stderr
    assert "3 to do" in done.stderr
    assert "2 that would fail" in done.stderr
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out", "--format", "webp", "--dry-run", "--json")
    assert done.returncode == 1
    assert sum(bool(each["fault"]) for each in json.loads(done.stdout)["planned"]) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_under_the_report_stops_no_picture(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out", "--report", "/dev/full", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 3
    assert done.stderr.count("`/dev/full` is incomplete, no more is written: No space left") == 1


def test_a_folder_that_cannot_be_written_to_is_told_before_work(
    models_file: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def locked(path: str, *rest: int, **options: int) -> int:
        if str(path).startswith(str(tmp_path / "out")):
            raise OSError(errno.EROFS, "Read-only file system", path)
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "open", locked)  # the tests may run as root, whom no mode keeps out
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert f"cannot write into `{tmp_path / 'out'}`: Read-only file system" in done.stderr


def test_an_output_of_no_letters_is_refused(models_file: Path, photo_folder: Path) -> None:
    done = upscale(models_file, photo_folder, "-o", "")
    assert done.returncode == 2
    assert "`--output` is empty" in done.stderr


def test_pictures_of_other_kinds_are_told_once(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    for name in ("1.psd", "2.PSD", "3.exr", "notes.txt"):
        (photo_folder / name).touch()
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out: 2 .psd, 1 .exr;") == 1
    assert "hint: convert them" in done.stderr
    for options in (["--json"], ["--json", "--dry-run"]):
        told = json.loads(upscale(models_file, photo_folder, "-o", tmp_path / "out", *options).stdout)
        assert told["left_out"] == {".psd": 2, ".exr": 1}


def test_a_report_of_a_dry_run_is_refused(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out", "--dry-run", "--report", tmp_path / "report")
    assert done.returncode == 2
    assert "`--report` has no effect" in done.stderr


def test_what_was_written_before_an_interruption_is_told(
    models_file: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    restore, encode = Engine.restore, stream_module.encode

    def interrupted(self: Engine, pictures: list[object], mixtures: object) -> object:
        calls.append(pictures)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return restore(self, pictures, mixtures)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "restore", interrupted)
    monkeypatch.setattr(stream_module, "encode", _slowly(encode))
    options = ["--batch", 1, "--json", "--report", tmp_path / "report.jsonl"]
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out", *options)
    assert done.returncode == 130, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*") if path.is_file()) == ["a.png", "b.jpg"]
    assert json.loads(done.stdout)["done"] == 2
    assert [json.loads(line)["status"] for line in (tmp_path / "report.jsonl").read_text().splitlines()] == ["done"] * 2


def _slowly(call: Callable[..., None]) -> Callable[..., None]:
    def slow(*arguments: object) -> None:
        time.sleep(0.3)
        call(*arguments)

    return slow


def test_names_reach_the_screen_as_they_are_but_for_codes(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    for name in ("trip:smile:[red].png", "clear\x1b[2J.png", "x\n3 photos upscaled\n  - `y`.png"):
        (photo_folder / name).touch()
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "trip:smile:[red].png" in done.stderr
    assert "clear\\x1b[2J.png" in done.stderr
    assert "/x\\n3 photos upscaled\\n  - `y`.png` cannot be read" in done.stderr
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out", "--dry-run")
    assert "/x\\n3 photos upscaled\\n  - `y`.png` cannot be read" in done.stderr
    assert "trip:smile:\\x1b" in upscale(models_file, "trip:smile:\x1b", "-o", tmp_path / "out").stderr
