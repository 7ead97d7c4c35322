"""Damaged files of every format: cut, flipped, spliced. They give a picture or a reason, quietly, in bounded time and memory.

The same files in every run. `SRCLI_FUZZ=random pytest -m slow tests/test_fuzz.py` tries others and prints what fails.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seed_files import seeds

from srcli.errors import ImageError
from srcli.images import reader
from srcli.images.codec import decode, probe
from srcli.training.data.crops import CropSettings, TrainingCrops
from srcli.training.data.sources import Photo, Source

MOST_PIXELS = 1 << 20
"""Of a file in these tests, in place of `MAX_PIXELS`: what claims more is refused before memory is taken for it."""
MOST_BYTES = 256 << 20
"""That a run may add to the memory of its process."""
MOST_SECONDS = 20
"""Of a processor, for a file; the slowest takes a fiftieth."""


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A seed with one to four faults, half of them in its first bytes, where the headers are."""
    content = seeds()[draw(st.sampled_from(sorted(seeds())))]
    for fault in draw(st.lists(st.sampled_from([_cut, _flip, _splice, _fill]), min_size=1, max_size=4)):
        content = fault(content, draw)
    return content


def _place(content: bytes, draw: st.DrawFn) -> int:
    most = len(content)
    return draw(st.integers(0, most) | st.integers(0, min(most, 96)))


def _cut(content: bytes, draw: st.DrawFn) -> bytes:
    return content[: _place(content, draw)]


def _flip(content: bytes, draw: st.DrawFn) -> bytes:
    at, bits = _place(content, draw), draw(st.integers(1, 255))
    return content[:at] + bytes(byte ^ bits for byte in content[at : at + 1]) + content[at + 1 :]


def _splice(content: bytes, draw: st.DrawFn) -> bytes:
    """Some bytes of another file, or of the same one, in place of as many or between."""
    other = seeds()[draw(st.sampled_from(sorted(seeds())))]
    at, start, count = _place(content, draw), _place(other, draw), draw(st.integers(1, 200))
    return content[:at] + other[start : start + count] + content[at + draw(st.sampled_from([0, count])) :]


def _fill(content: bytes, draw: st.DrawFn) -> bytes:
    """A number that is 0 or as large as it can be: sizes, counts and offsets are 2, 4 or 8 bytes."""
    at, count, byte = _place(content, draw), draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([b"\0", b"\xff", b"\x7f"]))
    return content[:at] + byte * min(count, len(content) - at) + content[at + count :]


@pytest.fixture
def read(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], bool]:
    """Reads a file in every way that srcli does, and checks all that must hold; returns whether there is a picture."""
    monkeypatch.setattr(reader, "MAX_PIXELS", MOST_PIXELS)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", MOST_PIXELS // 2)
    path = tmp_path / "photo"
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def read(content: bytes) -> bool:
        path.write_bytes(content)
        start = time.process_time()
        whole = _decoded(path)
        assert _trained(path) == whole
        assert time.process_time() - start < MOST_SECONDS
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun) << 10 < MOST_BYTES
        assert capfd.readouterr() == ("", "")
        return whole

    return read


def _decoded(path: Path) -> bool:
    try:
        header = probe(path)
    except ImageError as fault:
        _check_reason(fault, path)
        header = None
    try:
        picture = decode(path)
    except ImageError as fault:
        _check_reason(fault, path)
        return False
    assert header is not None
    assert (header.width, header.height, header.bit_depth) == (picture.width, picture.height, picture.bit_depth)
    assert picture.levels.dtype in (np.uint8, np.uint16)
    assert picture.levels.shape[2] in (1, 2, 3, 4)
    return True


def _check_reason(fault: ImageError, path: Path) -> None:
    assert fault.message.startswith(f"`{path}` cannot be read: ")
    assert len(fault.message) > len(f"`{path}` cannot be read: ")
    assert fault.hint


def _trained(path: Path) -> bool:
    """Whether training can take a pixel from it."""
    sample = TrainingCrops([Source((Photo(path),))], CropSettings(1, 1, degrade_later=True))[0]
    assert bool(sample.skipped) == (not sample.hq.size)
    return not sample.skipped


def _settings(files: int) -> settings:
    always = os.environ.get("SRCLI_FUZZ") != "random"
    unbothered = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=files, derandomize=always, database=None, deadline=None, suppress_health_check=unbothered)


@pytest.mark.parametrize("name", sorted(seeds()))
def test_the_seeds_are_read(name: str, read: Callable[[bytes], bool]) -> None:
    assert read(seeds()[name]) == (name != "tiff of floats")


@_settings(100)
@given(damaged())
def test_a_damaged_file_gives_a_picture_or_a_reason(read: Callable[[bytes], bool], content: bytes) -> None:
    read(content)


@pytest.mark.slow
@_settings(2000)
@given(damaged())
def test_many_damaged_files_give_a_picture_or_a_reason(read: Callable[[bytes], bool], content: bytes) -> None:
    read(content)
