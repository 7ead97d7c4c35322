"""What is found in folders and by globs, and what is left out there."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from files_case import make

from srcli.errors import UsageError
from srcli.images.files import Job, plan_jobs
from srcli.images.search import LeftOut, find_files


def sources(jobs: list[Job]) -> list[str]:
    return [job.source.as_posix() for job in jobs]


@pytest.mark.parametrize("text", ["in", "in/*.png", "in/**/*.png"])
def test_results_beside_their_photos_are_no_photos(here: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    make("in/a.png", "in/b_x4.png")
    jobs = plan_jobs([text], Path("in"), suffix="_x4")
    make("in/a_x4.png", "in/b_x4_x4.png")
    with caplog.at_level(logging.INFO):
        assert plan_jobs([text], Path("in"), suffix="_x4") == jobs
    assert "files taken for results of this command: 2, `in/a_x4.png` for one" in caplog.text
    with pytest.raises(UsageError, match="would overwrite the input"):
        plan_jobs([text, "in/a_x4.png"], Path("in"), suffix="_x4")
    with pytest.raises(UsageError, match="would overwrite the input"):
        plan_jobs([text], Path("in"), suffix="_x4", overwrite=True)  # which of them are photos, nobody knows
    with pytest.raises(UsageError, match="would overwrite the input"):
        plan_jobs([text], Path("in"))


def test_converted_results_beside_their_photos_are_no_photos(here: Path) -> None:
    make("in/a.jpg", "in/a_x4.png")
    assert sources(plan_jobs(["in"], Path("in"), suffix="_x4", format="png")) == ["in/a.jpg"]


def test_a_photo_is_no_result_by_a_link_of_its_own(here: Path) -> None:
    make("in/a.png")
    Path("in/a_x4.png").symlink_to("a.png")
    with pytest.raises(UsageError, match="would overwrite the input"):
        plan_jobs(["in"], Path("in"), suffix="_x4")


@pytest.mark.parametrize("text", ["in", "in/*"])
def test_a_pipe_is_no_picture_and_a_broken_link_is_kept(here: Path, text: str) -> None:
    make("in/a.png")
    os.mkfifo("in/b.png")
    Path("in/c.png").symlink_to("gone.png")
    Path("in/d.png").symlink_to("b.png")
    assert sources(plan_jobs([text], Path("out"))) == ["in/a.png", "in/c.png"]
    with pytest.raises(UsageError, match=r"`in/b.png` is neither a file nor a folder"):
        plan_jobs(["in/b.png"], Path("out"))


def test_globs_follow_no_links_to_folders(here: Path) -> None:
    make("in/a.jpg", "in/sub/b.jpg", "elsewhere/c.jpg")
    Path("in/loop").symlink_to(".")
    Path("in/sub/link").symlink_to(here / "elsewhere")
    for text in ("in/**/*.jpg", "in/**", "in/*"):
        assert sources(plan_jobs([text], Path("out"))) == ["in/a.jpg", "in/sub/b.jpg"]


def test_a_glob_that_names_each_level_goes_through_links(here: Path) -> None:
    make("in/one/a.jpg", "elsewhere/a.jpg")
    Path("in/two").symlink_to(here / "elsewhere")
    assert sources(plan_jobs(["in/*/a.jpg"], Path("out"))) == ["in/one/a.jpg", "in/two/a.jpg"]
    assert sources(plan_jobs(["in/*"], Path("out"))) == ["in/one/a.jpg"]


def test_what_is_named_may_be_a_link_to_a_folder(here: Path) -> None:
    make("elsewhere/sub/c.jpg")
    Path("link").symlink_to("elsewhere")
    for text in ("link", "link/**", "link/*/*.jpg", "link/**/*.jpg"):
        assert sources(plan_jobs([text], Path("out"))) == ["link/sub/c.jpg"]


def test_pictures_of_other_kinds_are_counted(here: Path) -> None:
    make("in/a.png", "in/b.PSD", "in/sub/c.psd", "in/d.exr", "in/notes.txt", "in/.e.psd", "in/out/f.psd")
    for text in ("in", "in/*"):
        left_out = LeftOut()
        assert sources(plan_jobs([text, "in/d.exr"], Path("in/out"), left_out=left_out)) == ["in/a.png", "in/d.exr"]
        assert left_out.pictures == {Path("in/b.PSD"), Path("in/sub/c.psd"), Path("in/d.exr")}
        assert left_out.others[".txt"] == 1
    assert len(find_files(["in"], Path("in/out"))) == 1


def test_a_folder_of_other_kinds_is_told_as_such(here: Path) -> None:
    make("in/a.psd", "in/b.PSD", "in/c.exr", "in/notes.txt")
    with pytest.raises(UsageError, match=r"`in` is a folder without images, only 2 .psd, 1 .exr"):
        plan_jobs(["in"], Path("out"))


@pytest.mark.parametrize("text", ["~/a.png", "~/*.png", "~"])
def test_the_home_folder_has_its_short_name(here: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    make("home/a.png", "~nobody-of-that-name.png")
    monkeypatch.setenv("HOME", str(here / "home"))
    assert sources(plan_jobs([text], Path("out"))) == [(here / "home" / "a.png").as_posix()]
    assert sources(plan_jobs(["~nobody-of-that-name.png"], Path("out"))) == ["~nobody-of-that-name.png"]


def test_one_file_named_twice_may_go_to_a_file(here: Path) -> None:
    make("in/a.png")
    assert list(plan_jobs(["in", "in/a.png"], Path("b.png"))) == [Job(Path("in/a.png"), Path("b.png"))]
