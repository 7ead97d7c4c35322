"""Which objects are photos and what their results are called: as for folders, while the listing goes on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import fsspec
import pytest

from srcli.errors import UsageError
from srcli.images.files import plan_jobs
from srcli.images.search import LeftOut
from srcli.remote.known import Results
from srcli.remote.plan import Naming, Plan
from srcli.remote.staging import staged
from srcli.remote.store import Entry, Store, Stores
from srcli.remote.urls import Url, is_url, local, parsed, trees

NAMES = (
    *("a.gif", "a.png", "b.bmp", "c.png", "c.x.png", "c.gif", "c.y/z.png", "d.jpg", "d-1.jpg", "e.gif", "e.gif.png", "e.png"),
    *(".hidden.png", ".cache/f.png", "sub/a.gif", "sub/deep/a.jpg", "read.txt", "layers.psd", "UPPER.JPG"),
)


@pytest.fixture
def memory() -> Iterator[str]:
    """A store that lives in this process, and a folder in it with `NAMES`."""
    files = fsspec.filesystem("memory")
    for name in NAMES:
        files.pipe_file(f"memory://bucket/photos/{name}", b"x")
    yield "memory://bucket/photos"
    files.rm("/bucket", recursive=True)


def planned(*inputs: str, output: str = "memory://bucket/out", **settings: object) -> dict[str, str]:
    """Target -> source, below output and bucket; of faults, the reason."""
    plan = Plan(inputs, parsed(output), Stores(), **settings)  # type: ignore[arg-type]
    items = list(plan.items())
    return {
        str(item.source if item.fault else item.target).removeprefix(output).lstrip("/"): item.fault or str(item.source)
        for item in items
    }


@pytest.mark.parametrize("format", [None, "webp"])
@pytest.mark.parametrize("suffix", ["", "_x4"])
@pytest.mark.parametrize("recursive", [True, False])
def test_results_are_called_as_those_of_a_folder(
    memory: str, tmp_path: Path, format: str | None, suffix: str, recursive: bool
) -> None:
    for name in NAMES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"x")
    out, left_out = tmp_path / "out", LeftOut()
    jobs = plan_jobs(
        [str(tmp_path / "photos")], out, recursive=recursive, format=format, suffix=suffix, overwrite=True, left_out=left_out
    )
    wanted = {job.target.relative_to(out).as_posix(): job.source.relative_to(tmp_path / "photos").as_posix() for job in jobs}
    found = planned(memory, naming=Naming(format, suffix), recursive=recursive)
    clashes = [source for source, fault in found.items() if "both become" in fault]
    assert {target: source.removeprefix(f"{memory}/") for target, source in found.items() if target not in clashes} == wanted
    assert len(clashes) == len(left_out.faults)


def test_photos_of_a_folder_are_of_the_shard_that_they_are_of_on_the_disk(memory: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bmp").write_bytes(b"x")
    (item,) = Plan([str(tmp_path)], parsed("memory://bucket/out"), Stores()).items()
    assert (item.place, item.result) == ("sub/a.bmp", "sub/a.png")


def test_globs_take_what_they_take_on_the_disk(memory: str) -> None:
    assert list(planned(f"{memory}/*.gif")) == ["a.png", "c.png", "e.png"]
    assert set(planned(f"{memory}/**/a.*")) == {"a.gif.png", "a.png", "sub/a.png", "sub/deep/a.jpg"}
    assert set(planned(f"{memory}/s*")) == {"sub/a.png", "sub/deep/a.jpg"}
    with pytest.raises(UsageError, match=r"memory://bucket/photos/\*\.tif` matches no images"):
        planned(f"{memory}/*.tif")


def test_several_inputs_share_no_result(memory: str) -> None:
    found = planned(f"{memory}/sub", f"{memory}/sub/a.gif", f"{memory}/a.png")
    assert found["a.png"] == f"{memory}/sub/a.gif"
    assert found[f"{memory}/a.png"] == "another input becomes `memory://bucket/out/a.png`, too"
    with pytest.raises(UsageError, match="`memory://bucket/none` does not exist"):
        planned(f"{memory}/sub", "memory://bucket/none")


def test_an_output_among_the_photos_is_left_out_and_one_around_them_refused(memory: str) -> None:
    fsspec.filesystem("memory").pipe_file(f"{memory}/out/done.png", b"x")
    assert "done.png" not in planned(memory, output=f"{memory}/out")
    for output in ("memory://bucket", memory):
        with pytest.raises(UsageError, match="lies in the output"):
            planned(memory, output=output)


def test_results_are_looked_up_in_32_bytes_for_each() -> None:
    folder = parsed("s3://bucket/out")
    results = Results(Entry(folder.joined(f"{index:06}.png"), index % 2, 5.0 + index) for index in range(20_000))
    assert all(results.made(folder.joined(f"{index:06}.png")) == (1, 5.0 + index) for index in range(1, 20_000, 2))
    assert results.made(folder.joined("000008.png")) is None, "it is empty"
    assert results.made(folder.joined("7.png")) is None
    assert results.nbytes == 32 * 10_000


def test_nothing_waits_for_the_end_of_an_endless_listing(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(self: Store, folder: Url, *, recursive: bool = True) -> Iterator[Entry]:
        if folder.key == "out":
            return
        for index in itertools.count():
            yield Entry(folder.joined(f"{index:012}.png"), 1, None)

    monkeypatch.setattr(Store, "entries", endless)
    items = Plan([memory], parsed("memory://bucket/out"), Stores()).items()
    assert [item.target.name for item in itertools.islice(items, 3)] == [f"{index:012}.png" for index in range(3)]


def test_urls_are_told_from_paths_and_show_no_secrets() -> None:
    assert is_url("s3://a")
    assert not is_url("s3:/a")
    assert local("file:///a/b%20c.png") == "/a/b c.png"
    web = parsed("https://host/a%20b/c.png?key=secret")
    assert (str(web), web.name, web.folder) == ("https://host/a%20b/c.png?…", "c.png", ("a b",))
    assert web.address == "https://host/a%20b/c.png?key=secret"
    assert parsed("S3A://bucket/x") == parsed("s3://bucket/x")
    listed = [parsed(text) for text in ("https://one/a/b.png", "https://two/c.png")]
    assert trees(listed) == [PurePosixPath("one/a/b.png"), PurePosixPath("two/c.png")]
    assert trees([parsed("s3://bucket/a/b/1.png"), parsed("s3://bucket/a/2.png")]) == [
        PurePosixPath("b/1.png"),
        PurePosixPath("2.png"),
    ]


def test_the_next_run_clears_up_after_a_killed_one_and_leaves_others_alone() -> None:
    with staged() as living:
        dead = living.parent / "dead"
        dead.mkdir()
        (dead / "in-use").touch()
        (dead / "photo.png").touch()
        with staged() as other:
            assert sorted(living.parent.iterdir()) == sorted([living, other])
        assert sorted(living.parent.iterdir()) == [living]
    assert not living.exists()
