"""Training photos of a store: a copy that is what the store lists."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from commands import srcli
from PIL import Image
from tiny_model import make_model
from training_case import make_photos

from srcli.errors import UsageError
from srcli.remote import store
from srcli.remote.faults import StoreError
from srcli.training.data.sources import find_sources


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    """A store that lives in this process, with the photos of `tmp_path / "photos"`, one of them in a folder of its own."""
    folder = make_photos(tmp_path / "photos")
    (folder / "sub").mkdir()
    (folder / "4.png").rename(folder / "sub" / "0.png")
    (folder / "sub" / "0.txt").write_text("a gradient")
    files = fsspec.filesystem("memory")
    for path in folder.rglob("*.*"):
        files.pipe_file(f"memory://bucket/photos/{path.relative_to(folder).as_posix()}", path.read_bytes())
    yield "memory://bucket/photos"
    files.rm("/bucket", recursive=True)


def names(*texts: str) -> list[str]:
    """The photos below the first folder of each source."""
    sources, _ = find_sources(texts, 32, 4)
    return [photo.hq.as_posix().rsplit("/photos/", 1)[-1] for source in sources for photo in source.photos]


def test_the_copy_follows_the_store_and_copies_nothing_twice(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    fetch = store.Store.fetch
    monkeypatch.setattr(store.Store, "fetch", lambda self, url, *rest: (fetched.append(url.key), fetch(self, url, *rest)))
    assert names(memory) == names(str(tmp_path / "photos")) == ["0.png", "1.png", "2.png", "3.png", "sub/0.png"]
    copy = Path(os.environ["XDG_CACHE_HOME"]) / "srcli" / "data" / "memory" / "bucket" / "photos"
    assert (copy / "sub" / "0.txt").read_text() == "a gradient"
    assert len(fetched) == 6
    assert names(f"{memory},weight=2") == names(memory)
    assert len(fetched) == 6
    files, changed = fsspec.filesystem("memory"), io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(changed, "PNG")
    files.pipe_file(f"{memory}/1.png", changed.getvalue())
    files.rm_file(f"{memory}/2.png")
    assert names(memory) == ["0.png", "1.png", "3.png", "sub/0.png"]
    assert fetched[6:] == ["photos/1.png"]
    assert (copy / "1.png").read_bytes() == changed.getvalue()
    assert names(f"{memory}/sub/0.png") == ["sub/0.png"]
    sources, _ = find_sources([f"{memory},lq={memory},weight=2"], 32, 4)
    assert [(photo.hq, sources[0].weight) for photo in sources[0].photos] == [(photo.lq, 2.0) for photo in sources[0].photos]


def test_training_on_a_store_is_training_on_the_folder(memory: str, tmp_path: Path, models_file: Path) -> None:
    runs = {}
    for data in (memory, str(tmp_path / "photos")):
        out = tmp_path / f"run-{len(runs)}"
        options = ["--crop", 32, "--batch", 1, "--rank", 2, "--device", "cpu", "--dtype", "fp32", "--workers", 0, "--val", "none"]
        model = ["--models-file", models_file, "--model", "small"]
        steps = ["--steps", 2, "--save-every", 1]
        done = srcli("train-pixel", "--data", data, "-o", out, *model, *steps, *options)
        assert done.returncode == 0, done.stderr
        runs[data] = (out / "pixel" / "adapter_model.safetensors").read_bytes()
        if data == memory:
            assert "copying 6 files of `memory://bucket/photos`" in done.stderr
            shutil.rmtree(Path(os.environ["XDG_CACHE_HOME"]) / "srcli" / "data")
            again = srcli("train-pixel", "--data", data, "-o", out, *model, "--steps", 3, *options, "--resume")
            assert again.returncode == 0, again.stderr
            assert "other photos" not in again.stderr
    assert len(set(runs.values())) == 1


def test_what_cannot_be_copied_is_told(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="`memory://bucket/none` does not exist"):
        find_sources(["memory://bucket/none"], 32, 4)
    with pytest.raises(UsageError, match="cannot be listed"):
        find_sources(["https://host/photos/"], 32, 4)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 30))
        with pytest.raises(UsageError, match=r"has 0\.0 GB to copy, and .* 1\.1 GB free"):
            find_sources([memory], 32, 4)
    (tmp_path / "list.txt").write_text(f"{tmp_path}/photos/1.png\n{memory}/1.png\n")
    sources, skipped = find_sources([str(tmp_path / "list.txt")], 32, 4)
    assert len(sources[0].photos) == 1
    assert "of stores, `--data` takes folders" in skipped[0].reason
    with monkeypatch.context() as patch:
        patch.setattr(store.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UsageError) as missing:
            find_sources(["s3://bucket/photos"], 32, 4)
        assert "pip install 'srcli[s3]'" in missing.value.hint
