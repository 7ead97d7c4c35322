"""What the benchmarks share: photos, the time of a piece of work, the memory of a process, a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def make_photos(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Smooth random pictures of a size, (width, height) in pixels, as JPEG files; returns the folder."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        small = rng.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / f"{index:04}.jpg", quality=95)
    return folder


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of a call, with all that it began on a GPU, and its result."""
    import torch

    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def host_gb() -> float:
    """The largest resident set that this process had: weights, program and libraries included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def device_gb(device: str) -> float:
    """The most memory that this process had where its network worked: what torch had allocated on a GPU, else `host_gb`."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else host_gb()


def alone(work: Callable[..., Result], *arguments: object) -> Result:
    """Call a function of a module in a process of its own, whose memory is nobody else's; this one should be small."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def run_srcli() -> None:
    """The command that `sys.argv` holds, in this process.

    Raises:
        RuntimeError: it ended with another exit code than 0.
    """
    from srcli.cli.main import main as srcli

    try:
        srcli()
    except SystemExit as leave:
        if leave.code:
            raise RuntimeError(f"srcli ended with {leave.code}") from leave
