"""Several devices on one folder: the supervisor with workers that are made up, and the real thing where Ray is installed."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
from commands import srcli, start
from PIL import Image
from tiny_model import make_model

from srcli.config import UpscaleConfig
from srcli.engine.effort import Effort
from srcli.fleet import cluster
from srcli.fleet import run as fleet_module
from srcli.fleet.places import Place, places_of
from srcli.fleet.run import Fleet
from srcli.fleet.worker import Orders, Piece, Sign
from srcli.images.files import Job, Jobs, Outcome
from srcli.images.search import Found
from srcli.opening import PlannedImage

has_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the package `ray`")


# A Ray of threads, and workers that are made up -----------------------------------------------------------------------


class EndedError(Exception):
    """In the place of Ray's own."""


class Promise:
    """The answer of a call in a thread."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.done, self.value, self.fault = threading.Event(), None, False
        threading.Thread(target=self._run, args=(call,), daemon=True).start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self.value = call()
        except Dead:
            self.fault = True
        self.done.set()


class Dead(BaseException):
    """A worker's process is no more."""


class MadeUp:
    """Writes a file for each job; what it meets is told by the photos' names.

    `poison` ends its process each time, `once` the first time, `mute` the process that gives no more signs of life, `stuck`
    goes on for ever.
    """

    seen: ClassVar[set[str]] = set()
    count: ClassVar[itertools.count[int]] = itertools.count()
    fails_to_load = False

    def __init__(self, orders: Orders, *, shared: bool) -> None:
        self.dead, self.mute, self.stuck = False, False, False
        self.outcomes: list[Outcome] = []
        self.pieces: list[Piece | None] = []
        next(MadeUp.count)

    def alive(self) -> None:
        if self.dead:
            raise Dead

    def load(self) -> None:
        if self.fails_to_load:
            self.dead = True
        self.alive()

    def give(self, pieces: Sequence[Piece], *, last: bool) -> None:
        self.alive()
        self.pieces += [*pieces, *([None] if last else [])]

    def work(self) -> None:
        while True:
            while not self.pieces:
                self.alive()
                time.sleep(0.001)
            piece = self.pieces.pop(0)
            if piece is None:
                return
            for job in piece.jobs:
                self.meet(job.source.name)
                job.target.write_bytes(b"made")
                self.outcomes.append(Outcome(job, "done"))

    def meet(self, name: str) -> None:
        first = name not in MadeUp.seen
        MadeUp.seen.add(name)
        if "poison" in name or ("once" in name and first):
            self.dead = True
        while "mute" in name and first:
            self.mute = True
            time.sleep(0.01)
        while "stuck" in name and first:
            self.stuck = True
            self.alive()
            time.sleep(0.01)
        self.alive()

    def sign(self) -> Sign:
        while self.mute:
            self.alive()
            time.sleep(0.01)
        self.alive()
        outcomes, self.outcomes = self.outcomes, []
        return Sign(outcomes, [], "", 1e9 if self.stuck else 0.0, len(self.pieces), Effort(memory_retries=1))

    def stop(self) -> None:
        self.dead = True


class ThreadRay:
    """As much of Ray as the supervisor calls."""

    exceptions = SimpleNamespace(RayError=EndedError)

    def remote(self, kind: type) -> Any:
        def make(*args: Any, **more: Any) -> Any:
            worker = kind(*args, **more)
            calls = {name: SimpleNamespace(remote=self.caller(worker, name)) for name in ("load", "give", "work", "sign", "stop")}
            return SimpleNamespace(worker=worker, **calls)

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    @staticmethod
    def caller(worker: Any, name: str) -> Callable[..., Promise]:
        return lambda *args, **more: Promise(lambda: getattr(worker, name)(*args, **more))

    def wait(self, promises: list[Promise], num_returns: int, timeout: float) -> tuple[list[Promise], list[Promise]]:
        until = time.monotonic() + timeout
        while sum(each.done.is_set() for each in promises) < num_returns and time.monotonic() < until:
            time.sleep(0.001)
        return [each for each in promises if each.done.is_set()], []

    def get(self, promise: Promise, timeout: float = 5.0) -> Any:
        assert promise.done.wait(timeout)
        if promise.fault:
            raise EndedError("its process was killed")
        return promise.value

    def kill(self, actor: Any, *, no_restart: bool) -> None:
        actor.worker.dead = True


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Outcome]]:
    """Runs a fleet of two over photos of these names; gives the outcomes by name, each of which was noted once."""
    monkeypatch.setattr(fleet_module, "Worker", MadeUp)
    monkeypatch.setattr(fleet_module, "SIGN_EVERY_S", 0.005)
    monkeypatch.setattr(fleet_module, "SILENT_S", 0.5)
    monkeypatch.setattr(MadeUp, "seen", set())
    monkeypatch.setattr(MadeUp, "count", itertools.count())

    class Connected:
        def __enter__(self) -> Any:
            return ThreadRay(), [Place("cpu", 1), Place("cpu", 1)]

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(fleet_module, "connected", lambda config: Connected())

    def run(names: Sequence[str]) -> dict[str, Outcome]:
        jobs = Jobs([Found(str(tmp_path), name) for name in names], tmp_path / "out")
        (tmp_path / "out").mkdir()
        outcomes: list[Outcome] = []
        config = UpscaleConfig((str(tmp_path),), tmp_path / "out", device="cpu,cpu")
        looked: list[int] = []

        def good(jobs: Iterable[Job]) -> Iterator[PlannedImage]:
            looked.append(len(outcomes))
            return map(PlannedImage, jobs)

        Fleet(config, None, None, good, outcomes.append, lambda name: None, shared=True).run(jobs)
        assert len(names) < 100 or looked[-1] > len(names) / 3  # at the last ones when others were done
        assert sorted(each.job.source.name for each in outcomes) == sorted(names)
        return {each.job.source.name: each for each in outcomes}

    return run


PLAIN = [f"{i:03}" for i in range(300)]


def failed(outcomes: Mapping[str, Outcome]) -> list[str]:
    return sorted(name for name, each in outcomes.items() if each.status != "done")


def test_a_fleet_does_all_while_the_clock_jumps(
    made_up: Callable[..., dict[str, Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1e9 + 1e7 * (-1) ** next(jumps))
    assert failed(made_up(PLAIN)) == []
    assert next(MadeUp.count) == 2


def test_who_dies_is_replaced_and_only_what_kills_each_time_fails(made_up: Callable[..., dict[str, Outcome]]) -> None:
    outcomes = made_up([*PLAIN, "once", "once more", "poison", "poison too"])
    assert failed(outcomes) == ["poison", "poison too"]
    assert outcomes["poison"].reason == "3 workers ended over it, the last one because its process was killed"
    assert 2 + 2 + 6 - 2 <= next(MadeUp.count) <= 2 + 2 + 6  # the last ones need no other after them


def test_who_is_silent_or_stuck_is_replaced(made_up: Callable[..., dict[str, Outcome]], caplog: pytest.LogCaptureFixture) -> None:
    assert failed(made_up([*PLAIN, "mute", "stuck"])) == []
    assert "it gave no sign of life for" in caplog.text
    assert "nothing went on for" in caplog.text


def test_where_no_worker_can_load_the_model_all_fails_by_name(
    made_up: Callable[..., dict[str, Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MadeUp, "fails_to_load", True)
    outcomes = made_up(PLAIN[:30])
    assert failed(outcomes) == PLAIN[:30]
    assert outcomes["000"].reason == "no worker is left: none could load the model"
    assert next(MadeUp.count) == 6


def test_an_interruption_ends_the_workers_and_tells_of_what_is_made(
    made_up: Callable[..., dict[str, Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, noted = Fleet._settle, []

    def interrupted(self: Fleet, slot: Any, outcome: Outcome) -> None:
        settle(self, slot, outcome)
        noted.append(outcome)
        if len(noted) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(Fleet, "_settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made_up(PLAIN)


# Places, and what is refused ------------------------------------------------------------------------------------------


def test_places_of_a_cluster() -> None:
    def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
        return {"Alive": alive, "NodeID": name, "NodeManagerAddress": f"{name}.lan", "Resources": resources}

    nodes = [node("a", CPU=16, GPU=2), node("b", CPU=8), node("c", alive=False, CPU=8, GPU=8)]
    assert places_of(nodes, ["auto"]) == places_of(nodes, ["all"])
    assert places_of(nodes, ["auto"]) == [
        Place("cuda", 8, "a", "a.lan"),
        Place("cuda", 8, "a", "a.lan"),
        Place("cpu", 8, "b", "b.lan"),
    ]
    assert [(each.device, each.threads) for each in places_of(nodes, ["cpu", "cpu"])] == [("cpu", 8)] * 2 + [("cpu", 4)] * 2
    assert str(places_of(nodes, ["cpu"])[0]) == "`cpu` of `a.lan`"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "cpu,tpu"], "`--device tpu` is none of"),
        (["--device", "cuda:0,auto"], "among several devices each is named"),
        (["--device", "cpu,cuda:99"], "there is no `cuda:99`"),
        (["--ray-address", "here"], "neither `auto` nor an address"),
        (["--shard", "0/2"], "is no shard"),
    ],
)
def test_what_cannot_be_is_refused(photo_folder: Path, tmp_path: Path, options: list[str], words: str) -> None:
    done = srcli("upscale", photo_folder, "-o", tmp_path / "out", *options)
    assert done.returncode == 2
    assert words in done.stderr


def test_without_ray_several_devices_are_refused_with_a_way_out(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = srcli("upscale", photo_folder, "-o", tmp_path / "out", "--device", "cpu,cpu")
    assert done.returncode == 2
    assert "need the package `ray`, which is not installed" in done.stderr
    assert "pip install 'srcli[cluster]'" in done.stderr


def _nobody(server: socket.socket) -> None:
    server.close()


def _somebody_silent(server: socket.socket) -> None:
    pass


def _something_else(server: socket.socket) -> None:
    def answer() -> None:
        client, _ = server.accept()
        with client:
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    threading.Thread(target=answer, daemon=True).start()


@pytest.mark.parametrize(
    ("who", "reason"), [(_nobody, "refused"), (_somebody_silent, "timed out"), (_something_else, "is no Ray cluster")]
)
def test_a_cluster_that_is_not_there_is_told_at_once(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: Callable[[socket.socket], None], reason: str
) -> None:
    monkeypatch.setattr(cluster, "KNOCK_S", 0.5)
    monkeypatch.setattr(cluster, "_imported", SimpleNamespace)  # it knocks before it uses anything of Ray
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        who(server)
        done = srcli("upscale", photo_folder, "-o", tmp_path / "out", "--ray-address", f"127.0.0.1:{port}")
    assert done.returncode == 2
    assert f"the Ray cluster `127.0.0.1:{port}` is not reached: " in done.stderr
    assert reason in done.stderr
    assert "`ray start --head` tells it" in done.stderr


# With Ray itself ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(folder / f"{i:03}.png")
    return folder


def command(models_file: Path, photos: Path, out: Path, device: str) -> list[object]:
    model = ["--models-file", models_file, "--model", "small", "--dtype", "fp32"]
    return ["upscale", photos, "-o", out, *model, "--device", device, "--json"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*.png")}


def workers_of(driver: int) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    if not psutil.pid_exists(driver) or psutil.Process(driver).status() == psutil.STATUS_ZOMBIE:
        return found
    for each in psutil.Process(driver).children(recursive=True):
        try:
            found += [each] if "Worker" in " ".join(each.cmdline()) and "ray::" in each.cmdline()[0] else []
        except (psutil.Error, IndexError):
            continue
    return found


@has_ray
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_workers_and_drivers_change_no_byte(
    models_file: Path, photos: Path, tmp_path: Path, kills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out, chance, noticed = tmp_path / "out", random.Random(kills), 0
    for kind in ("driver", "worker") * kills:
        for path in list(contents(out))[: chance.randint(30, 60)]:
            (out / path).unlink()
        enough = len(contents(out)) + chance.randint(0, 15)
        process = start(*command(models_file, photos, out, "cpu,cpu"))
        wait_for(lambda: workers_of(process.pid) and len(contents(out)) >= enough, process)  # noqa: B023
        victims = workers_of(process.pid)
        assert victims, process.communicate()
        if kind == "driver":
            process.kill()
            process.communicate()
            continue
        chance.choice(victims).send_signal(signal.SIGKILL)
        told, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors
        assert json.loads(told)["failed"] == []
        assert len(contents(out)) == 60
        noticed += "has ended: its process died" in errors  # not of one that had nothing left to do
    plain = start(*command(models_file, photos, tmp_path / "plain", "cpu"))
    plain.communicate(timeout=600)
    assert noticed > kills / 2
    assert contents(out) == contents(tmp_path / "plain")
    assert not [path for path in out.rglob(".*") if path.is_file()]


@has_ray
@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGINT], 130),
        pytest.param([signal.SIGTERM], 143, marks=pytest.mark.slow),
        pytest.param([signal.SIGINT] * 2, -signal.SIGINT, marks=pytest.mark.slow),
        pytest.param([signal.SIGTERM] * 2, -signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param([signal.SIGKILL], -signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_fleet_as_it_ends_a_run(
    models_file: Path, photos: Path, tmp_path: Path, signals: Sequence[int], code: int
) -> None:
    out = tmp_path / "out"
    process = start(*command(models_file, photos, out, "cpu,cpu"))
    wait_for(lambda: contents(out), process)
    assert contents(out), process.communicate()
    all_ = [each.pid for each in psutil.Process(process.pid).children(recursive=True)]
    for number in signals:
        process.send_signal(number)
        time.sleep(0.1)
    told, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    if len(signals) == 1 and code > 0:
        assert json.loads(told)["done"] == len(contents(out)) < 60
        assert "repeat the command to go on" in errors
        assert not [path for path in out.rglob(".*") if path.is_file()]
    wait_for(lambda: not any(map(is_alive, all_)), SimpleNamespace(poll=lambda: None))
    assert not list(filter(is_alive, all_))


@has_ray
@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_fails_by_name_and_nothing_is_done_twice_when_there_is_room(
    models_file: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for i in range(30):  # where the workers write first
        (out / f".{i:03}.png.part").symlink_to("/dev/full")
    full = srcli(*command(models_file, photos, out, "cpu,cpu"))
    assert full.returncode == 1
    failures = json.loads(full.stdout)["failed"]
    assert [Path(each["input"]).name for each in sorted(failures, key=lambda each: each["input"])] == [
        f"{i:03}.png" for i in range(30)
    ]
    assert all("No space left" in each["reason"] and "make room" in each["hint"] for each in failures)
    assert sorted(contents(out)) == [f"{i:03}.png" for i in range(30, 60)]
    status = json.loads(srcli("status", out, "--json").stdout)
    assert (status["done"], status["failed"], status["missing"]) == (30, 30, 0)
    again = json.loads(srcli(*command(models_file, photos, out, "cpu")).stdout)
    assert (again["done"], again["skipped"], again["unknown_settings"]) == (30, 30, 0)


def is_alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], object], process: Any) -> None:
    until = time.monotonic() + 300
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)


@has_ray
def test_a_stopped_worker_is_found_by_its_silence(
    models_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "SILENT_S", 4.0)
    stopped: list[int] = []

    def stop_one() -> None:
        wait_for(lambda: contents(tmp_path / "out"), SimpleNamespace(poll=lambda: None))
        for victim in workers_of(os.getpid())[:1]:
            stopped.append(victim.pid)
            victim.suspend()

    thread = threading.Thread(target=stop_one)
    thread.start()
    done = srcli(*command(models_file, photos, tmp_path / "out", "cpu,cpu"), "--report", tmp_path / "report")
    thread.join()
    assert done.returncode == 0, done.stderr
    assert "gave no sign of life" in done.stderr
    assert len(contents(tmp_path / "out")) == 60
    assert len((tmp_path / "report").read_text().splitlines()) == 60
    assert stopped
    assert not psutil.pid_exists(stopped[0])
