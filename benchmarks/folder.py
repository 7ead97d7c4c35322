"""Where the time of a folder goes: does the model ever wait for the disk?

    python benchmarks/folder.py --count 50
    python benchmarks/folder.py --photos ~/photos --models-file /tmp/full-size/models.toml --model random --count 4

Runs the stream over COUNT photos, end to end but for loading. Prints the seconds that the model's thread waited for input,
worked, and waited for output, the peak memory, and the ratio of the whole to the work alone (1.00 is a device that never waits).
Then the same sizes once more without any reading or writing, in the same process, as a second reference. Takes about 5 minutes
with `tiny` and 50 photos of 320x240 on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
from pathlib import Path

from measuring import host_gb, make_photos, timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of photos, used again and again; made if not given, 320x240")
    parser.add_argument("--count", type=int, default=50, help="of photos (%(default)s)")
    parser.add_argument("--model", default="tiny", help="a row of models.toml (%(default)s)")
    parser.add_argument("--models-file", type=Path, help="a models.toml of your own, such as full_size.py's")
    parser.add_argument("--dtype", default="auto", help="precision, as of `srcli upscale` (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(gather(args.photos, args.count, Path(temporary) / "in"), Path(temporary) / "out", args)


def gather(photos: Path | None, count: int, folder: Path) -> Path:
    """A folder of so many photos."""
    if photos is None:
        return make_photos(folder, count, (320, 240))
    folder.mkdir()
    files = sorted(path for path in photos.iterdir() if path.is_file())
    for index, path in zip(range(count), itertools.cycle(files), strict=False):
        shutil.copy(path, folder / f"{index:04}{path.suffix}")
    return folder


def measure(photos: Path, output: Path, args: argparse.Namespace) -> None:
    import torch

    from srcli.config import UpscaleConfig
    from srcli.images.files import plan_jobs
    from srcli.opening import model_of, open_stream

    config = UpscaleConfig((str(photos),), output, args.model, args.models_file, dtype=args.dtype)
    jobs = plan_jobs(config.inputs, config.output)
    stream = open_stream(config, model_of(config))
    engine = stream.engine
    engine.restore([torch.zeros(3, 256, 256)])  # set-up is not the folder's
    wall, outcomes = timed(lambda: list(stream.run(jobs)))
    failed = [outcome for outcome in outcomes if outcome.status != "done"]
    assert not failed, failed[0].reason
    sizes = [outcome.output_size for outcome in outcomes if outcome.output_size]
    bare, _ = timed(lambda: [engine.restore([torch.zeros(3, height, width)]) for width, height in sizes])
    megapixels = sum(width * height for width, height in sizes) / 1e6
    clock = stream.clock
    print(f"{len(jobs)} photos, {megapixels:.1f} MP of output in {wall:.1f} s: {megapixels / wall:.2f} MP/s")
    print(
        f"waiting for input {clock.waiting_for_input:.2f} s, model {clock.model:.2f} s, "
        f"waiting for output {clock.waiting_for_output:.2f} s"
    )
    print(f"peak memory {1000 * host_gb():.0f} MB, {engine.limits}")
    print(f"ratio whole / model in the stream: {wall / clock.model:.3f}")
    print(f"ratio whole / model alone:         {wall / bare:.3f}")


if __name__ == "__main__":
    main()
