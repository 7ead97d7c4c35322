"""Which files are taken, and what they become."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from files_case import make

from srcli.errors import UsageError
from srcli.images.files import Job, is_done, plan_jobs
from srcli.images.search import LeftOut
from srcli.images.suffixes import INPUT_SUFFIXES, OUTPUT_FORMATS, format_of


def pairs(jobs: list[Job]) -> list[tuple[str, str]]:
    return [(job.source.as_posix(), job.target.as_posix()) for job in jobs]


def test_a_folder_keeps_its_tree_in_order(here: Path) -> None:
    make("in/b.jpg", "in/a.png", "in/sub/deep/c.TIF", "in/sub/d.webp", "in/notes.txt", "in/.hidden.png", "in/.git/e.png")
    assert pairs(plan_jobs(["in"], Path("out"))) == [
        ("in/a.png", "out/a.png"),
        ("in/b.jpg", "out/b.jpg"),
        ("in/sub/d.webp", "out/sub/d.webp"),
        ("in/sub/deep/c.TIF", "out/sub/deep/c.TIF"),
    ]


def test_not_recursive_takes_the_folder_alone(here: Path) -> None:
    make("in/a.png", "in/sub/b.png")
    assert pairs(plan_jobs(["in"], Path("out"), recursive=False)) == [("in/a.png", "out/a.png")]


@pytest.mark.parametrize("suffix", sorted(INPUT_SUFFIXES))
def test_every_input_suffix_is_found_in_any_case(here: Path, suffix: str) -> None:
    make(f"in/a{suffix}", f"in/b{suffix.upper()}")
    assert len(plan_jobs(["in"], Path("out"))) == 2


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.jpg", ["out/a.jpg"]),
        ("in/*", ["out/a.jpg", "out/x/b.jpg", "out/x/y/c.jpg", "out/z/d.png"]),
        ("in/*/", ["out/x/b.jpg", "out/x/y/c.jpg", "out/z/d.png"]),
        ("in/**/*.jpg", ["out/a.jpg", "out/x/b.jpg", "out/x/y/c.jpg"]),
        ("**/*.jpg", ["out/in/a.jpg", "out/in/x/b.jpg", "out/in/x/y/c.jpg"]),
        ("in/[xz]/?.*", ["out/x/b.jpg", "out/z/d.png"]),
        ("in/x/*", ["out/b.jpg", "out/y/c.jpg"]),
        ("in/*.psd", ["out/f.png"]),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_globs_keep_the_tree_below_their_fixed_part(here: Path, pattern: str, expected: list[str], absolute: bool) -> None:
    make("in/a.jpg", "in/x/b.jpg", "in/x/y/c.jpg", "in/z/d.png", "in/notes.txt", "in/README", "in/f.psd")
    jobs = plan_jobs([str(here / pattern) + "/" * pattern.endswith("/") if absolute else pattern], Path("out"))
    assert sorted(job.target.as_posix() for job in jobs) == expected


def test_a_path_that_exists_is_no_glob(here: Path) -> None:
    make("a[1].png", "a1.png")
    assert pairs(plan_jobs(["a[1].png"], Path("out"))) == [("a[1].png", "out/a[1].png")]


def test_a_named_file_is_taken_whatever_its_name(here: Path) -> None:
    make("scan", ".hidden.jpg", "photo.xyz")
    assert pairs(plan_jobs(["scan", ".hidden.jpg", "photo.xyz"], Path("out"))) == [
        ("scan", "out/scan.png"),
        (".hidden.jpg", "out/.hidden.jpg"),
        ("photo.xyz", "out/photo.png"),
    ]


@pytest.mark.parametrize(
    ("name", "format", "suffix", "target"),
    [
        ("a.JPG", None, "", "a.JPG"),
        ("a.jpeg", None, "_x4", "a_x4.jpeg"),
        ("a.b.tiff", None, "_x4", "a.b_x4.tiff"),
        ("a.gif", None, "", "a.png"),
        ("a.AVIF", None, "_x4", "a_x4.AVIF"),
        ("a.HEIC", None, "_x4", "a_x4.png"),
        ("a.jfif", None, "", "a.jfif"),
        ("a.png", "jpeg", "", "a.jpg"),
        ("a.jpeg", "jpeg", "", "a.jpg"),
        ("a.png", "tiff", "", "a.tif"),
        ("a.b", "webp", "", "a.webp"),
    ],
)
def test_names_of_targets(here: Path, name: str, format: str | None, suffix: str, target: str) -> None:
    make(name)
    assert pairs(plan_jobs([name], Path("out"), format=format, suffix=suffix)) == [(name, f"out/{target}")]


@pytest.mark.parametrize("output", ["b.png", "new/folder/b.JPG", "b.tif"])
def test_one_file_may_go_to_a_file(here: Path, output: str) -> None:
    make("a.png")
    assert pairs(plan_jobs(["a.png"], Path(output))) == [("a.png", output)]


def test_a_folder_named_like_an_image_is_a_folder(here: Path) -> None:
    make("a.png")
    Path("b.png").mkdir()
    assert pairs(plan_jobs(["a.png"], Path("b.png"))) == [("a.png", "b.png/a.png")]


def test_an_output_inside_the_input_is_not_read(here: Path) -> None:
    make("in/a.png", "in/out/a.png", "in/outer/b.png", "in/out/sub/c.png")
    wanted = [("in/a.png", "in/out/a.png"), ("in/outer/b.png", "in/out/outer/b.png")]
    assert pairs(plan_jobs(["in"], Path("in/out"))) == wanted
    assert pairs(plan_jobs(["in/**/*.png"], Path("in/out"))) == wanted
    assert pairs(plan_jobs(["in/*"], Path("in/out"))) == [wanted[0], ("in/outer/b.png", "in/out/outer/b.png")]


def test_an_input_inside_the_output_is_read_in_full(here: Path) -> None:
    make("in/a.png", "in/sub/b.png")
    assert pairs(plan_jobs(["in"], Path())) == [("in/a.png", "a.png"), ("in/sub/b.png", "sub/b.png")]


def test_files_beside_their_results(here: Path) -> None:
    make("in/a.png", "in/sub/b.png")
    assert pairs(plan_jobs(["in"], Path("in"), suffix="_x4")) == [
        ("in/a.png", "in/a_x4.png"),
        ("in/sub/b.png", "in/sub/b_x4.png"),
    ]


def test_a_file_given_twice_is_taken_once(here: Path) -> None:
    make("in/a.png", "in/sub/b.png")
    jobs = plan_jobs(["in", "in/a.png", "./in/../in/a.png", str(here / "in"), "in/**/*.png", "in/sub"], Path("out"))
    assert pairs(jobs) == [("in/a.png", "out/a.png"), ("in/sub/b.png", "out/sub/b.png")]


def test_links_are_files_of_their_own_but_no_folders(here: Path) -> None:
    make("in/a.png", "elsewhere/b.png")
    Path("in/link.png").symlink_to("a.png")
    Path("in/folder").symlink_to(here / "elsewhere")
    Path("in/loop").symlink_to(here / "in")
    assert [target for _, target in pairs(plan_jobs(["in"], Path("out")))] == ["out/a.png", "out/link.png"]


def test_all_missing_inputs_are_named_at_once(here: Path) -> None:
    make("in/notes.txt", "good.png")
    with pytest.raises(UsageError) as caught:
        plan_jobs(["gone.png", "good.png", "in", "none/*.png"], Path("out"))
    message = caught.value.message
    assert "`gone.png` does not exist" in message
    assert "`in` is a folder without images" in message
    assert "`none/*.png` matches no images" in message
    assert "good.png" not in message


def test_an_unreadable_folder_is_not_passed_over(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("in/a.png", "in/locked/b.png")
    scan = os.scandir

    def locked(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)  # the tests may run as root, whom no mode keeps out
    with pytest.raises(UsageError, match="`in/locked` cannot be listed: Permission denied"):
        plan_jobs(["in"], Path("out"))


def test_files_that_differ_by_their_extension_only_keep_it_in_the_names_of_results(here: Path) -> None:
    make("in/a.gif", "in/a.png", "in/a.bmp", "in/b.gif", "in/c.gif", "in/c.bmp")
    wanted = {"a.bmp": "a.bmp.png", "a.gif": "a.gif.png", "a.png": "a.png", "b.gif": "b.png"}
    wanted |= {"c.bmp": "c.bmp.png", "c.gif": "c.gif.png"}
    assert pairs(plan_jobs(["in"], Path("out"))) == [(f"in/{name}", f"out/{wanted[name]}") for name in sorted(wanted)]
    with_suffix = dict(pairs(plan_jobs(["in"], Path("out"), suffix="_x4", format="webp")))
    assert (with_suffix["in/a.png"], with_suffix["in/b.gif"]) == ("out/a.png_x4.webp", "out/b_x4.webp")


def test_files_of_one_name_are_named_and_the_others_are_done(here: Path) -> None:
    make("x/b.jpg", "y/b.jpg", "y/c.jpg", "in/a.gif", "in/a.png", "in/a.gif.png")
    left_out = LeftOut()
    inputs = ["x/b.jpg", "y", "in"]
    assert pairs(plan_jobs(inputs, Path("out"), left_out=left_out)) == [("y/c.jpg", "out/c.jpg"), ("in/a.png", "out/a.png")]
    assert [fault.path.as_posix() for fault in left_out.faults] == ["x/b.jpg", "y/b.jpg", "in/a.gif", "in/a.gif.png"]
    assert "`x/b.jpg` and `y/b.jpg` would both become `out/b.jpg`" in left_out.faults[1].reason
    with pytest.raises(UsageError, match=r"`x/b\.jpg` and `y/b.jpg` would both become"):
        plan_jobs(inputs, Path("out"))


@pytest.mark.parametrize(
    ("inputs", "output"), [(["in"], "in"), (["in/a.png"], "in/a.png"), (["in/a.png"], "other/../in"), (["in/*"], "in/")]
)
def test_an_original_is_never_overwritten(here: Path, inputs: list[str], output: str) -> None:
    make("in/a.png", "other/x")
    with pytest.raises(UsageError, match=r"`in/a\.png` would overwrite the input `in/a.png`"):
        plan_jobs(inputs, Path(output))


def test_an_original_is_not_overwritten_through_a_link_or_by_another(here: Path) -> None:
    make("in/a.png", "x/b_x4.png", "x/b.png")
    Path("out").symlink_to("in")
    with pytest.raises(UsageError, match="would overwrite the input"):
        plan_jobs(["in"], Path("out"))
    with pytest.raises(UsageError, match=r"`x/b\.png` would overwrite the input `x/b_x4.png`"):
        plan_jobs(["x/b.png", "x/b_x4.png"], Path("x"), suffix="_x4")


@pytest.mark.parametrize(
    ("inputs", "output", "options", "reason"),
    [
        ([], "out", {}, "no input"),
        (["a.png"], "out", {"format": "bmp"}, "`bmp` is not a format"),
        (["a.png"], "out", {"suffix": "../x"}, "path separator"),
        (["a.png"], "notes.txt", {}, "is no folder"),
        (["a.png", "b.png"], "c.png", {}, "more than one file"),
        (["*.png"], "c.png", {}, "more than one file"),
        (["."], "c.png", {}, "more than one file"),
        (["a.png"], "c.png", {"format": "jpeg"}, "is not a jpeg file"),
        (["a.png"], "c.png", {"suffix": "_x4"}, "gets no suffix"),
        (["gone.png"], "c.png", {}, "`gone.png` does not exist"),
        (["a.png"], "c.gif", {}, "`.gif` is not the suffix"),
        (["a.png"], "c.HEIC", {}, "`.HEIC` is not the suffix"),
        ([""], "out", {}, "an input is empty"),
        (["a.png", ""], "out", {}, "an input is empty"),
        (["x" * 300], "out", {}, "x` cannot be used: File name too long"),
        (["a.png"], "x" * 300, {}, "x` cannot be used: File name too long"),
        (["-"], "out", {}, "`-` is standard input, which cannot be read here"),
    ],
)
def test_requests_that_make_no_sense(here: Path, inputs: list[str], output: str, options: dict[str, str], reason: str) -> None:
    make("a.png", "b.png", "notes.txt")
    with pytest.raises(UsageError, match=reason):
        plan_jobs(inputs, Path(output), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "format"), [("a.PNG", "png"), ("a.jpg", "jpeg"), ("a.jpe", "jpeg"), ("a.tiff", "tiff"), ("a.webp", "webp")]
)
def test_format_of(name: str, format: str) -> None:
    assert format_of(Path(name)) == format


def test_format_of_knows_its_limits() -> None:
    assert {format_of(Path("a" + suffix)) for suffix in OUTPUT_FORMATS.values()} == set(OUTPUT_FORMATS)
    for name in ("a.gif", "a"):
        with pytest.raises(UsageError, match="is not the suffix"):
            format_of(Path(name))


def test_is_done(here: Path) -> None:
    make("full.png")
    Path("empty.png").touch()
    Path("folder.png").mkdir()
    assert is_done(Path("full.png"))
    assert not any(is_done(Path(name)) for name in ("empty.png", "folder.png", "gone.png", "full.png/inside"))


def test_planning_needs_the_standard_library_only() -> None:
    code = "import srcli.images.files, sys; print(*{'cv2', 'numpy', 'PIL', 'torch', 'tifffile'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[1]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert found.stdout.strip() == ""
