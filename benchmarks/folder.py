"""Where the time of a folder goes: does the model ever wait for the disk?

    python benchmarks/folder.py [--photos FOLDER] [--count 50] [--model tiny] [--dtype auto]

Runs the stream over COUNT photos and prints the seconds that the model's thread waited for input, worked, and waited for
output, and the ratio of the whole to the work alone (1.00 is a device that never waits). Then the same sizes once more without
any reading or writing, in the same process, as a second reference.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from srcli.config import UpscaleConfig
from srcli.images.codec import decode
from srcli.images.files import Job, plan_jobs
from srcli.opening import open_stream


def make_photos(folder: Path, count: int) -> None:
    """Photos of 320x240 with something to compress, where none are given."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:240, 0:320]
    for index in range(count):
        waves = [127 + 90 * np.sin(x / rng.uniform(5, 60) + y / rng.uniform(5, 60)) for _ in range(3)]
        picture = np.stack(waves, -1) + rng.normal(0, 8, (240, 320, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{index:04}.jpg", quality=90)


def gather(photos: Path | None, count: int, folder: Path) -> list[Job]:
    source = folder / "in"
    source.mkdir()
    if photos is None:
        make_photos(source, count)
    else:
        files = sorted(path for path in photos.iterdir() if path.is_file())
        for index, path in zip(range(count), itertools.cycle(files), strict=False):
            shutil.copy(path, source / f"{index:04}{path.suffix}")
    return plan_jobs([str(source)], folder / "out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        jobs = gather(args.photos, args.count, Path(temporary))
        stream = open_stream(UpscaleConfig((temporary,), Path(temporary), args.model, dtype=args.dtype))
        stream.engine.restore([torch.zeros(3, 256, 256)])  # set-up is not the folder's
        start = time.perf_counter()
        outcomes = list(stream.run(jobs))
        wall = time.perf_counter() - start
        failed = [outcome for outcome in outcomes if outcome.status != "done"]
        assert not failed, failed[0].reason
        megapixels = sum(o.output_size[0] * o.output_size[1] for o in outcomes if o.output_size) / 1e6
        clock = stream.clock
        pictures = [decode(job.source) for job in jobs]
        scale = stream.engine.restorer.native_scale
        canvases = [torch.zeros(3, picture.height * scale, picture.width * scale) for picture in pictures]
        start = time.perf_counter()
        for canvas in canvases:
            stream.engine.restore([canvas])
        bare = time.perf_counter() - start
    print(f"{len(jobs)} photos, {megapixels:.1f} MP of output in {wall:.1f} s: {megapixels / wall:.2f} MP/s")
    print(
        f"waiting for input {clock.waiting_for_input:.2f} s, model {clock.model:.2f} s, "
        f"waiting for output {clock.waiting_for_output:.2f} s"
    )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB, {stream.engine.limits}")
    print(f"ratio whole / model in the stream: {wall / clock.model:.3f}")
    print(f"ratio whole / model alone:         {wall / bare:.3f}")


if __name__ == "__main__":
    main()
