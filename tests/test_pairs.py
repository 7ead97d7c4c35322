"""Pairing by relative stem."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_two_files_of_one_stem_are_an_error_that_names_both(tmp_path: Path) -> None:
    ours = folder(tmp_path / "ours", "a.png", "a.jpg", "sub/a.png", "b.png")
    hq = folder(tmp_path / "hq", "b.png", "b.webp")
    with pytest.raises(UsageError) as caught:
        match({"ours": ours}, hq)
    for name in (ours / "a.png", ours / "a.jpg", hq / "b.png", hq / "b.webp"):
        assert f"`{name}`" in caught.value.message
    assert "sub" not in caught.value.message


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
        match({"x": empty, "y": tmp_path / "nowhere"}, folder(tmp_path / "hq", "a.png", "a.jpg"))
    assert "empty" in caught.value.message
    assert "nowhere" in caught.value.message
    assert "one stem" in caught.value.message


def test_single_files_are_paired_whatever_they_are_called(tmp_path: Path) -> None:
    files = folder(tmp_path, "out.png", "truth.jpg")
    plan = match({"x": files / "out.png"}, files / "truth.jpg")
    assert [(image.stem, image.hq) for image in plan.images] == [("out", files / "truth.jpg")]


def test_a_file_beside_a_folder_is_refused(tmp_path: Path) -> None:
    files = folder(tmp_path, "out.png", "hq/out.png")
    with pytest.raises(UsageError, match=r"out\.png` is a file"):
        match({"x": files / "out.png"}, files / "hq")
