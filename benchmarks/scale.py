"""What it costs to divide the work, and how far one machine's part of it goes.

    python benchmarks/scale.py overhead     # a fleet of one worker against the plain run, in turns
    python benchmarks/scale.py workers      # two workers of one core each against one
    python benchmarks/scale.py photos --count 100000
    python benchmarks/scale.py names --count 1000000

`overhead` and `workers` need the package `ray` and an idle machine with two cores. They run both ways in turns, first one and
then the other first, and count the results of each `--seconds` that begin when the first results are there; the last line has the
ratio of all of them. `photos` runs the command over tiny photos with a network that does nothing: time to the first result,
photos a second, and the memory at 10 %, 50 % and the end. `names` lists as many empty files and divides them into shards.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from measuring import host_gb, make_photos

WARM_UP_S = 5.0
LINE_BYTES = 79
"""Of a result of `photos` in a ledger."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "workers", "photos", "names", "_unworked"], metavar="WHAT")
    parser.add_argument("--count", type=int, help="of photos or names (of each: 2000, 2000, 100000, 1000000)")
    parser.add_argument("--size", type=int, default=96, help="side of the photos of `overhead` and `workers` (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of `overhead` and `workers` (%(default)s)")
    parser.add_argument("--seconds", type=float, default=25, help="of each run of `overhead` and `workers` (%(default)s)")
    parser.add_argument("--device", default="cpu", help="of the plain run and of each worker (%(default)s)")
    args, rest = parser.parse_known_args()
    if args.what == "_unworked":
        unworked(rest)
        return
    with tempfile.TemporaryDirectory() as folder:
        {"overhead": overhead, "workers": workers, "photos": photos, "names": names}[args.what](Path(folder), args)


# Fleets --------------------------------------------------------------------------------------------------------------


def overhead(folder: Path, args: argparse.Namespace) -> None:
    """Both with all cores; a fleet of one is asked for through a cluster of this machine, as the command has no other way to."""
    ray = Path(sys.executable).with_name("ray")
    source = make_photos(folder / "in", args.count or 2000, (args.size, args.size))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(24)}
    options = ["--block", "--disable-usage-stats", "--include-dashboard=false", f"--temp-dir={folder / 'ray'}"]
    with subprocess.Popen([ray, "start", "--head", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as cluster:
        time.sleep(15)  # it is up then
        try:
            compare(folder, source, ["--device", args.device], ["--device", args.device, "--ray-address", "auto"], args)
        finally:
            cluster.terminate()


def workers(folder: Path, args: argparse.Namespace) -> None:
    """One core for the plain run, and for each of two workers."""
    if args.device == "cpu" and len(os.sched_getaffinity(0)) != 2:
        raise SystemExit("needs two cores exactly: `taskset -c 0,1 python benchmarks/scale.py workers`")
    source = make_photos(folder / "in", args.count or 2000, (args.size, args.size))
    os.environ["OMP_NUM_THREADS"] = "1"
    compare(folder, source, ["--device", args.device], ["--device", f"{args.device},{args.device}"], args)


def compare(folder: Path, source: Path, one: list[str], other: list[str], args: argparse.Namespace) -> None:
    seen: dict[str, list[tuple[int, float]]] = {"one": [], "other": []}
    for turn in range(args.rounds):
        ways = [("one", one), ("other", other)]
        for name, options in ways if turn % 2 == 0 else reversed(ways):
            count, seconds = worked(source, folder / f"{turn}-{name}", options, args.seconds)
            seen[name].append((count, seconds))
            print(f"{' '.join(options)}: {count} photos in {seconds:.1f} s, {count / seconds:.3f} a second", flush=True)
    first, second = (sum(count for count, _ in runs) / sum(seconds for _, seconds in runs) for runs in seen.values())
    print(f"{' '.join(other)} / {' '.join(one)}: ratio {second / first:.3f}")


def worked(source: Path, output: Path, options: list[str], seconds: float) -> tuple[int, float]:
    """How many results a run makes in about so many seconds, counted from one result to another; then it is ended.

    The model is loaded then, and a fleet's workers have begun all.
    """
    command = [sys.executable, "-m", "srcli", "upscale", str(source), "-o", str(output), "--quiet", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        first_result(output, process)
        time.sleep(WARM_UP_S)
        marks = [(0, 0.0)]
        begun = time.perf_counter()
        while process.poll() is None and time.perf_counter() < begun + seconds:
            if (count := results(output)) > marks[-1][0]:
                marks.append((count, time.perf_counter()))
            time.sleep(0.01)
        process.terminate()
    if process.returncode != 128 + signal.SIGTERM:
        raise SystemExit(f"it ended by itself with {process.returncode}, too early to be measured: give a larger `--count`")
    (before, start), (after, end) = marks[1], marks[-1]
    return after - before, end - start


def results(output: Path) -> int:
    """How many there are of photos in one folder."""
    return sum(1 for entry in os.scandir(output) if not entry.name.startswith("."))


def first_result(output: Path, process: subprocess.Popen[str]) -> int:
    """Wait for it; returns how many there are then."""
    while not (there := sum(1 for _ in [*output.glob("[!.]*.*"), *output.glob("0000/[!.]*.*")])) and process.poll() is None:
        time.sleep(0.01)
    return there


# Many photos, many names ---------------------------------------------------------------------------------------------


def photos(folder: Path, args: argparse.Namespace) -> None:
    """In a process of its own, whose memory is looked at from here."""
    import psutil

    count = args.count or 100_000
    source, output = make_tiny(folder / "in", count), folder / "out"
    command = [sys.executable, __file__, "_unworked", "upscale", str(source), "-o", str(output), "--quiet", "--json"]
    start = time.perf_counter()
    with subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.PIPE, text=True) as process:
        first: list[float] = []
        watcher = threading.Thread(target=lambda: (first_result(output, process), first.append(time.perf_counter() - start)))
        watcher.start()
        memory: dict[str, float] = {}
        ledger, watched = output / ".srcli" / "of-1" / "1.jsonl", psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(0.2)
            done = ledger.stat().st_size / LINE_BYTES / count if ledger.exists() else 0
            with contextlib.suppress(psutil.NoSuchProcess):
                if not done:
                    continue
                at = "the first results" if done < 0.1 else "10 %" if done < 0.5 else "50 %" if done < 0.9 else "the end"
                now = watched.memory_info().rss / 1e6
                memory[at] = max(now, memory.get(at, 0)) if at == "the end" else memory.get(at, now)  # 0 of one that has ended
        told = json.loads(process.communicate()[0])
        watcher.join()
    seconds = time.perf_counter() - start
    assert told["done"] == count, told
    print(
        f"{count} photos: first result after {first[0]:.1f} s, all after {seconds:.1f} s: {count / seconds:.0f} photos a second"
    )
    print(f"memory: {', '.join(f'{megabytes:.0f} MB at {at}' for at, megabytes in memory.items())}")


def make_tiny(folder: Path, count: int) -> Path:
    """Photos of 8 x 8 pixels, a thousand in each folder; returns the folder."""
    from PIL import Image

    folder.mkdir()
    Image.radial_gradient("L").resize((8, 8)).save(folder / "one.png")
    content = (folder / "one.png").read_bytes()
    (folder / "one.png").unlink()
    for index in range(count):
        place = folder / f"{index // 1000:04}"
        if index % 1000 == 0:
            place.mkdir()
        (place / f"{index:07}.png").write_bytes(content)
    return folder


def unworked(arguments: list[str]) -> None:
    """The command, with the tests' restorer in the network's place, which changes nothing."""
    from measuring import run_srcli

    import srcli.opening

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from mock_restorer import MockRestorer

    srcli.opening.load_restorer = lambda spec, options: MockRestorer()
    sys.argv = ["srcli", *arguments]
    run_srcli()


def names(folder: Path, args: argparse.Namespace) -> None:
    from srcli.images.files import plan_jobs
    from srcli.shards.shard import Shard

    count = args.count or 1_000_000
    for index in range(count):
        place = folder / "in" / f"{index // 10_000:04}"
        if index % 10_000 == 0:
            place.mkdir(parents=True)
        (place / f"{index:08}.jpg").touch()
    before, start = host_gb(), time.perf_counter()
    jobs = plan_jobs([str(folder / "in")], folder / "out")
    listed = time.perf_counter()
    own = sum(Shard(1, 40).has(job.place) for job in jobs)
    print(f"{len(jobs)} names planned in {listed - start:.1f} s, {1e9 * (host_gb() - before) / count:.0f} bytes of memory each")
    print(f"divided in {time.perf_counter() - listed:.1f} s; shard 1/40 has {own}")


if __name__ == "__main__":
    main()
