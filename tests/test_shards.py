"""Shards of a folder, and what an output folder knows of its results."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Done, srcli, start, upscale
from PIL import Image
from tiny_model import make_model

from srcli import disk
from srcli.errors import UsageError
from srcli.shards.ledger import Ledger
from srcli.shards.shard import Shard, read_shard


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), semantic=True)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve tiny photos in two folders."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(3)
    for i in range(12):
        place = folder / ("sub" if i % 3 else "") / f"{i:02}.png"
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).save(place)
    return folder


def told(done: Done) -> dict[str, Any]:
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def results(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


# Which shard -----------------------------------------------------------------------------------------------------------


def test_a_file_belongs_to_one_shard_whatever_lies_beside_it() -> None:
    names = [f"trip/{i}.jpg" for i in range(4000)]
    shards = [Shard(index, 40) for index in range(1, 41)]
    owners = {name: [shard.index for shard in shards if shard.has(name)] for name in names}
    assert {len(each) for each in owners.values()} == {1}
    assert min(counts := [sum(own == [i] for own in owners.values()) for i in range(1, 41)]) > 60
    assert max(counts) < 150
    assert owners["trip/7.jpg"] == [30]  # for ever: a change would divide the work of everybody's folders anew


SLURM = {"SLURM_ARRAY_TASK_COUNT": "40", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "1"}


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        ("3/40", {}, (3, 40)),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "3"}, (3, 40)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "2"} | SLURM, None),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_STEP": "2"}, (3, 40)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "7", "SRCLI_SHARDS": "40"}, (8, 40)),
        ("auto", {"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "8"}, (3, 8)),
        (
            "auto",
            {**SLURM, "SLURM_ARRAY_TASK_ID": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"},
            (6, 160),
        ),
        ("auto", {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "2"}, (1, 2)),
        ("auto", {"SKYPILOT_JOB_RANK": "9", "SKYPILOT_NUM_JOBS": "10", "SKYPILOT_NODE_RANK": "0"}, (10, 10)),
        ("auto", {"JOB_COMPLETION_INDEX": "39", "SRCLI_SHARDS": "40"}, (40, 40)),
        ("auto", {"JOB_COMPLETION_INDEX": "40", "SRCLI_SHARDS": "40"}, "task 40, counted from 0, of 40"),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_STEP": "2"}, "number the tasks without gaps"),
        ("auto", {"JOB_COMPLETION_INDEX": "1"}, "needs the variable `SRCLI_SHARDS`, which is not set"),
        ("auto", {"SKYPILOT_NODE_RANK": "x", "SKYPILOT_NUM_NODES": "2"}, "is `x`, which is no number"),
        ("auto", {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, "finds no scheduler's variables"),  # the batch script itself
        ("0/40", {}, "is no shard"),
        ("41/40", {}, "is no shard"),
        ("3", {}, "is no shard"),
    ],
)
def test_which_shard_is_meant(text: str, environment: dict[str, str], shard: tuple[int, int] | str | None) -> None:
    if shard is None:
        shard = (4, 40)  # by the array's own first number
    if isinstance(shard, tuple):
        assert read_shard(text, environment) == Shard(*shard)
        return
    with pytest.raises(UsageError) as fault:
        read_shard(text, environment)
    assert shard in str(fault.value)


def test_shards_together_make_what_one_run_makes(models_file: Path, photos: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out", tmp_path / "report.jsonl"
    counts = []
    for index in (3, 1, 2):
        done = upscale(models_file, photos, "-o", out, "--shard", f"{index}/3", "--report", report, "--json")
        assert done.returncode == 0, done.stderr
        assert f"shard {index}/3: {told(done)['done']} of 12 photos" in done.stderr
        counts.append(told(done)["done"])
        assert len((tmp_path / f"report.{index}-of-3.jsonl").read_text().splitlines()) == counts[-1]
    assert sum(counts) == 12
    upscale(models_file, photos, "-o", tmp_path / "whole")
    assert results(out) == results(tmp_path / "whole")
    Image.new("RGB", (16, 12)).save(photos / "added.png")  # the others stay where they are
    again = [told(upscale(models_file, photos, "-o", out, "--shard", f"{i}/3", "--json")) for i in (1, 2, 3)]
    assert sorted(each["done"] for each in again) == [0, 0, 1]
    assert sum(each["skipped"] for each in again) == 12


def test_another_count_of_shards_loses_nothing_and_does_nothing_twice(models_file: Path, photos: Path, tmp_path: Path) -> None:
    options = [photos, "-o", tmp_path / "out", "--json"]
    first = told(upscale(models_file, *options, "--shard", "1/3"))["done"]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    assert 0 < first < 12
    others = [told(upscale(models_file, *options, "--shard", f"{i}/4")) for i in (4, 2, 1, 3)]
    assert [sum(each[what] for each in others) for what in ("done", "skipped")] == [12 - first, first]
    assert {each[what] for each in others for what in ("other_settings", "unknown_settings")} == {0}
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert told(srcli("status", tmp_path / "out", "--json"))["done"] == 12
    upscale(models_file, photos, "-o", tmp_path / "whole")
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_clocks_that_jump_are_told_of_and_cost_nothing(
    models_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, now, jumps = tmp_path / "out", time.time(), itertools.count()
    for path in photos.rglob("*.png"):  # of a camera whose clock was a year ahead
        os.utime(path, (now + 3e7, now + 3e7))
    monkeypatch.setattr(time, "time", lambda: now + 1e7 * (-1) ** next(jumps))
    done = upscale(models_file, photos, "-o", out, "--json")
    assert next(jumps)
    assert (told(done)["done"], told(done)["failed"]) == (12, [])
    before = results(out)
    for path in out.rglob("*.png"):  # the clock was set back meanwhile
        os.utime(path, (now - 3e7, now - 3e7))
    again = upscale(models_file, photos, "-o", out, "--json")
    assert (told(again)["done"], told(again)["skipped"], told(again)["outdated"]) == (0, 12, 12)
    assert "12 photos are newer than their results" in again.stderr
    assert told(upscale(models_file, photos, "-o", out, "--overwrite=changed", "--json"))["done"] == 12
    assert results(out) == before
    assert srcli("status", out).returncode == 0


def test_one_file_has_no_shards(models_file: Path, photos: Path, tmp_path: Path) -> None:
    for source, output in ((photos / "00.png", tmp_path / "one.png"), ("-", tmp_path / "out"), (photos / "00.png", "-")):
        done = upscale(models_file, source, "-o", output, "--shard", "1/2")
        assert done.returncode == 2
        assert "`--shard` divides folders and lists" in done.stderr
    assert not list(tmp_path.glob("o*"))


def test_a_shard_is_one_run_s_alone_and_others_are_not_kept_out(models_file: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / ".srcli" / "of-3"
    folder.mkdir(parents=True)
    with disk.only_run(folder / "1.lock", "it"):
        refused = upscale(models_file, photos, "-o", tmp_path / "out", "--shard", "1/3")
        assert refused.returncode == 2
        assert "another run is at shard 1/3" in refused.stderr
        assert results(tmp_path / "out") == {}
        assert upscale(models_file, photos, "-o", tmp_path / "out", "--shard", "2/3").returncode == 0
        assert upscale(models_file, photos, "-o", tmp_path / "out").returncode == 0
    assert upscale(models_file, photos, "-o", tmp_path / "out", "--shard", "1/3").returncode == 0


def test_a_large_folder_is_begun_before_all_of_it_is_looked_into(
    models_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from srcli.cli import working
    from srcli.engine.restore import Engine
    from srcli.images import codec

    for i in range(12, 60):
        shutil.copy(photos / "00.png", photos / f"{i}.png")
    for name in ("0.png", "z.png"):
        (photos / "sub" / name).write_bytes(b"no picture")
    probe, restore, looked = codec.probe, Engine.restore, list[Path]()
    at: list[int] = []
    monkeypatch.setattr(working, "_LOOKED_INTO", 3)
    monkeypatch.setattr(codec, "probe", lambda path: looked.append(path) or probe(path))
    monkeypatch.setattr(Engine, "restore", lambda self, *rest: at.append(len(looked)) or restore(self, *rest))
    done = upscale(models_file, photos, "-o", tmp_path / "out", "--batch", 1, "--json", "--report", tmp_path / "report")
    assert at[0] < 20
    assert (done.returncode, told(done)["done"]) == (1, 60)
    assert [Path(each["input"]).name for each in told(done)["failed"]] == ["0.png", "z.png"]
    assert len((tmp_path / "report").read_text().splitlines()) == 62
    assert len(results(tmp_path / "out")) == 60


# Done with these settings ---------------------------------------------------------------------------------------------


def test_results_of_other_settings_are_named_and_redone_when_asked(models_file: Path, photos: Path, tmp_path: Path) -> None:
    options = [photos, "-o", tmp_path / "out", "--json"]
    upscale(models_file, *options)
    before = results(tmp_path / "out")
    (tmp_path / "out" / "00.png").unlink()
    report = tmp_path / "report"
    other = upscale(models_file, *options, "--lambda-semantic", 0.5, "--report", report)
    assert (told(other)["done"], told(other)["skipped"], told(other)["other_settings"]) == (1, 11, 11)
    assert "dials lambda_semantic was `1`, is `0.5`" in other.stderr
    reasons = [json.loads(line)["reason"] for line in report.read_text().splitlines()]
    assert sorted(reasons) == [""] + ["exists, made with other settings"] * 11
    mixed = told(upscale(models_file, *options))
    assert (mixed["skipped"], mixed["other_settings"]) == (12, 1)
    planned = upscale(models_file, photos, "-o", tmp_path / "out", "--dry-run", "--overwrite=changed")
    assert "1 to do" in planned.stderr
    mended = told(upscale(models_file, *options, "--overwrite=changed"))
    assert (mended["done"], mended["skipped"], mended["other_settings"]) == (1, 11, 0)
    assert results(tmp_path / "out") == before
    assert told(upscale(models_file, *options, "--overwrite"))["done"] == 12


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        (["--scale", 4], True),  # which is the model's own
        (["--tile", 64, "--batch", 2], True),
        (["--quality", 80], False),
        (["--color-fix", "wavelet"], False),
        (["--long-side", 40], False),
        (["--strip-metadata"], False),
        (["--dtype", "bf16"], True),
    ],
)
def test_what_decides_the_pixels(models_file: Path, photos: Path, tmp_path: Path, changes: list[object], same: bool) -> None:
    assert srcli("upscale", photos / "00.png", "-o", tmp_path / "out", *own(models_file)).returncode == 0 or not (
        tmp_path / "out"
    )
    (tmp_path / "out").mkdir(exist_ok=True)
    done = srcli("upscale", photos / "00.png", "-o", tmp_path / "out", *own(models_file), *changes, "--json")
    assert (told(done)["skipped"], told(done)["other_settings"]) == (1, 0 if same else 1), done.stderr


def own(models_file: Path) -> list[object]:
    return ["--models-file", models_file, "--model", "small", "--device", "cpu"]


def test_an_adapter_of_another_content_makes_other_results(models_file: Path, photos: Path, tmp_path: Path) -> None:
    options = [photos, "-o", tmp_path / "out", "--json"]
    upscale(models_file, *options)
    adapter = models_file.parent / "semantic"
    done = upscale(models_file, *options, "--pixel", adapter)
    assert told(done)["other_settings"] == 12, done.stderr
    assert "adapters pixel was" in done.stderr


def test_what_no_ledger_knows_is_told_and_redone_when_asked(models_file: Path, photos: Path, tmp_path: Path) -> None:
    options = [photos, "-o", tmp_path / "out", "--json"]
    upscale(models_file, *options)
    (tmp_path / "out" / "00.png").write_bytes(b"edited by another program")
    done = upscale(models_file, *options)
    assert (told(done)["skipped"], told(done)["unknown_settings"]) == (12, 1)
    assert "1 result is kept of which it is not known" in done.stderr
    later = (photos / "03.png").stat().st_mtime + 3600  # by a clock that was wrong, too
    os.utime(photos / "03.png", (later, later))
    assert told(upscale(models_file, *options, "--overwrite=changed"))["done"] == 2
    assert srcli("upscale", *options, "--overwrite", "--overwrite=changed").returncode == 2
    (tmp_path / "one.png").write_bytes(b"of whoever")  # a file as output has no ledger beside it
    one = upscale(models_file, photos / "00.png", "-o", tmp_path / "one.png", "--json", "--overwrite=changed")
    assert told(one)["done"] == 1
    assert not (tmp_path / ".srcli").exists()


def test_another_run_of_other_settings_in_the_same_folder_is_told(
    models_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from srcli.engine.restore import Engine

    restore, out = Engine.restore, tmp_path / "out"
    upscale(models_file, photos, "-o", tmp_path / "other", "--lambda-semantic", 0.5)
    content = (tmp_path / "other" / "sub" / "11.png").read_bytes()

    def beside_another(self: Engine, *rest: Any) -> Any:
        if not (out / "sub" / "11.png").exists():
            (out / "sub").mkdir(exist_ok=True)
            other = Ledger(out, {"dials": "others"})
            with other.opened():
                other.placing(out / "sub" / "11.png", len(content))
            (out / "sub" / "11.png").write_bytes(content)
        return restore(self, *rest)

    monkeypatch.setattr(Engine, "restore", beside_another)
    done = upscale(models_file, photos, "-o", out, "--json", "--batch", 1)
    assert (told(done)["done"], told(done)["other_settings"]) == (11, 1), done.stderr


# How far it is --------------------------------------------------------------------------------------------------------


def test_status_merges_what_the_shards_tell(models_file: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert srcli("status", out).returncode == 2
    (photos / "broken.png").write_bytes(b"no picture")
    owner = next(i for i in (1, 2, 3) if Shard(i, 3).has("broken.png"))
    others = [i for i in (1, 2, 3) if i != owner]
    for index in (owner, others[0]):
        upscale(models_file, photos, "-o", out, "--shard", f"{index}/3")
    done = srcli("status", out, "--json")
    assert done.returncode == 1
    assert told(done)["not_begun"] == 1
    assert (told(done)["failed"], told(done)["missing"]) == (1, 0)
    (failure,) = told(done)["shards"][owner - 1]["failed"]
    assert failure["input"] == str(photos / "broken.png")
    assert "not begun" in srcli("status", out).stdout
    (photos / "broken.png").unlink()
    for index in (1, 2, 3):
        upscale(models_file, photos, "-o", out, "--shard", f"{index}/3")
    assert srcli("status", out).returncode == 0
    (out / "00.png").unlink()
    assert told(srcli("status", out, "--json"))["done"] in (11, 12)  # kept ones were looked for when the run began
    upscale(models_file, photos, "-o", out)
    whole = srcli("status", out)
    assert (whole.returncode, whole.stdout) == (0, "")
    assert "12 of 12 photos done, 0 failed, 0 missing" in whole.stderr


def test_status_in_the_middle_of_a_run(models_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from srcli.engine.restore import Engine

    restore, seen = Engine.restore, []

    def asking(self: Engine, *rest: Any) -> Any:
        seen.append(told(srcli("status", tmp_path / "out", "--json")))
        return restore(self, *rest)

    monkeypatch.setattr(Engine, "restore", asking)
    assert upscale(models_file, photos, "-o", tmp_path / "out", "--batch", 1).returncode == 0
    assert [each["planned"] for each in seen] == [12] * 12
    assert (seen[0]["done"], seen[0]["missing"]) == (0, 12)
    assert 0 < seen[-1]["done"] < 12
    assert all(each["done"] + each["missing"] == 12 for each in seen)


# Faults ----------------------------------------------------------------------------------------------------------------


def test_a_result_is_in_the_ledger_before_it_is_in_place(tmp_path: Path) -> None:
    ledger, path = Ledger(tmp_path, {"a": 1}), tmp_path / "sub" / "x.png"
    (tmp_path / ".srcli" / "of-1").mkdir(parents=True)

    def placing(size: int) -> None:
        ledger.placing(path, size)
        raise KeyboardInterrupt

    disk.write_whole(path, b"old")
    with ledger.opened(), pytest.raises(KeyboardInterrupt), disk.whole(path, placing=placing) as file:
        file.write(b"newer")
    assert path.read_bytes() == b"old"
    assert ledger.makers({"sub/x.png": 3}) == {}
    assert ledger.makers({"sub/x.png": 5}) == {"sub/x.png": ledger.made_with}


def test_lines_that_were_cut_cost_only_themselves(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, {"a": 1})
    file = tmp_path / ".srcli" / "of-1" / "1.jsonl"
    file.parent.mkdir(parents=True)
    with ledger.opened():
        ledger.placing(tmp_path / "a.png", 1)
    file.write_bytes(file.read_bytes() + b'{"result": "b.png", "by')
    with ledger.opened():
        ledger.placing(tmp_path / "c.png", 3)
    assert set(ledger.makers({"a.png": 1, "b.png": 2, "c.png": 3})) == {"a.png", "c.png"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_what_cannot_be_recorded_is_not_put_in_place(models_file: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = out / ".srcli" / "of-2" / "1.jsonl"
    file.parent.mkdir(parents=True)
    file.symlink_to("/dev/full")
    done = upscale(models_file, photos, "-o", out, "--shard", "1/2")
    assert done.returncode == 1
    assert "cannot be written: No space left" in done.stderr
    assert "make room or give another `--output`" in done.stderr
    assert results(out) == {}


@pytest.mark.parametrize("kills", [2, pytest.param(24, marks=pytest.mark.slow)])
def test_kills_leave_no_result_of_unknown_settings(models_file: Path, photos: Path, tmp_path: Path, kills: int) -> None:
    out = tmp_path / "out"
    rng = np.random.default_rng(kills)
    for i in range(12, 12 + 6 * kills):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(photos / f"{i:03}.png")
    for kill in range(kills):
        shards = ["--shard", f"{1 + kill % 2}/2"]
        before = len(results(out))
        process = start("upscale", photos, "-o", out, *own(models_file), "--dtype", "fp32", *shards)
        while len(list(out.rglob("[!.]*.png"))) < before + 1 + kill % 4 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    options = [photos, "-o", out, "--json"]
    last = told(upscale(models_file, *options))
    assert (last["unknown_settings"], last["other_settings"], last["failed"]) == (0, 0, [])
    upscale(models_file, photos, "-o", tmp_path / "whole")
    assert results(out) == results(tmp_path / "whole")


# What docs/scale.md gives to schedulers -------------------------------------------------------------------------------

DOCS = Path(__file__).resolve().parents[1] / "docs" / "scale.md"


def block(kind: str) -> str:
    found = re.search(rf"```{kind}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_the_slurm_script_does_a_shard(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(block("bash"))
    stand_in = tmp_path / "bin" / "srcli"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} -m srcli "$@"\n')
    stand_in.chmod(0o755)
    place = next(path for path in photos.rglob("*.png"))
    index = Shard.of(place.relative_to(photos).as_posix(), 40).index
    environment = {
        **os.environ,
        "PATH": f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(DOCS.parents[1]),
        "SLURM_ARRAY_TASK_ID": str(index - 1),
        "PHOTOS": str(photos),
        "RESULTS": str(tmp_path / "out"),
    }
    done = subprocess.run(["bash", tmp_path / "job.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / place.relative_to(photos)).is_file()
    assert (tmp_path / "out" / "reports" / f"report.{index}-of-40.jsonl").is_file()
    tasks = re.search(r"--array=0-(\d+)", block("bash"))
    assert tasks
    assert f"SRCLI_SHARDS={int(tasks[1]) + 1}\n" in block("bash")


def test_the_kubernetes_job_has_as_many_indexes_as_shards() -> None:
    job = pytest.importorskip("yaml").safe_load(block("yaml"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert int(environment["SRCLI_SHARDS"]) == job["spec"]["completions"]
    assert read_shard("auto", {**environment, "JOB_COMPLETION_INDEX": "39"}) == Shard(40, 40)
    assert job["spec"]["completionMode"] == "Indexed"
    assert container["args"][container["args"].index("--shard") + 1] == "auto"
