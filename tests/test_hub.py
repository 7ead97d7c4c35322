"""Downloads from the model hub, against a hub on loopback that fails on demand."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hub import COMMIT, Hub, git_sha1, running_hub

from srcli.errors import ModelError
from srcli.rows.base import BaseSource
from srcli.store.hub import HubFile, Plan, cached_base, fetch_base, fetch_config

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
}
UNET = "unet/diffusion_pytorch_model.safetensors"
HALF_UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
WANTED = {
    "model_index.json": json.dumps(INDEX).encode(),
    "unet/config.json": b"{}",
    UNET: b"unet" * 5000,
    "vae/config.json": b"{ }",
    "vae/diffusion_pytorch_model.safetensors": b"vae" * 100,
    "text_encoder/config.json": b"{  }",
    "text_encoder/model.safetensors": b"text" * 100,
    "tokenizer/vocab.json": b"[]",
    "tokenizer/merges.txt": b"a b",
    "scheduler/scheduler_config.json": b"{   }",
}
UNWANTED = {
    "README.md": b"#",
    "v2-1.ckpt": b"pickle",
    "v2-1_512-ema-pruned.safetensors": b"whole",
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "unet/diffusion_pytorch_model.fp16.bin": b"pickle",
    "unet/model.onnx": b"onnx",
    "vae/diffusion_pytorch_model.non_ema.safetensors": b"other",
    "text_encoder/deep/er.json": b"{}",
    "feature_extractor/preprocessor_config.json": b"{}",
    "safety_checker/model.safetensors": b"no",
}


class Recorder:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.files: list[str] = []
        self.size_bytes = 0

    def plan(self, plan: Plan) -> None:
        self.plans.append(plan)

    def start(self, file: HubFile) -> None:
        self.files.append(file.path)

    def advance(self, size_bytes: int) -> None:
        self.size_bytes += size_bytes


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))  # the library waits before it goes on
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # of bytes written at once: our files are small
    with running_hub(tmp_path / "hf", monkeypatch) as server:
        yield server


def base_of(*repos: str, **more: Any) -> BaseSource:
    return BaseSource(repo=repos[0], mirrors=repos[1:], **more)


def fetch(*repos: str, dry_run: bool = False, **more: Any) -> tuple[Path | None, Recorder]:
    told = Recorder()
    return fetch_base(base_of(*repos, **more), "the base of model `m`", told, dry_run=dry_run), told


def fetched(*repos: str, **more: Any) -> dict[str, bytes]:
    folder, _ = fetch(*repos, **more)
    assert folder is not None
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failure(*repos: str, **more: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        fetch(*repos, **more)
    return caught.value


# What is fetched -----------------------------------------------------------------------------------------------------


def test_only_what_is_needed_is_fetched_and_then_found_without_the_network(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED | UNWANTED
    assert cached_base(base_of("a/b")) is None
    assert not hub.requests
    assert fetched("a/b") == WANTED
    hub.requests.clear()
    folder, told = fetch("a/b")
    assert folder == cached_base(base_of("a/b"))
    assert told.plans[0].missing == ()
    assert not hub.requests


def test_half_precision_is_taken_where_it_is_and_never_both(hub: Hub) -> None:
    plain = {name: data for name, data in WANTED.items() if not name.endswith(".safetensors")}
    weights = {name: data for name, data in WANTED.items() if name not in plain}
    half = plain | {name.replace(".safetensors", ".fp16.safetensors"): b"half" + data for name, data in weights.items()}
    hub.repos["both/all"] = WANTED | half | UNWANTED
    assert fetched("both/all") == half
    hub.repos["half/all"] = half
    assert fetched("half/all") == half
    hub.repos["half/one"] = WANTED | {HALF_UNET: b"half"}
    expected = {name: data for name, data in WANTED.items() if name != UNET} | {HALF_UNET: b"half"}
    assert fetched("half/one") == expected
    hub.repos["no/weights"] = plain | UNWANTED
    assert "`no/weights`: lacks `unet/*.safetensors`" in failure("no/weights").message


def test_shards_of_either_precision(hub: Hub) -> None:
    rest = {name: data for name, data in WANTED.items() if name != UNET}
    shards = {f"unet/m-0000{n}-of-00002.safetensors": b"%d" % n * 9 for n in (1, 2)}
    index = {"unet/m.safetensors.index.json": _index_of(shards)}
    half = {f"unet/m.fp16-0000{n}-of-00002.safetensors": b"%d" % n * 5 for n in (1, 2)}
    half_index = {"unet/m.safetensors.index.fp16.json": _index_of(half)}
    hub.repos["full/shards"] = rest | shards | index
    assert fetched("full/shards") == hub.repos["full/shards"]
    hub.repos["half/shards"] = rest | shards | index | half | half_index
    assert fetched("half/shards") == rest | half | half_index
    hub.repos["lost/shard"] = rest | index | dict(list(shards.items())[:1])
    assert "lacks `unet/m-00002-of-00002.safetensors`" in failure("lost/shard").message


def _index_of(shards: dict[str, bytes]) -> bytes:
    return json.dumps({"weight_map": {str(n): name.split("/")[1] for n, name in enumerate(shards)}}).encode()


def test_the_plan_tells_sizes_and_licence_and_a_dry_run_ends_there(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED | UNWANTED
    hub.licences["a/b"] = "openrail++"
    folder, told = fetch("a/b", dry_run=True)
    (plan,) = told.plans
    assert folder is None
    assert (plan.repo, plan.folder.name, plan.licence) == ("a/b", COMMIT, "openrail++")
    assert plan.missing_bytes == sum(map(len, WANTED.values()))
    assert (plan.present_bytes, told.files) == (0, [])
    assert plan.free_bytes > 0
    assert not plan.folder.parents[1].exists()
    assert [request.method for request in hub.requests] == ["GET"]
    _, told = fetch("a/b")
    assert told.files == sorted(WANTED)
    assert told.size_bytes == plan.missing_bytes
    _, told = fetch("a/b", dry_run=True)
    assert told.plans[0].present_bytes == plan.missing_bytes


# Mirrors -------------------------------------------------------------------------------------------------------------


def test_mirror_is_used_and_told(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.repos["good/mirror"] = WANTED
    with caplog.at_level(logging.WARNING, "srcli"):
        assert fetched("gone/base", "gone/too", "good/mirror") == WANTED
    assert caplog.messages == [
        "`gone/base`: no such repository, or a private one; trying the mirror `gone/too`",
        "`gone/too`: no such repository, or a private one; trying the mirror `good/mirror`",
    ]
    hub.requests.clear()
    fetch("gone/base", "gone/too", "good/mirror")
    assert not hub.requests


def test_every_failed_repository_is_named(hub: Hub) -> None:
    hub.repos["x/old"] = WANTED
    hub.repos["x/bin"] = {name: data for name, data in WANTED.items() if name != UNET} | UNWANTED
    hub.repos["x/other"] = {"README.md": b"#"}
    hub.gated.add("x/gated")
    error = failure("x/none", "x/gated", "x/bin", "x/other", "x--y/z")
    assert "cannot fetch the base of model `m`\n  - `x/none`: no such repository" in error.message
    assert "`x/gated`: its owner wants a login" in error.message
    assert "`x/bin`: lacks `unet/*.safetensors`" in error.message
    assert "`x/other`: lacks `model_index.json`" in error.message
    assert "`x--y/z`: " in error.message
    assert all(way in error.hint for way in ("mirror", "--base", "HF_HUB_OFFLINE"))
    assert "`x/old`: no such revision" in failure("x/old", revision="v9").message


def test_the_token_opens_a_gated_repository_and_stays_with_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["x/gated"] = WANTED
    hub.gated.add("x/gated")
    monkeypatch.setenv("HF_TOKEN", "let-me-in")
    assert fetched("x/gated") == WANTED
    tokens = {request.host.split(":")[0]: set() for request in hub.requests}
    for request in hub.requests:
        tokens[request.host.split(":")[0]].add(request.token)
    assert tokens == {"127.0.0.1": {"Bearer let-me-in"}, "localhost": {""}}


def test_a_revision_of_its_own(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED
    assert fetched("a/b", revision=COMMIT) == WANTED
    assert cached_base(base_of("a/b", revision=COMMIT)) is not None
    assert cached_base(base_of("a/b", revision="v9")) is None


# Broken downloads ----------------------------------------------------------------------------------------------------


def test_a_cut_connection_is_taken_up_where_it_was_cut(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED
    hub.faults[UNET] = ["drop"]
    folder, told = fetch("a/b")
    assert folder is not None
    assert (folder / UNET).read_bytes() == WANTED[UNET]
    gets = [get for get in hub.gets(UNET) if get.host.startswith("localhost")]
    assert [get.range for get in gets] == ["", "bytes=10000-"]
    assert [get.sent for get in gets] == [10000, 10000]
    assert told.size_bytes == sum(map(len, WANTED.values()))


def test_a_failed_download_goes_on_at_the_next_call(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED
    hub.faults[UNET] = ["drop", "500", "500"]
    error = failure("a/b")
    assert "`a/b`: " in error.message
    assert "500" in error.message
    assert "what has come so far is kept" in error.hint
    assert cached_base(base_of("a/b")) is None
    hub.requests.clear()
    _, told = fetch("a/b")
    assert [(get.range, get.sent) for get in hub.gets(UNET)] == [("bytes=10000-", 10000)]
    (plan,) = told.plans
    assert plan.partial_bytes == 10000
    assert told.size_bytes == plan.missing_bytes


def test_an_address_that_runs_out_is_asked_for_again(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.repos["a/b"] = WANTED
    hub.faults[UNET] = ["drop", "403"]
    with caplog.at_level(logging.WARNING, "srcli"):
        assert fetched("a/b") == WANTED
    assert "the connection broke, going on: " in caplog.text
    assert [(get.range, get.sent) for get in hub.gets(UNET)][-1] == ("bytes=10000-", 10000)


def test_two_at_once_download_each_file_once(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED
    with ThreadPoolExecutor(2) as pool:
        folders = {folder for folder, _ in pool.map(fetch, ["a/b"] * 2)}
    assert folders == {cached_base(base_of("a/b"))}
    assert [get.sent for get in hub.gets(UNET) if get.host.startswith("localhost")] == [20000]


def test_two_that_end_at_once_both_note_the_commit(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["a/b"] = WANTED
    both, replace = Barrier(2, timeout=60), Path.replace

    def replaced_together(self: Path, target: Path) -> Path:
        if target.parent.name == "refs":
            both.wait()  # each has written its note, none has put it into place
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replaced_together)
    with ThreadPoolExecutor(2) as pool:
        folders = {folder for folder, _ in pool.map(fetch, ["a/b"] * 2)}
    assert folders == {cached_base(base_of("a/b"))}


def test_a_server_without_ranges_begins_anew(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED
    hub.ignores_ranges = True
    hub.faults[UNET] = ["drop", "500", "drop"]  # the library goes on by itself after the last alone
    folder, told = fetch("a/b")
    assert folder is not None
    assert (folder / UNET).read_bytes() == WANTED[UNET]
    assert told.size_bytes == sum(map(len, WANTED.values()))


def test_what_is_whole_already_is_no_dead_end_where_no_size_is_told(hub: Hub, tmp_path: Path) -> None:
    hub.repos["a/b"] = WANTED
    hub.tells_lengths = False
    blobs = tmp_path / "hf/hub/models--a--b/blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(WANTED[UNET]).hexdigest()}.incomplete").write_bytes(WANTED[UNET])
    assert fetched("a/b") == WANTED
    assert [get.range for get in hub.gets(UNET)] == ["bytes=20000-", ""]


def test_a_hub_that_lists_names_alone(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED
    hub.tells_sizes = False
    hub.faults[UNET] = ["wrong"]
    assert f"`{UNET}` is another file than expected: SHA-256" in failure("a/b").message  # by the ETag
    folder, told = fetch("a/b")
    assert told.plans[0].missing_bytes == 0
    assert folder is not None
    assert (folder / UNET).read_bytes() == WANTED[UNET]


def test_a_wrong_file_is_not_used_and_the_mirror_is_tried(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.repos["bad/one"] = hub.repos["good/one"] = WANTED
    hub.faults[UNET] = ["wrong"]
    with caplog.at_level(logging.WARNING, "srcli"):
        folder, _ = fetch("bad/one", "good/one")
    assert folder is not None
    assert "good--one" in str(folder)
    wrong = hashlib.sha256(WANTED[UNET][:-1] + bytes([WANTED[UNET][-1] ^ 1])).hexdigest()
    right = hashlib.sha256(WANTED[UNET]).hexdigest()
    (warning,) = caplog.messages
    assert f"`bad/one`: `{UNET}` is another file than expected: SHA-256 `{wrong}`, expected `{right}`" in warning
    assert cached_base(base_of("bad/one")) is None
    names = [path.name for path in (folder.parents[2] / "models--bad--one/blobs").iterdir()]
    assert not [name for name in names if name.startswith((wrong, right))]


def test_a_wrong_small_file_is_seen_too(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED
    hub.faults["unet/config.json"] = ["wrong"]
    assert "`unet/config.json` is another file than expected: git SHA-1" in failure("a/b").message
    assert fetched("a/b") == WANTED


def test_the_rows_sums_hold(hub: Hub) -> None:
    hub.repos["a/b"] = hub.repos["c/d"] = WANTED
    right = {UNET: hashlib.sha256(WANTED[UNET]).hexdigest()}
    assert fetched("a/b", sha256=right) == WANTED
    hub.requests.clear()
    error = failure("c/d", sha256={UNET: "0" * 64})
    assert f"`c/d`: `{UNET}` is another file than expected" in error.message
    assert f"expected `{'0' * 64}`" in error.message
    assert not hub.gets(UNET)  # the list says it, before gigabytes have come
    assert cached_base(base_of("a/b", sha256=right)) is not None
    assert cached_base(base_of("a/b", sha256={UNET: "0" * 64})) is None
    assert "another file" in failure("a/b", sha256={UNET: "0" * 64}).message
    assert fetched("a/b", sha256=right) == WANTED


def test_damage_in_the_cache_is_repaired(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.repos["a/b"] = WANTED
    folder, _ = fetch("a/b")
    assert folder is not None
    blob = (folder / UNET).resolve()
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    hub.requests.clear()
    with caplog.at_level(logging.WARNING, "srcli"):
        assert fetched("a/b") == WANTED
    assert "it is removed" in caplog.text
    assert {get.path.split(f"{COMMIT}/")[-1] for get in hub.requests if "/resolve/" in get.path} == {UNET}


@pytest.mark.parametrize("closed", ["unlink", "open"])
def test_a_cache_that_is_closed_to_repairs_is_told(hub: Hub, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["a/b"] = WANTED
    folder, _ = fetch("a/b")
    assert folder is not None
    blob = (folder / UNET).resolve()
    blob.write_bytes(b"damaged")
    real = getattr(Path, closed)

    def refuse(path: Path, *arguments: Any, **more: Any) -> Any:
        if path.resolve() == blob:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, *arguments, **more)

    with monkeypatch.context() as patch:  # the tests may run as root, whom no mode keeps out
        patch.setattr(Path, closed, refuse)
        error = failure("a/b")
    assert "cannot be checked and removed where damaged: Read-only file system" in error.message
    assert "`HF_HOME`" in error.hint
    assert fetched("a/b") == WANTED


@pytest.mark.parametrize("name", ["tokenizer/merges.txt", "scheduler/scheduler_config.json", "text_encoder/config.json"])
def test_a_copy_that_lacks_a_small_file_is_no_copy_and_is_completed(hub: Hub, name: str) -> None:
    hub.repos["a/b"] = WANTED
    folder, _ = fetch("a/b")
    assert folder is not None
    (folder / name).rename(folder / f"{name}.json")  # another file of that folder does not stand for it
    (folder / UNET).resolve().write_bytes(b"x" + WANTED[UNET][1:])
    assert cached_base(base_of("a/b")) is None
    _, told = fetch("a/b")
    assert told.files == [file.path for file in told.plans[0].missing] == [name, UNET]
    assert fetched("a/b") == WANTED | {f"{name}.json": WANTED[name]}
    assert cached_base(base_of("a/b")) == folder


def test_a_repository_that_lacks_the_vocabulary_is_not_taken(hub: Hub) -> None:
    hub.repos["a/b"] = {name: data for name, data in WANTED.items() if name != "tokenizer/vocab.json"}
    hub.repos["c/d"] = WANTED
    assert "`a/b`: lacks `tokenizer/vocab.json`" in failure("a/b").message
    assert fetched("a/b", "c/d") == WANTED


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}\n"])
def test_a_damaged_small_file_is_repaired(hub: Hub, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    hub.repos["a/b"] = WANTED
    folder, _ = fetch("a/b")
    assert folder is not None
    for repair in (fetch, lambda name: fetch_config(base_of(name), "unet/config.json", "model `m`")):
        (folder / "unet/config.json").resolve().write_bytes(damage)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "srcli"):
            repair("a/b")
        assert "in the cache, `unet/config.json` is another file than expected: " in caplog.text
        assert (folder / "unet/config.json").read_bytes() == WANTED["unet/config.json"]


def test_an_empty_file_is_repaired_in_a_cache_without_links(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED
    folder, _ = fetch("a/b")
    assert folder is not None
    for name in ("unet/config.json", UNET):
        (folder / name).unlink()
        (folder / name).touch()
    assert cached_base(base_of("a/b")) is None
    assert fetched("a/b") == WANTED


def test_a_blob_that_lies_there_already_is_checked(hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub.repos["a/b"] = WANTED
    blobs = tmp_path / "hf/hub/models--a--b/blobs"
    blobs.mkdir(parents=True)
    right = hashlib.sha256(WANTED[UNET]).hexdigest()
    (blobs / right).write_bytes(b"evil" * 5000)
    (blobs / git_sha1(b"{}")).write_bytes(b"[]")
    with caplog.at_level(logging.WARNING, "srcli"):
        assert fetched("a/b") == WANTED
    assert f"in the cache, `{UNET}` is another file than expected: SHA-256" in caplog.text
    assert "in the cache, `unet/config.json` is another file than expected: git SHA-1" in caplog.text


def test_blobs_that_repositories_share_are_left_alone_unless_damaged(hub: Hub, tmp_path: Path) -> None:
    hub.repos["a/b"] = WANTED
    folder, _ = fetch("a/b")
    assert folder is not None
    blob = (folder / UNET).resolve()
    shared = tmp_path / "hf/hub/blobs/ab" / ("ab" * 32)  # named by another sum than the file's
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    hub.requests.clear()
    right = {UNET: blob.name}
    assert fetched("a/b", sha256=right) == WANTED
    assert not hub.requests
    assert shared.exists()
    shared.write_bytes(b"x" + shared.read_bytes()[1:])
    assert fetched("a/b", sha256=right) == WANTED
    assert not shared.exists()


def test_a_plain_sum_as_etag_is_taken(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED
    hub.etags["unet/config.json"] = hashlib.sha1(b"{}").hexdigest()
    assert fetched("a/b") == WANTED
    hub.requests.clear()
    assert fetched("a/b") == WANTED
    assert not hub.requests


# What may not leave the cache's folder -------------------------------------------------------------------------------


@pytest.mark.parametrize("etag", ["..", ".", "../x", "a/b", "a\\b"])
def test_an_etag_that_is_no_file_name_is_refused(hub: Hub, etag: str) -> None:
    hub.repos["a/b"] = WANTED
    hub.etags["unet/config.json"] = etag
    assert "the server gives `unet/config.json` no usable ETag" in failure("a/b").message


def test_a_commit_that_is_no_file_name_is_refused(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED
    hub.commit = "../../../evil"
    assert "`a/b`: the server tells no usable commit" in failure("a/b").message


# No network, no space ------------------------------------------------------------------------------------------------


def test_no_network(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED
    folder, _ = fetch("a/b")
    hub.shutdown()
    hub.server_close()
    assert fetch("a/b")[0] == folder
    assert "cannot fetch the base of model `m`\n  - `c/d`: " in failure("c/d").message
    assert "Connect" in failure("c/d").message


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.repos["a/b"] = hub.repos["c/d"] = WANTED
    folder, _ = fetch("a/b")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("a/b")[0] == folder
    error = failure("c/d")
    assert "`c/d`: not in the cache, and `HF_HUB_OFFLINE` is set" in error.message
    assert "copy the hub's cache" in error.hint
    assert not hub.requests


def test_a_copied_cache_serves_elsewhere(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.repos["a/b"] = WANTED
    fetch("a/b")
    shutil.copytree(tmp_path / "hf", tmp_path / "copy", symlinks=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "copy/hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cached_base(base_of("a/b")) == tmp_path / "copy/hub/models--a--b/snapshots" / COMMIT


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of half a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_too_little_space_is_told_before_the_download(hub: Hub, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(small_disk / "hub"))
    hub.repos["a/b"] = hub.repos["c/d"] = WANTED | {UNET: bytes(2_000_000)}
    error = failure("a/b", "c/d")
    assert error.message.startswith(f"not enough space for the base in `{small_disk}")
    assert "2.0 MB to come, 524.3 kB free" in error.message
    assert "HF_HOME" in error.hint
    assert [request.path for request in hub.requests] == ["/api/models/a/b"]


def test_a_disk_that_fills_up_keeps_what_has_come(hub: Hub, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(small_disk / "hub"))
    hub.repos["a/b"] = hub.repos["c/d"] = WANTED | {UNET: bytes(2_000_000)}
    monkeypatch.setattr(Plan, "free_bytes", 10**9)  # another program takes the space meanwhile
    error = failure("a/b", "c/d")
    assert "No space left on device" in error.message
    assert "the same command goes on" in error.hint
    partial = list(small_disk.glob("hub/models--a--b/blobs/*.incomplete"))
    assert len(partial) == 1
    assert 0 < partial[0].stat().st_size < 524_288
    assert not hub.gets("c/d")


def test_a_closed_cache_is_told(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.repos["a/b"] = WANTED
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    error = failure("a/b")
    assert error.message == f"cannot write to `{tmp_path / 'file/hub/models--a--b/blobs'}`: Not a directory"
    assert "HF_HOME" in error.hint


# One file ------------------------------------------------------------------------------------------------------------


def test_the_configuration_alone(hub: Hub) -> None:
    hub.repos["c/d"] = WANTED
    path = fetch_config(base_of("a/b", "c/d"), "unet/config.json", "model `m`")
    assert path.read_bytes() == b"{}"
    assert not hub.gets(UNET)
    hub.requests.clear()
    assert fetch_config(base_of("a/b", "c/d"), "unet/config.json", "model `m`") == path
    assert not hub.requests
    assert cached_base(base_of("c/d")) is None
    assert fetched("a/b", "c/d") == WANTED
    with pytest.raises(ModelError, match=r"cannot fetch `unet/config.json` of the base of model `m`\n  - `x/y`: no such repo"):
        fetch_config(base_of("x/y"), "unet/config.json", "model `m`")
