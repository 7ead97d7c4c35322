"""Fixtures shared by the tests: a tiny base that is made in a second, and places for files that no user's settings reach."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ["COLUMNS"] = "80"
os.environ["NO_COLOR"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # several at once: threads that wait for each other's cores cost ten times what they gain
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a script that starts the tests with `&` has it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees or touches the user's configuration and data."""
    home = tmp_path_factory.mktemp("home")
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(home / name))
    return home


@pytest.fixture(autouse=True)
def own_logger() -> Iterator[None]:
    """What a command did to the logger ends with its test."""
    logger = logging.getLogger("srcli")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
    yield
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photo() -> np.ndarray:
    """A picture with edges, gradients and texture: (60, 84, 3), uint8."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:60, 0:84]
    picture = np.stack([x * 3, y * 4, (x + y) * 1.7], -1) % 256
    picture[20:40, 30:60] = [220, 40, 30]
    return (picture + rng.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def photo_folder(tmp_path: Path, photo: np.ndarray) -> Path:
    """Three files in two folders: `a.png`, `b.jpg`, `sub/c.png`, of different sizes."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(photo).save(folder / "a.png")
    Image.fromarray(photo[:31, :50]).save(folder / "b.jpg", quality=95)
    Image.fromarray(photo[10:, :33]).save(folder / "sub" / "c.png")
    return folder


@pytest.fixture
def hq_folder(photo_folder: Path, tmp_path: Path) -> Path:
    """References of the photos in `photo_folder`, at four times their size."""
    for name in ("a.png", "b.jpg", "sub/c.png"):
        target = (tmp_path / "hq" / name).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(photo_folder / name) as image:
            image.convert("RGB").resize((image.width * 4, image.height * 4), Image.Resampling.LANCZOS).save(target)
    return tmp_path / "hq"
