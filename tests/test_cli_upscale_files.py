"""`srcli upscale` and what lies in folders: no original is lost, no file goes without a word, and the others are done."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Done, upscale
from PIL import Image
from tiny_model import make_model

from srcli import disk
from srcli.images.codec import decode


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two small photos, `a.png` and `sub/b.png`."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, level in (("a.png", 40), ("sub/b.png", 90)):
        Image.new("RGB", (16, 12), (level, 100, 60)).save(folder / name)
    return folder


def told(done: Done) -> dict[str, Any]:
    return dict(json.loads(done.stdout))


def files(folder: Path) -> list[str]:
    """Names of all files below a folder, hidden ones too."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(path.as_posix() for path in found if path.parts[0] != ".srcli")


def hard_links(photos: Path, other: Path) -> None:
    for name in ("a.png", "sub/b.png"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(photos / name, other / name)


def link_to_the_folder(photos: Path, other: Path) -> None:
    other.symlink_to(photos)


def links_to_the_files(photos: Path, other: Path) -> None:
    for name in ("a.png", "sub/b.png"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).symlink_to(photos / name)


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("bind", [hard_links, link_to_the_folder, links_to_the_files])
def test_originals_are_not_replaced_under_another_name(
    models_file: Path, photos: Path, tmp_path: Path, bind: Callable[[Path, Path], None], overwrite: list[str]
) -> None:
    before = {name: (photos / name).read_bytes() for name in files(photos)}
    bind(photos, tmp_path / "other")
    done = upscale(models_file, photos, "-o", tmp_path / "other", *overwrite)
    assert done.returncode == 2
    assert f"`{photos / 'a.png'}` would overwrite the input `{photos / 'a.png'}`" in done.stderr
    assert {name: (photos / name).read_bytes() for name in files(photos)} == before
    assert {name: (tmp_path / "other" / name).read_bytes() for name in files(tmp_path / "other")} == before


@pytest.mark.parametrize("one", [True, False])
def test_a_volume_that_is_mounted_twice_is_told_by_trying(
    models_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: bool
) -> None:
    """Numbers of files differ there: a copy stands for the second place, which the disk's answer makes the same folder."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "A.png").write_bytes((photos / "a.png").read_bytes())
    (photos / "A.png").write_bytes((photos / "a.png").read_bytes())
    asked: list[tuple[Path, Path]] = []

    def one_folder(first: Path, second: Path) -> bool:
        asked.append((first, second))
        return one

    monkeypatch.setattr(disk, "one_folder", one_folder)
    done = upscale(models_file, photos / "a.png", photos / "A.png", "-o", tmp_path / "other", "--overwrite")
    assert asked == [(tmp_path / "other", photos)]
    assert done.returncode == (2 if one else 0), done.stderr
    assert ("would overwrite the input" in done.stderr) is one


def test_folders_are_one_where_a_file_of_the_one_is_in_the_other(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert disk.one_folder(tmp_path / "folder", tmp_path / "link")
    assert not disk.one_folder(tmp_path / "folder", tmp_path)
    assert not disk.one_folder(tmp_path / "gone", tmp_path)
    assert not files(tmp_path)


@pytest.mark.parametrize("names", [("IMG_1.png", "img_1.PNG"), ("caf\u00e9.png", "cafe\u0301.png"), ("d/x.png", "D/x.png")])
@pytest.mark.parametrize("folds", [True, False])
def test_names_that_are_one_on_the_disk_of_results_fail_by_name(
    models_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str], folds: bool
) -> None:
    """The disk here tells them apart; one that does not is put in its place where it is asked."""
    for name in (*names, "other.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 12)).save(tmp_path / "in" / name)
    if len(files(tmp_path / "in")) < 3:
        pytest.skip("the disk of the tests takes them for one, too")
    if folds:
        monkeypatch.setattr(disk, "one_place", lambda folder, first, second: True)
    done = upscale(models_file, tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert done.returncode == (1 if folds else 0), done.stderr
    failed = sorted(each["input"] for each in told(done)["failed"])
    assert failed == (sorted(str(tmp_path / "in" / name) for name in names) if folds else [])
    assert files(tmp_path / "out") == (["other.png"] if folds else sorted([*names, "other.png"]))


def test_a_folder_that_cannot_be_listed_is_named_and_the_others_are_done(
    models_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def faulty(path: str | Path) -> Any:
        if Path(path).name in ("lost+found", "gone", "broken"):  # the tests may run as root, whom no mode keeps out
            number = {"l": errno.EACCES, "g": errno.ENOENT, "b": errno.EIO}[Path(path).name[0]]
            raise OSError(number, os.strerror(number), str(path))
        return scan(path)

    for name in ("lost+found", "gone", "broken"):
        (photos / name).mkdir()
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "nowhere.png").symlink_to("no-such.png")
    monkeypatch.setattr(os, "scandir", faulty)
    for inputs, count in ((photos, 5), (photos / "**" / "*.png", 5)):
        done = upscale(models_file, inputs, "-o", tmp_path / "out", "--json", "--overwrite")
        assert done.returncode == 1
        assert told(done)["done"] == 2
        assert len(told(done)["failed"]) == count, done.stderr
        assert f"`{photos / 'lost+found'}` cannot be listed: Permission denied" in done.stderr
        assert f"`{photos / 'broken'}` cannot be listed: Input/output error" in done.stderr
    assert files(tmp_path / "out") == ["a.png", "sub/b.png"]
    assert upscale(models_file, photos, "-o", tmp_path / "out", "--dry-run").returncode == 1
    done = upscale(models_file, photos / "lost+found", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "cannot be listed" in done.stderr


def test_files_of_one_name_have_results_of_two_which_a_rerun_knows(models_file: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, level in (("a.gif", 50), ("a.png", 200)):
        Image.new("L", (16, 12), level).save(tmp_path / "in" / name)
    options = ["-o", tmp_path / "out", "--json"]
    done = upscale(models_file, tmp_path / "in", *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("a.gif.png") == 1
    means = {name: decode(tmp_path / "out" / name).rgb.mean() for name in files(tmp_path / "out")}
    assert sorted(means) == ["a.gif.png", "a.png"]
    assert means["a.gif.png"] < means["a.png"]
    assert told(upscale(models_file, tmp_path / "in", *options))["skipped"] == 2


def test_every_file_of_a_folder_is_told_or_counted(models_file: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("1.ico", "2.ICO", "x.pcx", "README", ".hidden", "c.psd"):
        (photos / name).touch()
    os.mkfifo(photos / "pipe.png")
    (photos / "link").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(photos / "socket.png"))
        done = upscale(models_file, photos, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    line = "8 of other kinds left out: 2 .ico, 1 .pcx, 1 extensionless file, 1 folder link, 1 hidden file, 1 pipe, 1 socket"
    assert done.stderr.count(line) == 1
    assert told(done)["left_out"] == {".psd": 1}
    assert sum(told(done)["others"].values()) == 8


def test_a_dry_run_finds_what_the_run_would(models_file: Path, photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 12)).save(photos / f"{'n' * 250}.png")
    (tmp_path / "out" / "a_x4.png").mkdir(parents=True)
    (tmp_path / "out" / "sub").touch()
    options = [photos, "-o", tmp_path / "out", "--suffix", "_x4", "--json"]
    dry, real = upscale(models_file, *options, "--dry-run"), upscale(models_file, *options)
    assert (dry.returncode, real.returncode) == (1, 1)
    expected = sorted(each["fault"] for each in told(dry)["planned"])
    assert sorted(each["reason"] for each in told(real)["failed"]) == expected
    assert "a name of 257 bytes is over the 255 of its disk" in str(expected)
    assert "it is a folder" in str(expected)
    assert f"`{tmp_path / 'out' / 'sub'}` is no folder" in str(expected)


def test_a_full_quota_is_told_as_such(models_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", full)
    done = upscale(models_file, photos, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "cannot be written: Disk quota exceeded" in done.stderr
    assert "your quota on that disk is used up: delete files of yours there" in done.stderr
    assert files(tmp_path / "out") == []


def test_a_rerun_says_what_it_keeps(models_file: Path, photos: Path, tmp_path: Path) -> None:
    options = [photos, "-o", tmp_path / "out"]
    upscale(models_file, *options)
    again = upscale(models_file, *options, "--scale", 2)
    assert "2 results are kept that other settings have made (scale was `4`, is `2`); `--overwrite=changed`" in again.stderr
    later = time.time() + 60
    os.utime(photos / "a.png", (later, later))
    again = upscale(models_file, *options, "--json")
    assert "1 photo is newer than its result; `--overwrite=changed`" in again.stderr
    assert (told(again)["skipped"], told(again)["outdated"]) == (2, 1)
    assert "2 done already (1 of them older than their photos)" in upscale(models_file, *options, "--dry-run").stderr


def test_names_of_a_folder_are_read_as_bytes(models_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(folder / "x.png")
    try:
        (folder / "x.png").rename(folder / name)
    except OSError:
        pytest.skip("the disk takes names of UTF-8 only")
    done = upscale(models_file, folder, "-o", tmp_path / "out", "--report", tmp_path / "report.jsonl")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out") == [name]


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
def test_results_of_earlier_runs_beside_the_photos_are_not_enlarged_again(
    models_file: Path, photos: Path, tmp_path: Path, format: str
) -> None:
    first = upscale(models_file, photos, "-o", photos, "--suffix", "_x4", "--format", format)
    assert first.returncode == 0, first.stderr
    for options in (["-o", photos, "--suffix", "_big"], ["-o", tmp_path / "out"], ["-o", tmp_path / "out", "--overwrite"]):
        done = upscale(models_file, photos, *options, "--json")
        assert (told(done)["done"], told(done)["results_left_out"]) == (2, 4 if "out" in str(options) else 2), done.stderr
        assert "results of earlier runs are left out" in done.stderr
    named = upscale(models_file, next(photos.glob("a_x4.*")), "-o", tmp_path / "named", "--json")
    assert told(named)["done"] == 1
    (photos / "a.png").unlink()
    (photos / "sub" / "b.png").unlink()
    assert told(upscale(models_file, photos, "-o", tmp_path / "again", "--json"))["done"] == 4
