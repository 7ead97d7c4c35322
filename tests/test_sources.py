from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_case import make_photos

from srcli.errors import UsageError
from srcli.training.data.held_out import hold_out
from srcli.training.data.sources import Photo, Skipped, Source, find_sources, tell_skipped


def names(source: Source) -> list[str]:
    return [photo.hq.name for photo in source.photos]


def test_a_folder_is_searched_to_its_depth_without_hidden_files(tmp_path: Path) -> None:
    make_photos(tmp_path / "a" / "b", 2)
    make_photos(tmp_path / ".trash", 1)
    (tmp_path / "notes.txt").write_text("no photo")
    (source,), skipped = find_sources([str(tmp_path)], 32, 4)
    assert names(source) == ["0.png", "1.png"]
    assert skipped == []


def test_a_list_file_names_photos_and_pairs_relative_to_itself(tmp_path: Path) -> None:
    make_photos(tmp_path / "hq", 2)
    make_photos(tmp_path / "lq", 1)
    (tmp_path / "list.txt").write_text("# two photos\nhq/0.png\tlq/0.png\n\nhq/1.png\nhq/gone.png\n")
    (source,), skipped = find_sources([str(tmp_path / "list.txt")], 32, 4)
    assert source.photos == (Photo(tmp_path / "hq/0.png", tmp_path / "lq/0.png"), Photo(tmp_path / "hq/1.png"))
    assert skipped == [Skipped(tmp_path / "hq/gone.png", "no such file")]


def test_pairs_are_found_by_their_path_whatever_the_suffix(tmp_path: Path) -> None:
    make_photos(tmp_path / "hq" / "x", 3)
    (tmp_path / "lq" / "x").mkdir(parents=True)
    Image.new("RGB", (30, 22)).save(tmp_path / "lq/x/0.jpg")
    Image.new("RGB", (31, 22)).save(tmp_path / "lq/x/1.jpg")
    (source,), skipped = find_sources([f"{tmp_path / 'hq'},lq={tmp_path / 'lq'},weight=0.5"], 32, 4)
    assert source.weight == 0.5
    assert source.photos == (Photo(tmp_path / "hq/x/0.png", tmp_path / "lq/x/0.jpg"),)
    assert {each.path.name for each in skipped} == {"1.jpg", "2.png"}


def test_partners_are_found_however_their_letters_are_spelt(tmp_path: Path) -> None:
    composed, apart = "Zo\u00eb", "Zoe\u0308"
    make_photos(tmp_path / "hq" / composed, 1)
    (tmp_path / "hq" / composed / "0.png").rename(tmp_path / "hq" / composed / f"{apart}.png")
    (tmp_path / "lq" / apart).mkdir(parents=True)
    Image.new("RGB", (30, 22)).save(tmp_path / "lq" / apart / f"{composed}.png")
    (source,), skipped = find_sources([f"{tmp_path / 'hq'},lq={tmp_path / 'lq'}"], 32, 4)
    assert skipped == []
    assert source.photos == (Photo(tmp_path / "hq" / composed / f"{apart}.png", tmp_path / "lq" / apart / f"{composed}.png"),)
    (tmp_path / "hq" / composed / "list.txt").write_text(f"{composed}.png\n")
    (source,), skipped = find_sources([str(tmp_path / "hq" / composed / "list.txt")], 32, 4)
    assert (names(source), skipped) == ([f"{apart}.png"], [])


def test_strange_names_in_a_list(tmp_path: Path) -> None:
    make_photos(tmp_path, 3)
    strange = ["#1.png", "~nobody.png", "line\u2028end.png"]
    for old, new in zip(("0.png", "1.png", "2.png"), strange, strict=True):
        (tmp_path / old).rename(tmp_path / new)
    (tmp_path / "list").write_text("\n".join(["# a comment", "#2.png", *strange, "./#1.png", "a" * 300 + ".png"]))
    (source,), skipped = find_sources([str(tmp_path / "list")], 32, 4)
    assert names(source) == [*strange, "#1.png"]
    assert [each.reason for each in skipped] == ["no such file"]
    with pytest.raises(UsageError, match="does not exist"):
        find_sources(["a" * 300], 32, 4)


@pytest.mark.parametrize("end", ["", ",lq={lq}"])
def test_a_folder_that_cannot_be_listed_is_named(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = make_photos(tmp_path / "hq", 1) / "lost+found"
    make_photos(tmp_path / "lq", 1)
    lost.mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if path == str(lost):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # the tests may run as root, whom nobody forbids it
    (source,), skipped = find_sources([str(tmp_path / "hq") + end.format(lq=tmp_path / "lq")], 32, 4)
    assert names(source) == ["0.png"]
    assert skipped == [Skipped(lost, "cannot be listed: Permission denied")]


def test_small_and_broken_photos_are_skipped_with_a_reason(tmp_path: Path) -> None:
    make_photos(tmp_path, 1)
    Image.new("RGB", (31, 200)).save(tmp_path / "small.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not a photo")
    (source,), skipped = find_sources([str(tmp_path)], 32, 4)
    assert names(source) == ["0.png"]
    reasons = {each.path.name: each.reason for each in skipped}
    assert "31x200 is smaller than the crop of 32" in reasons["small.png"]
    assert reasons["broken.jpg"].startswith("cannot be read")


def test_skipped_files_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "srcli"):
        tell_skipped([Skipped(Path(f"{i}.jpg"), "broken") for i in range(12)])
    assert len(caplog.messages) == 11
    assert "0.jpg" in caplog.messages[0]
    assert "2 more" in caplog.messages[10]


def test_every_source_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as caught:
        find_sources([str(tmp_path / "none"), str(tmp_path / "empty"), "x,weight=-1", "x,colour=red"], 32, 4)
    for part in ("none` does not exist", "no usable photos", "weight `-1`", "colour=red"):
        assert part in caught.value.message


def test_a_path_with_a_comma_is_a_path(tmp_path: Path) -> None:
    make_photos(tmp_path / "a,weight=3", 1)
    (source,), _ = find_sources([str(tmp_path / "a,weight=3")], 32, 4)
    assert source.weight == 1


def test_a_folder_with_a_comma_has_its_options_at_the_end(tmp_path: Path) -> None:
    make_photos(tmp_path / "a,b", 1)
    (source,), _ = find_sources([f"{tmp_path / 'a,b'},weight=2"], 32, 4)
    assert source.weight == 2
    assert names(source) == ["0.png"]


@pytest.mark.parametrize("text", ["", ",weight=2"])
def test_a_source_without_a_path_is_not_the_current_folder(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_photos(tmp_path))
    with pytest.raises(UsageError, match="names no path"):
        find_sources([text], 32, 4)


def test_a_list_that_windows_wrote_keeps_its_first_photo(tmp_path: Path) -> None:
    make_photos(tmp_path, 2)
    (tmp_path / "list.txt").write_text("0.png\n1.png\n", encoding="utf-8-sig")
    (source,), skipped = find_sources([str(tmp_path / "list.txt")], 32, 4)
    assert names(source) == ["0.png", "1.png"]
    assert skipped == []


def test_a_photo_under_two_names_is_held_out_of_all_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    twice = [Source(tuple(Photo(folder / f"{i}.png") for i in range(40))) for folder in (tmp_path, Path())]
    left, held = hold_out(twice, 8, seed=0)
    assert len(held) == 2
    assert not {photo.hq.resolve() for photo in held} & {photo.hq.resolve() for source in left for photo in source.photos}


def test_no_source_is_held_out_whole() -> None:
    large, small = Source(tuple(Photo(Path(f"{i}.png")) for i in range(159))), Source((Photo(Path("only.png")),), 5.0)
    for seed in range(60):
        left, held = hold_out([large, small], 8, seed)
        assert len(held) == 8
        assert left[1] == small


def test_validation_takes_a_twentieth_at_most_and_the_same_by_seed() -> None:
    photos = tuple(Photo(Path(f"{i}.png")) for i in range(100))
    left, held = hold_out([Source(photos)], 8, seed=1)
    assert len(held) == 5
    assert not set(held) & set(left[0].photos)
    assert hold_out([Source(photos)], 8, seed=1)[1] == held
    assert hold_out([Source(photos)], 8, seed=2)[1] != held
    assert hold_out([Source(photos[:19])], 8, seed=1) == ([Source(photos[:19])], [])


def test_pairs_of_equal_size_are_pairs_too(tmp_path: Path) -> None:
    make_photos(tmp_path / "hq", 1)
    (tmp_path / "lq").mkdir()
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(tmp_path / "lq/0.png")
    (source,), skipped = find_sources([f"{tmp_path / 'hq'},lq={tmp_path / 'lq'}"], 32, 4)
    assert len(source.photos) == 1
    assert skipped == []
