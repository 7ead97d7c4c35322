"""Pairing by relative stem."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import srcli
from PIL import Image

from srcli.errors import UsageError
from srcli.evaluation.pairs import match


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_files_are_paired_by_path_without_suffix_in_all_folders(tmp_path: Path) -> None:
    ours = folder(tmp_path / "ours", "a.png", "sub/b.jpg", "c.d.png")
    theirs = folder(tmp_path / "theirs", "a.webp", "sub/b.png", "c.d.png")
    hq = folder(tmp_path / "hq", "c.d.tif", "a.png", "sub/b.png")
    plan = match({"ours": ours, "theirs": theirs}, hq)
    assert [image.stem for image in plan.images] == ["a", "c.d", "sub/b"]
    assert plan.images[2].sr == {"ours": ours / "sub/b.jpg", "theirs": theirs / "sub/b.png"}
    assert plan.images[1].hq == hq / "c.d.tif"
    assert plan.unmatched == ()


def test_position_never_pairs(tmp_path: Path) -> None:
    plan = match({"x": folder(tmp_path / "x", "b.png", "c.png")}, folder(tmp_path / "hq", "a.png", "b.png"))
    assert [(image.stem, image.hq.name) for image in plan.images if image.hq] == [("b", "b.png")]


def test_every_file_without_a_counterpart_is_named_with_what_lacks_it(tmp_path: Path) -> None:
    ours = folder(tmp_path / "ours", "a.png", "only-ours.png")
    theirs = folder(tmp_path / "theirs", "a.png", "both.png")
    hq = folder(tmp_path / "hq", "a.png", "both.png", "sub/only-hq.png")
    plan = match({"ours": ours, "theirs": theirs}, hq)
    assert [image.stem for image in plan.images] == ["a"]
    assert {(each.path, each.lacks) for each in plan.unmatched} == {
        (theirs / "both.png", ("ours",)),
        (hq / "both.png", ("ours",)),
        (ours / "only-ours.png", ("theirs", "hq")),
        (hq / "sub/only-hq.png", ("ours", "theirs")),
    }


def test_inputs_tell_which_results_are_missing(tmp_path: Path) -> None:
    lq = folder(tmp_path / "lq", "a.png", "b.png")
    plan = match({"x": folder(tmp_path / "x", "a.png")}, lq=lq)
    assert plan.images[0].hq is None
    assert [(each.path.name, each.lacks) for each in plan.unmatched] == [("b.png", ("x",))]


def test_files_of_one_stem_are_left_out_and_named_and_the_others_are_paired(tmp_path: Path) -> None:
    ours = folder(tmp_path / "ours", "a.png", "a.jpg", "a.webp", "sub/a.png", "b.png")
    hq = folder(tmp_path / "hq", "a.png", "sub/a.png", "b.png", "b.webp")
    plan = match({"ours": ours}, hq)
    assert [image.stem for image in plan.images] == ["sub/a"]
    assert [(each.path, each.lacks) for each in plan.unmatched] == [(hq / "a.png", ("ours",)), (ours / "b.png", ("hq",))]
    told = [failure.reason for failure in plan.failures]
    for reason, names in zip(
        told, [(ours / "a.jpg", ours / "a.png", ours / "a.webp"), (hq / "b.png", hq / "b.webp")], strict=True
    ):
        assert reason.startswith(" and ".join(f"`{name}`" for name in names) + " have one stem")


def test_a_folder_that_cannot_be_listed_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = folder(tmp_path / "ours", "a.png", "lost+found/b.png")
    hq = folder(tmp_path / "hq", "a.png", "lost+found/b.png")
    locked = [ours / "lost+found"]
    scan = os.scandir

    def guarded(path: str | int) -> Iterator[os.DirEntry[str]]:
        if str(path) in map(str, locked):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)  # the tests may run as root, whom no mode keeps out
    plan = match({"ours": ours}, hq)
    assert [image.stem for image in plan.images] == ["a"]
    assert [each.path for each in plan.unmatched] == [hq / "lost+found/b.png"]
    assert [failure.path for failure in plan.failures] == locked
    assert "Permission denied" in plan.failures[0].reason
    for path in (ours / "a.png", hq / "a.png"):
        Image.new("RGB", (16, 16)).save(path)
    done = srcli("eval", ours, "--hq", hq, "--json", "--device", "cpu", "--metrics", "psnr")
    assert done.returncode == 1
    assert [each["file"] for each in json.loads(done.stdout)["failed"]] == [str(locked[0])]
    assert done.stderr.count("cannot be listed") == 1
    locked[0] = hq / "lost+found"
    options = ("--hq", ours, "--lq", hq, "--baseline", "bicubic", "--scale", 1)
    assert srcli("eval", *options).stderr.count("cannot be listed") == 1
    locked[0] = ours
    with pytest.raises(UsageError, match=r"(?s)without images that can be paired.*`.*/ours` cannot be listed: Permission denied"):
        match({"ours": ours}, hq)


def test_names_that_look_equal_are_equal(tmp_path: Path) -> None:
    plan = match({"x": folder(tmp_path / "x", "cafe\u0301.png")}, folder(tmp_path / "hq", "caf\u00e9.png"))
    assert len(plan.images) == 1


def test_hidden_files_and_other_files_are_left_out(tmp_path: Path) -> None:
    ours = folder(tmp_path / "ours", "a.png", ".a.png.part", ".cache/b.png", "notes.txt", "._a.png")
    assert [image.stem for image in match({"x": ours}).images] == ["a"]


def test_nothing_in_common_is_an_error_that_shows_the_stems(tmp_path: Path) -> None:
    ours = folder(tmp_path / "ours", *(f"a_x4_{number}.png" for number in range(5)))
    with pytest.raises(UsageError, match=r"`a_x4_0`, `a_x4_1`, `a_x4_2` and 2 more"):
        match({"ours": ours}, folder(tmp_path / "hq", "a.png"))


def test_all_faults_of_the_folders_are_told_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError) as caught:
        match({"x": empty, "y": tmp_path / "nowhere", "z": tmp_path / ("n" * 300)}, folder(tmp_path / "hq", "a.png", "a.jpg"))
    assert "empty" in caught.value.message
    assert "nowhere` does not exist" in caught.value.message
    assert "nnn` cannot be used: File name too long" in caught.value.message
    assert "one stem" in caught.value.message


def test_single_files_are_paired_whatever_they_are_called(tmp_path: Path) -> None:
    files = folder(tmp_path, "out.png", "truth.jpg")
    plan = match({"x": files / "out.png"}, files / "truth.jpg")
    assert [(image.stem, image.hq) for image in plan.images] == [("out", files / "truth.jpg")]


def test_a_file_beside_a_folder_is_refused(tmp_path: Path) -> None:
    files = folder(tmp_path, "out.png", "hq/out.png")
    with pytest.raises(UsageError, match=r"out\.png` is a file"):
        match({"x": files / "out.png"}, files / "hq")
