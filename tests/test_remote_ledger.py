"""What outputs in stores know of their results; moto's S3 on loopback stands in for a store."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from commands import Done, srcli, start, upscale
from PIL import Image
from store_case import BUCKET, Server, files, running
from tiny_model import make_model

from srcli.remote import store, transit
from srcli.remote.known import Makers
from srcli.remote.ledger import OBJECT_BYTES, StoreLedger, found_in
from srcli.remote.store import Store
from srcli.remote.urls import parsed
from srcli.shards.ledger import Begun
from srcli.shards.shard import Shard

pytest.importorskip("moto", reason="the stand-in of a store: pip install 's3fs' 'moto[server]'")
pytest.importorskip("s3fs")

PHOTOS, OUT = f"s3://{BUCKET}/photos", f"s3://{BUCKET}/out"


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), semantic=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("aws")) as server:
        yield server


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve tiny photos in two folders."""
    return make(tmp_path_factory.mktemp("photos"), 12)


def make(folder: Path, count: int) -> Path:
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(3)
    for i in range(count):
        content = rng.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(content).save(folder / ("sub" if i % 3 else "") / f"{i:02}.png")
    return folder


@pytest.fixture(autouse=True)
def clean(server: Server, twelve: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The photos in the store and nothing else, no faults, no connections of other tests; little patience."""
    monkeypatch.setattr(store, "FIRST_WAIT_S", 0.01)
    fsspec.filesystem("s3").clear_instance_cache()
    server.put(twelve, "photos")
    server.log()
    yield
    server.fail()
    for key in [each["Key"] for each in server.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]:
        server.client.delete_object(Bucket=BUCKET, Key=key)


def told(done: Done) -> dict[str, Any]:
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def recorded(server: Server, prefix: str = "out") -> list[dict[str, Any]]:
    """The lines of all ledgers."""
    objects = server.objects(f"{prefix}/.srcli")
    return [json.loads(line) for name in sorted(objects) for line in objects[name].splitlines()]


@pytest.mark.parametrize("to_folder", [False, True])
def test_results_of_other_settings_are_named_and_redone_when_asked(
    models_file: Path, server: Server, tmp_path: Path, to_folder: bool
) -> None:
    options = [PHOTOS, "-o", tmp_path / "out" if to_folder else OUT, "--json"]
    results = lambda: files(tmp_path / "out") if to_folder else server.objects("out")  # noqa: E731
    assert told(upscale(models_file, *options))["done"] == 12
    before = results()
    other = upscale(models_file, *options, "--lambda-semantic", 0.5)
    assert (told(other)["skipped"], told(other)["other_settings"], told(other)["unknown_settings"]) == (12, 12, 0)
    assert "dials lambda_semantic was `1`, is `0.5`" in other.stderr
    planned = upscale(models_file, *options[:-1], "--lambda-semantic", 0.5, "--dry-run")
    assert "0 to do" in planned.stderr
    assert "12 done already (12 of them of other settings)" in planned.stderr
    if to_folder:
        (tmp_path / "out" / "00.png").unlink()
        (tmp_path / "out" / "03.png").write_bytes(b"of another program")
    else:
        server.client.delete_object(Bucket=BUCKET, Key="out/00.png")
        server.client.put_object(Bucket=BUCKET, Key="out/03.png", Body=b"of another program")
    mixed = upscale(models_file, *options, "--lambda-semantic", 0.5)
    assert [told(mixed)[key] for key in ("done", "skipped", "other_settings", "unknown_settings")] == [1, 11, 10, 1]
    assert "1 result is kept of which it is not known with what settings" in mixed.stderr
    mended = told(upscale(models_file, *options, "--overwrite=changed"))
    assert [mended[key] for key in ("done", "skipped", "other_settings", "unknown_settings")] == [2, 10, 0, 0]
    assert results() == before
    assert told(upscale(models_file, *options, "--overwrite=changed"))["skipped"] == 12


def test_photos_that_are_newer_are_told_and_done_again_when_asked(models_file: Path, server: Server, twelve: Path) -> None:
    options = [PHOTOS, "-o", OUT, "--json"]
    upscale(models_file, *options)
    time.sleep(1.1)  # a listing's times are whole seconds
    server.client.put_object(Bucket=BUCKET, Key="photos/00.png", Body=(twelve / "03.png").read_bytes())
    kept = upscale(models_file, *options)
    assert (told(kept)["skipped"], told(kept)["outdated"], told(kept)["unknown_settings"]) == (12, 1, 0)
    assert "1 photo is newer than its result" in kept.stderr
    assert told(upscale(models_file, *options, "--overwrite=changed"))["done"] == 1
    assert server.objects("out")["00.png"] == server.objects("out")["03.png"]


def test_status_tells_of_stores_as_of_folders(models_file: Path, server: Server, tmp_path: Path) -> None:
    for nothing in (OUT, "https://host/out"):
        none = srcli("status", nothing)
        assert (none.returncode, f"`{nothing}` has no ledger" in none.stderr) == (2, True)
    server.client.put_object(Bucket=BUCKET, Key="photos/broken.png", Body=b"no picture")
    owner = next(i for i in (1, 2, 3) if Shard(i, 3).has("broken.png"))
    first, last = (i for i in (1, 2, 3) if i != owner)

    def both(*options: object) -> list[dict[str, Any]]:
        """What is told of the store and of the folder, once the same was done for both."""
        for output in (OUT, tmp_path / "out") if options else ():
            upscale(models_file, PHOTOS, "-o", output, *options)
        here, there = srcli("status", tmp_path / "out", "--json"), srcli("status", OUT, "--json")
        assert told(here) == told(there)
        assert here.returncode == there.returncode
        return [told(there), {"code": there.returncode}]

    both("--shard", f"{owner}/3")
    status, code = both("--shard", f"{first}/3")
    assert (status["not_begun"], status["failed"], status["missing"], code) == (1, 1, 0, {"code": 1})
    assert status["shards"][owner - 1]["failed"][0]["input"] == f"{PHOTOS}/broken.png"
    assert "not begun" in srcli("status", OUT).stdout
    server.client.delete_object(Bucket=BUCKET, Key="photos/broken.png")
    both("--shard", f"{owner}/3")
    status, code = both("--shard", f"{last}/3")
    assert (status["planned"], status["done"], code) == (12, 12, {"code": 0})
    name = next(name for name in server.names("out") if Shard(last, 3).has(name))
    server.client.delete_object(Bucket=BUCKET, Key=f"out/{name}")
    (tmp_path / "out" / name).unlink()
    assert both()[0]["missing"] == 1
    status, code = both("--shard", "1/1")  # another division goes by what is there
    assert (status["planned"], status["done"], code) == (12, 12, {"code": 0})
    whole = srcli("status", OUT)
    assert (whole.returncode, whole.stdout) == (0, "")
    assert "12 of 12 photos done, 0 failed, 0 missing" in whole.stderr


def test_status_in_the_middle_of_a_run(models_file: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from srcli.engine.restore import Engine

    monkeypatch.setattr(transit, "RECORD_S", 0)
    restore, seen, listed = Engine.restore, [], threading.Event()
    entries = Store.entries

    def slowly(self: Store, folder: Any, **how: Any) -> Iterator[Any]:
        for index, each in enumerate(entries(self, folder, **how)):
            if folder.key == "photos" and index == 11:
                listed.wait(60)
            yield each

    def asking(self: Engine, *rest: Any) -> Any:
        seen.append(told(srcli("status", OUT, "--json")))
        if not listed.is_set():
            assert "how many there are is known when all are listed" in srcli("status", OUT).stderr
            listed.set()
        return restore(self, *rest)

    monkeypatch.setattr(Engine, "restore", asking)
    monkeypatch.setattr(Store, "entries", slowly)
    assert upscale(models_file, PHOTOS, "-o", OUT, "--batch", 1).returncode == 0
    assert len(seen) == 12
    assert (seen[0]["planned"], seen[0]["not_listed"]) == (0, 1)
    assert (seen[-1]["planned"], seen[-1]["not_listed"]) == (12, 0)
    assert 0 < seen[-1]["done"] < 12
    assert seen[-1]["done"] + seen[-1]["missing"] == 12


@pytest.mark.parametrize("shards", [(Shard(1, 2), Shard(2, 2)), (None, None)])
def test_runs_that_end_at_once_lose_nothing_of_each_other(
    server: Server, tmp_path: Path, shards: tuple[Shard | None, Shard | None]
) -> None:
    output = parsed(OUT)
    place = Store(output)
    before = found_in(place, output)
    ledgers = [StoreLedger(place, output, {"a": 1}, shard, before, tmp_path) for shard in shards]
    server.fail({"method": "PUT", "path": r"\.srcli", "times": 99, "do": 0.2})
    together = threading.Barrier(2)

    def run(index: int) -> None:
        with ledgers[index].kept_by(None):
            ledgers[index].record(f"{index}.png", 7)
            together.wait(60)
            ledgers[index].commit()

    threads = [threading.Thread(target=run, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for shard in shards:
        makers = Makers(StoreLedger(place, output, {"a": 2}, shard, found_in(place, output), tmp_path))
        assert [makers.of(f"{index}.png", 7) for index in (0, 1)] == [ledgers[0].made_with] * 2
        assert makers.of("0.png", 8) is None


@pytest.mark.slow
def test_shards_at_once_make_the_whole(models_file: Path, server: Server, twelve: Path) -> None:
    options = ["--models-file", models_file, "--model", "small", "--device", "cpu", "--dtype", "fp32"]
    runs = [start("upscale", PHOTOS, "-o", OUT, *options, "--shard", f"{index}/2") for index in (1, 2)]
    for run in runs:
        run.communicate(timeout=600)
    assert [run.returncode for run in runs] == [0, 0]
    assert {line["result"] for line in recorded(server) if "result" in line} == files(twelve).keys()
    done = told(upscale(models_file, PHOTOS, "-o", OUT, "--json"))
    assert (done["skipped"], done["unknown_settings"], done["other_settings"]) == (12, 0, 0)


def test_a_result_is_recorded_before_it_is_put(models_file: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transit, "RECORDED_AT_ONCE", 3)
    put = Store.put

    def checked(self: Store, path: Path, url: Any) -> None:
        if url.name.endswith(".png"):
            lines = {line.get("result"): line for line in recorded(server)}
            assert lines[url.key.removeprefix("out/")]["bytes"] == path.stat().st_size
        put(self, path, url)

    monkeypatch.setattr(Store, "put", checked)
    assert told(upscale(models_file, PHOTOS, "-o", OUT, "--json"))["done"] == 12


def test_faults_of_the_ledger_that_pass_are_tried_again(models_file: Path, server: Server) -> None:
    server.fail(
        {"method": "PUT", "path": r"\.srcli", "times": 4, "do": 500},
        {"method": "PUT", "path": r"\.srcli", "times": 3, "after": 1, "do": 503},
    )
    assert told(upscale(models_file, PHOTOS, "-o", OUT, "--json"))["done"] == 12
    server.fail({"method": "GET", "path": r"\.srcli", "times": 4, "do": "cut"})
    server.log()
    again = told(upscale(models_file, PHOTOS, "-o", OUT, "--json"))
    assert (again["skipped"], again["unknown_settings"]) == (12, 0)
    assert sum("GET /bucket/out/.srcli/" in line for line in server.log()) == 4 + 2, (
        "and read once more to see that nothing is new"
    )


def test_a_ledger_that_cannot_be_read_is_told(models_file: Path, server: Server) -> None:
    upscale(models_file, PHOTOS, "-o", OUT)
    for fault, words in (("cut", "breaks off on its way"), (403, "access is denied")):
        server.fail({"method": "GET", "path": r"\.srcli/of-1", "times": 99, "do": fault})
        for done in (upscale(models_file, PHOTOS, "-o", OUT, "--lambda-semantic", 0.5), srcli("status", OUT)):
            assert done.returncode in (1, 2)
            assert words in done.stderr
            assert ".srcli/of-1" in done.stderr
            assert "other settings" not in done.stderr
    server.fail()
    assert told(upscale(models_file, PHOTOS, "-o", OUT, "--json"))["unknown_settings"] == 0


def test_what_cannot_be_recorded_is_not_put(
    models_file: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that takes no ledger is found out before any work, or ends the run; the same command goes on."""
    server.fail({"method": "PUT", "path": r"\.srcli", "times": 999, "do": 403})
    refused = upscale(models_file, PHOTOS, "-o", OUT)
    assert (refused.returncode, "access is denied" in refused.stderr) == (2, True)
    assert "photos upscaled" not in refused.stderr
    monkeypatch.setattr(transit, "RECORDED_AT_ONCE", 2)
    server.put(make(tmp_path / "many", 60), "photos")
    server.fail({"method": "PUT", "path": r"\.srcli", "after": 3, "times": 999, "do": 500})
    broken = upscale(models_file, PHOTOS, "-o", OUT, "--json", "--batch", 1)
    assert broken.returncode == 1
    assert "the run ended early" in broken.stderr
    assert "`srcli status` will not know how this run has ended" in broken.stderr
    assert 0 < told(broken)["done"] == len(server.names("out")) < 60
    server.fail()
    status = told(srcli("status", OUT, "--json"))
    assert status["done"] == told(broken)["done"]
    gone_on = told(upscale(models_file, PHOTOS, "-o", OUT, "--json"))
    assert (gone_on["skipped"], gone_on["unknown_settings"]) == (told(broken)["done"], 0)
    assert srcli("status", OUT).returncode == 0


@pytest.mark.slow
def test_a_store_that_dies_in_mid_run_leaves_a_ledger_of_all_that_is_there(
    models_file: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transit, "RECORDED_AT_ONCE", 2)
    server.put(make(tmp_path / "many", 60), "photos")
    server.fail({"path": "photos/.*png|out", "after": 60, "times": 10**6, "do": 500})
    dead = upscale(models_file, PHOTOS, "-o", OUT, "--json", "--batch", 1)
    assert dead.returncode == 1
    assert told(dead)["stopped"]["message"].endswith("it answers 500")
    server.fail()
    there = len(server.names("out"))
    assert 0 < there < 60
    gone_on = told(upscale(models_file, PHOTOS, "-o", OUT, "--json"))
    assert (gone_on["done"], gone_on["skipped"], gone_on["unknown_settings"]) == (60 - there, there, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 8])
def test_kills_leave_no_result_of_unknown_settings(models_file: Path, server: Server, tmp_path: Path, kills: int) -> None:
    folder = make(tmp_path / "many", 12 + 8 * kills)
    server.put(folder, "photos")
    options = ["--models-file", models_file, "--model", "small", "--device", "cpu", "--dtype", "fp32"]
    server.fail({"method": "PUT", "path": "out/.*png", "times": 10**6, "do": 0.2})
    for kill in range(kills):
        before = len(server.names("out"))
        process = start("upscale", PHOTOS, "-o", OUT, *options, "--shard", f"{1 + kill % 2}/2")
        while len(server.names("out")) < before + 1 + kill % 4 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    server.fail()
    last = told(upscale(models_file, PHOTOS, "-o", OUT, "--json"))
    assert (last["unknown_settings"], last["other_settings"], last["failed"]) == (0, 0, [])
    upscale(models_file, folder, "-o", tmp_path / "whole")
    assert server.objects("out") == files(tmp_path / "whole")


def test_a_long_ledger_becomes_several_objects(server: Server, tmp_path: Path) -> None:
    output, settings = parsed(OUT), {"a": 1}
    names = [f"folder/{i:06}.png" for i in range(1500)]
    written = StoreLedger(Store(output), output, settings, None, found_in(Store(output), output), tmp_path)
    with written.kept_by(Begun(1500, 0)):
        for index, name in enumerate(names):
            written.record(name, index)
            if index % 100 == 99:
                written.commit()
    objects = server.objects("out/.srcli/of-1")
    assert 1 < len(objects) < 5
    assert max(map(len, objects.values())) < OBJECT_BYTES + 100 * 120
    read = StoreLedger(Store(output), output, settings, None, found_in(Store(output), output), tmp_path)
    assert list(read.told(read.own())) == [(name, index, read.made_with) for index, name in enumerate(names)]
    assert list(read.others()) == []
    assert not list(tmp_path.glob("of-*"))
