"""Object stores and web servers, as `srcli upscale` uses them; moto's S3 on loopback stands in for a store."""

from __future__ import annotations

import functools
import http.server
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from commands import in_process_of_its_own, start, upscale
from PIL import Image
from store_case import BUCKET, Server, files, running, without_credentials
from tiny_model import make_model

from srcli.remote import store
from srcli.remote.urls import Url

pytest.importorskip("moto", reason="the stand-in of a store: pip install 's3fs' 'moto[server]'")
pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("aws")) as server:
        yield server


@pytest.fixture(autouse=True)
def clean(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No faults, no connections and no objects of other tests; little patience."""
    monkeypatch.setattr(store, "FIRST_WAIT_S", 0.01)
    fsspec.filesystem("s3").clear_instance_cache()
    yield
    server.fail()
    for key in [each["Key"] for each in server.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]:
        server.client.delete_object(Bucket=BUCKET, Key=key)


@pytest.fixture
def single(models_file: Path, photo_folder: Path, tmp_path: Path) -> dict[str, bytes]:
    """What one run over the local folder gives, from a folder that is in the store as `photos`, too."""
    upscale(models_file, photo_folder, "-o", tmp_path / "single")
    return files(tmp_path / "single")


@pytest.fixture
def photos(server: Server, photo_folder: Path) -> str:
    server.put(photo_folder, "photos")
    server.log()
    return f"s3://{BUCKET}/photos"


def staging() -> list[Path]:
    return list((Path(os.environ["XDG_CACHE_HOME"]) / "srcli" / "staging").iterdir())


def test_a_prefix_becomes_what_a_folder_does_and_is_done_once(
    models_file: Path, server: Server, photos: str, single: dict[str, bytes], tmp_path: Path
) -> None:
    done = upscale(models_file, photos, "-o", f"s3://{BUCKET}/out", "--json", "--report", tmp_path / "report.jsonl")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 3
    assert server.objects("out") == single
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert lines[0] | {"model_seconds": 0} == {
        "input": f"{photos}/a.png",
        "output": f"s3://{BUCKET}/out/a.png",
        "status": "done",
        "reason": "",
        "input_size": [84, 60],
        "output_size": [336, 240],
        "model_seconds": 0,
    }
    assert staging() == []
    server.log()
    told = json.loads(upscale(models_file, photos, "-o", f"s3://{BUCKET}/out", "--json").stdout)
    assert (told["done"], told["skipped"], told["outdated"]) == (0, 3, 0)
    asked = server.log()
    assert sum("prefix=out" in line for line in asked) == 1
    assert sum(line.startswith("PUT") for line in asked) == 0, "there is nothing new to record"
    assert not [line for line in asked if ".png" in line or ".jpg" in line], "a listing and the ledger tell all"


def test_shards_of_a_prefix_make_the_whole(
    models_file: Path, server: Server, photos: str, single: dict[str, bytes], tmp_path: Path
) -> None:
    done = []
    for shard in ("1/2", "2/2"):
        report = ["--report", tmp_path / "report.jsonl"]
        run = upscale(models_file, photos, "-o", f"s3://{BUCKET}/out", "--json", "--shard", shard, *report)
        done.append(json.loads(run.stdout)["done"])
    assert (sum(done), min(done) < 3) == (3, True)
    assert server.objects("out") == single
    reports = [path.read_text().splitlines() for path in sorted(tmp_path.glob("report.*-of-2.jsonl"))]
    assert [len(lines) for lines in reports] == done


def test_photos_that_are_newer_than_their_results_are_told(
    models_file: Path, server: Server, photos: str, photo_folder: Path
) -> None:
    upscale(models_file, photos, "-o", f"s3://{BUCKET}/out")
    time.sleep(1.1)  # a listing's times are whole seconds
    server.put(photo_folder / "sub", "photos/sub")
    done = upscale(models_file, photos, "-o", f"s3://{BUCKET}/out", "--json")
    assert json.loads(done.stdout)["outdated"] == 1
    told = json.loads(upscale(models_file, photos, "-o", f"s3://{BUCKET}/out", "--json", "--overwrite").stdout)
    assert (told["done"], told["skipped"]) == (3, 0)


def test_either_side_may_be_a_folder(
    models_file: Path, server: Server, photos: str, photo_folder: Path, single: dict[str, bytes], tmp_path: Path
) -> None:
    assert upscale(models_file, photos, "-o", tmp_path / "out").returncode == 0
    assert files(tmp_path / "out") == single
    assert json.loads(upscale(models_file, photos, "-o", tmp_path / "out", "--json").stdout)["skipped"] == 3
    assert upscale(models_file, photo_folder, "-o", f"s3://{BUCKET}/out").returncode == 0
    assert server.objects("out") == single
    assert upscale(models_file, f"file://{photo_folder}", "-o", f"file://{tmp_path}/again").returncode == 0
    assert files(tmp_path / "again") == single


def test_one_photo_gets_the_name_that_is_given(models_file: Path, server: Server, photos: str, single: dict[str, bytes]) -> None:
    one = ["-o", f"s3://{BUCKET}/one/larger.png"]
    assert upscale(models_file, f"{photos}/a.png", *one).returncode == 0
    assert server.objects("one") == {"larger.png": single["a.png"]}
    assert json.loads(upscale(models_file, f"{photos}/a.png", *one, "--json").stdout)["skipped"] == 1
    done = upscale(models_file, photos, *one)
    assert done.returncode == 2
    assert "is a file name" in done.stderr


def test_faults_that_pass_are_tried_again(models_file: Path, server: Server, photos: str, single: dict[str, bytes]) -> None:
    server.fail(
        {"path": "list-type", "do": 503, "times": 2},
        {"method": "GET", "path": "a.png", "do": "cut", "times": 2},
        {"method": "GET", "path": "b.jpg", "do": 500, "times": 3},
        {"method": "GET", "path": "c.png", "do": 0.5},
        {"method": "PUT", "path": "a.png", "do": 503, "times": 4},
    )
    done = upscale(models_file, photos, "-o", f"s3://{BUCKET}/out")
    assert done.returncode == 0, done.stderr
    assert server.objects("out") == single
    asked = server.log()
    assert [sum(word in line for line in asked) for word in ("GET /bucket/photos/a.png", "PUT /bucket/out/a.png")] == [3, 5]


def test_objects_that_cannot_be_had_stop_no_others(
    models_file: Path, server: Server, photos: str, photo_folder: Path, single: dict[str, bytes]
) -> None:
    server.put(photo_folder, "photos/good")
    server.fail(
        {"method": "GET", "path": "photos/a.png", "times": 99, "do": "cut"},
        {"method": "GET", "path": "photos/b.jpg", "times": 99, "do": 500},
        {"method": "GET", "path": "photos/sub/c.png", "times": 99, "do": 403},
    )
    done = upscale(models_file, photos, "-o", f"s3://{BUCKET}/out", "--json")
    assert done.returncode == 1
    failed = {each["input"].removeprefix(photos): each for each in json.loads(done.stdout)["failed"]}
    assert "breaks off on its way" in failed["/a.png"]["reason"]
    assert "it answers 500" in failed["/b.jpg"]["reason"]
    assert "access is denied (AccessDenied)" in failed["/sub/c.png"]["reason"]
    assert all(each["hint"] for each in failed.values())
    assert server.objects("out") == {f"good/{name}": content for name, content in single.items()}
    server.fail()
    assert upscale(models_file, photos, "-o", f"s3://{BUCKET}/out").returncode == 0
    assert server.objects("out") == single | {f"good/{name}": content for name, content in single.items()}


def test_an_object_that_is_shorter_than_its_listing_says_is_no_photo(
    models_file: Path, server: Server, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store.Store.entries
    grown = lambda self, folder, **how: (each._replace(size=each.size + 1) for each in whole(self, folder, **how))  # noqa: E731
    monkeypatch.setattr(store.Store, "entries", grown)
    done = upscale(models_file, photos, "-o", f"s3://{BUCKET}/out", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert "it was cut off, or changed meanwhile" in told["failed"][0]["reason"]
    assert server.objects("out") == {}


def make_many(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.fromarray(np.full((8, 8 + index % 5, 3), index * 3 % 256, np.uint8)).save(folder / f"{index:03}.png")
    return folder


@pytest.mark.parametrize(("method", "count"), [("GET", 40), pytest.param("PUT", 240, marks=pytest.mark.slow)])
def test_a_store_that_dies_is_given_up_and_the_same_command_goes_on(
    models_file: Path, server: Server, tmp_path: Path, method: str, count: int
) -> None:
    folder, few = make_many(tmp_path / "many", count), ("--batch", 4)
    server.put(folder, "many")
    upscale(models_file, folder, "-o", tmp_path / "single", *few)
    server.fail({"method": method, "path": {"GET": "/many/", "PUT": "/out/"}[method], "after": 12, "times": 10**6, "do": 500})
    done = upscale(models_file, f"s3://{BUCKET}/many", "-o", f"s3://{BUCKET}/out", "--json", *few)
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["stopped"]["message"].endswith("it answers 500")
    assert "the run ended early" in done.stderr
    assert 4 <= len(told["failed"]) < count - 12, "not all that is left is tried"
    made = len(server.objects("out"))
    assert told["done"] == made
    assert made == 12 if method == "GET" else 0 < made < 12, "the ledger's objects are of the twelve"
    server.fail()
    assert upscale(models_file, f"s3://{BUCKET}/many", "-o", f"s3://{BUCKET}/out", *few).returncode == 0
    assert server.objects("out") == files(tmp_path / "single")


def test_work_begins_before_the_listing_ends(
    models_file: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put(make_many(tmp_path / "many", 48), "many")
    begun, waited = threading.Event(), []
    listed, put = store.Store.entries, store.Store.put

    def slowly(self: store.Store, folder: Url, *, recursive: bool = True) -> Iterator[store.Entry]:
        for index, each in enumerate(listed(self, folder, recursive=recursive)):
            if index == 47:
                waited.append(begun.wait(100))
            yield each

    def told(self: store.Store, path: Path, url: Url) -> None:
        put(self, path, url)
        if url.name.endswith(".png"):
            begun.set()

    monkeypatch.setattr(store.Store, "entries", slowly)
    monkeypatch.setattr(store.Store, "put", told)
    assert upscale(models_file, f"s3://{BUCKET}/many", "-o", f"s3://{BUCKET}/out").returncode == 0
    assert waited == [True]
    assert len(server.objects("out")) == 48


def test_web_servers_give_single_photos_and_lists_hold_urls(
    models_file: Path, server: Server, photos: str, photo_folder: Path, single: dict[str, bytes], tmp_path: Path
) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(photo_folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{web.server_port}"
        done = upscale(models_file, f"{address}/a.png?key=secret", "-o", f"s3://{BUCKET}/web", "--json")
        assert done.returncode == 0, done.stderr
        assert server.objects("web") == {"a.png": single["a.png"]}
        listing = tmp_path / "list.txt"
        listing.write_text(f"{address}/a.png\n{address}/sub/c.png\n{address}/none.png?key=secret\n")
        done = upscale(models_file, "--files-from", listing, "-o", tmp_path / "listed", "--json")
        assert done.returncode == 1
        assert files(tmp_path / "listed") == {name: single[name] for name in ("a.png", "sub/c.png")}
        assert "none.png?…` does not exist" in done.stderr
        assert "secret" not in done.stderr + done.stdout
        for wrong in (f"{address}/", f"{address}/sub/"):
            assert "cannot be listed" in upscale(models_file, wrong, "-o", tmp_path / "x").stderr
        assert "takes no results" in upscale(models_file, photos, "-o", f"{address}/out").stderr
        web.shutdown()
    listing.write_text(f"{photos}/sub/c.png\n{photos}/b.jpg\n")
    assert upscale(models_file, "--files-from", listing, "-o", f"s3://{BUCKET}/listed").returncode == 0
    assert server.objects("listed") == {name: single[name] for name in ("b.jpg", "sub/c.png")}


def test_a_dry_run_fetches_a_few_and_puts_nothing(models_file: Path, server: Server, tmp_path: Path) -> None:
    server.put(make_many(tmp_path / "many", 20), "many")
    server.log()
    done = upscale(models_file, f"s3://{BUCKET}/many", "-o", f"s3://{BUCKET}/out", "--dry-run", "--json")
    told = json.loads(done.stdout)
    asked = server.log()
    assert sum("GET /bucket/many/" in line for line in asked) == 4
    assert not [line for line in asked if line.startswith("PUT")]
    assert len(told["planned"]) == 20
    assert told["planned"][3]["output"] == f"s3://{BUCKET}/out/003.png"
    assert told["megapixels"] == pytest.approx(20 * 8 * 10 * 16 / 1e6, rel=0.2)
    assert told["estimated_seconds"] > 0
    done = upscale(models_file, f"s3://{BUCKET}/many", "-o", f"s3://{BUCKET}/out", "--dry-run")
    assert "20 to do (about 0.02" in done.stderr
    assert "judged by the first 4" in done.stderr


def test_what_is_wrong_with_a_store_is_named_before_any_work(
    models_file: Path, server: Server, photos: str, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"s3://{BUCKET}/out"

    def told(*arguments: object) -> tuple[int, str]:
        fsspec.filesystem("s3").clear_instance_cache()
        done = upscale(models_file, *arguments)
        assert done.stderr.count("hint:") == 1
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    assert told(photos, "-o", "s3://no-such-bucket/out")[0] == 2
    assert "there is no bucket `no-such-bucket`" in told("s3://no-such-bucket/photos", "-o", out)[1]
    code, text = told(f"s3://{BUCKET}/none", "-o", out)
    assert (code, f"`s3://{BUCKET}/none` does not exist" in text) == (2, True)
    assert f"lies in the output `s3://{BUCKET}`" in told(photos, "-o", f"s3://{BUCKET}/")[1]
    assert "of a kind that is not known" in told("ftp://host/a.png", "-o", out)[1]
    assert "names no bucket" in told(photos, "-o", "s3://")[1]
    assert "`--lambda-map` leads local photos only" in told(photos, "-o", out, "--lambda-map", photo_folder)[1]
    assert "is not a webp file" in told(f"{photos}/a.png", "-o", f"{out}/a.png", "--format", "webp")[1]
    assert "share local folders only" in told(photos, "-o", out, "--ray-address", "auto")[1]
    assert "has the name of a picture" in told(photos, "-o", out, "--report", photo_folder / "a.png")[1]
    assert (photo_folder / "a.png").stat().st_size
    assert "is at a URL" in told(photos, "-o", out, "--report", f"s3://{BUCKET}/report.jsonl")[1]
    for do, words in ((403, "access is denied (AccessDenied)"), (404, "there is no bucket"), (500, "it answers 500")):
        server.fail({"do": do, "times": 99})
        assert words in told(photos, "-o", out)[1]
    server.fail()
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        code, text = told(photos, "-o", out)
        assert code == 1
        assert "cannot be reached" in text
        assert "`AWS_ENDPOINT_URL`, which is `http://127.0.0.1:9`" in text
    with monkeypatch.context() as patch:
        without_credentials(patch)
        code, text = told(photos, "-o", out)
        assert code == 2
        assert f"there are no credentials for `s3://{BUCKET}`" in text
        assert "`AWS_PROFILE`" in text
    for scheme, extra in (("s3", "s3"), ("gs", "gcs"), ("az", "azure"), ("https", "http")):
        with monkeypatch.context() as patch:
            patch.setattr(store.importlib.util, "find_spec", lambda name: None)
            code, text = told(f"{scheme}://{BUCKET}/a.png", "-o", "here")
            assert code == 2
            assert f"pip install 'srcli[{extra}]'" in text


@pytest.mark.slow
def test_a_killed_run_leaves_whole_objects_and_the_same_command_goes_on(
    models_file: Path, server: Server, tmp_path: Path
) -> None:
    folder = make_many(tmp_path / "many", 60)
    server.put(folder, "many")
    upscale(models_file, folder, "-o", tmp_path / "single")
    single = files(tmp_path / "single")
    options = ["--models-file", models_file, "--model", "small", "--device", "cpu", "--dtype", "fp32"]
    command = ["upscale", f"s3://{BUCKET}/many", "-o", f"s3://{BUCKET}/out", *options]
    for wanted in (1, 20, 45):
        server.fail({"method": "PUT", "path": "out", "times": 10**6, "do": 0.3})
        process = start(*command)
        while len(server.names("out")) < wanted:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(staging()) == 1
        there = server.objects("out")
        assert there == {name: single[name] for name in there}
    server.fail()
    assert in_process_of_its_own(*command).returncode == 0
    assert server.objects("out") == single
    assert staging() == []


def test_an_interrupted_run_puts_what_it_has_restored(
    models_file: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put(make_many(tmp_path / "many", 20), "many")
    from srcli.cli import upscale_stores
    from srcli.remote import transit

    monkeypatch.setattr(transit, "BEHIND", 4)
    monkeypatch.setattr(transit, "RECORDED_AT_ONCE", 2)
    add = upscale_stores.Summary.add

    def interrupted(self: upscale_stores.Summary, outcome: object) -> None:
        add(self, outcome)  # type: ignore[arg-type]
        if self.done == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(upscale_stores.Summary, "add", interrupted)
    done = upscale(models_file, f"s3://{BUCKET}/many", "-o", f"s3://{BUCKET}/out", "--json")
    assert done.returncode == 130
    assert 5 <= json.loads(done.stdout)["done"] == len(server.objects("out")) < 20
    assert staging() == []


def test_names_follow_the_rules_of_folders(models_file: Path, server: Server, tmp_path: Path, photo: np.ndarray) -> None:
    folder = tmp_path / "photos"
    for name in ("a.gif", "a.png", "b.bmp", ".hidden.png", "sub/a.gif", "read.txt", "layers.psd"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[:8, :9]).save(folder / name, format="PNG")
    server.put(folder, "photos")
    options = ["--no-recursive", "--format", "webp", "--suffix", "_x4", "--json"]
    here = json.loads(upscale(models_file, folder, "-o", tmp_path / "out", *options).stdout)
    there = json.loads(upscale(models_file, f"s3://{BUCKET}/photos", "-o", f"s3://{BUCKET}/out", *options).stdout)
    assert server.objects("out") == files(tmp_path / "out")
    for told in (here, there):
        assert [told[key] for key in ("done", "left_out", "others")] == [3, {".psd": 1}, {".txt": 1, "hidden file": 1}]


def test_names_that_could_lead_elsewhere_are_refused(models_file: Path, server: Server, photos: str, tmp_path: Path) -> None:
    for key in ("photos/../../evil.png", "photos//twice.png"):
        server.client.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    done = upscale(models_file, photos, "-o", tmp_path / "deep" / "out", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["done"] == 3
    assert ["cannot be a file below a folder" in each["reason"] for each in told["failed"]] == [True, True]
    assert not list(tmp_path.rglob("evil.png"))
