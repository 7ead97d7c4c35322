"""What launchers set, and whether their processes are one run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_cli_training import SHORT, adapter, environment, free_port
from tiny_model import make_base
from training_case import make_photos

from srcli.errors import UsageError
from srcli.training.launch import find_place

KINDS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "ompi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "mvapich": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    "intel mpi": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}


def variables(kind: str, *values: object) -> dict[str, str]:
    return dict(zip(KINDS[kind], map(str, values), strict=False))


@pytest.mark.parametrize("kind", KINDS)
def test_processes_are_told_apart_by_what_their_launcher_sets(kind: str) -> None:
    found = [find_place(variables(kind, rank, 2, rank, 2)) for rank in (0, 1)]
    told = [place.as_torchrun(devices=8) for place in found if place]
    assert [words["RANK"] + words["LOCAL_RANK"] for words in told] == ["00", "11"]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert all(words.items() >= common.items() for words in told)
    far = {**variables(kind, 3, 4, 1, "2(x2)" if kind == "slurm" else 2), "MASTER_ADDR": "node7", "MASTER_PORT": "1234"}
    place = find_place(far)
    assert place
    expected = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "1234"}
    assert place.as_torchrun(devices=8).items() >= expected.items()
    del far["MASTER_ADDR"]
    with pytest.raises(UsageError, match="4 processes, and `MASTER_ADDR` does not say where they meet") as caught:
        find_place(far)
    assert ("scontrol show hostnames" if kind == "slurm" else "MASTER_ADDR=NAME") in caught.value.hint
    assert find_place(variables(kind, 0, 1, 0, 1)) is None


def test_a_process_is_alone_where_nothing_was_started_beside_it() -> None:
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}
    for words in ({}, batch_script, {"LOCAL_RANK": "-1"}, {"MASTER_ADDR": "here"}, {"PMI_RANK": "0"}):
        assert find_place(words) is None


def test_who_started_the_process_itself_counts() -> None:
    nested = {**variables("slurm", 1, 2, 0, "1(x2)"), **variables("torchrun", 5, 8, 1, 4), "MASTER_ADDR": "a"}
    place = find_place(nested)
    assert place
    assert (place.rank, place.processes) == (5, 8)


def test_gpus_are_dealt_out_by_rank_where_nothing_else_is_said() -> None:
    place = find_place({"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "a"})
    assert place
    assert [place.as_torchrun(devices)["LOCAL_RANK"] for devices in (0, 1, 4)] == ["0", "0", "1"]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ({"WORLD_SIZE": "2"}, "`RANK` is not set, but `WORLD_SIZE` is 2"),
        ({"RANK": "1"}, "`RANK` is set, but `WORLD_SIZE` is not"),
        ({"LOCAL_RANK": "1"}, "`LOCAL_RANK` is set, but `WORLD_SIZE` is not"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "`RANK` is 2, but `WORLD_SIZE` is 2"),
        ({"PMI_SIZE": "two"}, "`PMI_SIZE` is `two`, which is no number"),
    ],
)
def test_what_makes_no_sense_is_refused(words: dict[str, str], fault: str) -> None:
    with pytest.raises(UsageError, match=fault) as caught:
        find_place(words)
    assert "torchrun" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mvapich"])
def test_two_processes_of_any_launcher_are_one_run(kind: str, tmp_path: Path) -> None:
    """Without `--device cpu`; then one of them is lost, of which the other one tells."""
    base, photos = make_base(tmp_path / "base"), make_photos(tmp_path / "photos")
    short = [word for word in SHORT if word not in ("--device", "cpu")]
    words = ["train-pixel", "--data", photos, "--base", base, "-o", tmp_path / "run", *short, "--save-every", 2]
    port = {"MASTER_PORT": str(free_port()), "CUDA_VISIBLE_DEVICES": ""}

    def both(steps: int, *more: object) -> list[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "srcli", *map(str, [*words, "--steps", steps, *more])]
        places = [environment() | port | variables(kind, rank, 2, rank, 2) for rank in (0, 1)]
        return [subprocess.Popen(command, env=place, stderr=subprocess.PIPE, text=True) for place in places]

    first, second = both(2)
    told = [first.communicate(timeout=240)[1], second.communicate(timeout=240)[1]]
    assert (first.returncode, second.returncode) == (0, 0), told
    assert "2 processes on `cpu`" in told[0]
    assert told[1] == ""
    assert any(value.abs().max() > 0 for key, value in adapter(tmp_path / "run", "pixel").items() if "lora_B" in key)
    first, second = both(100_000, "--resume")
    for line in first.stderr or ():
        if "step 4 of" in line:
            break
    second.kill()
    _, errors = first.communicate(timeout=240)
    second.communicate()
    assert first.returncode == 1
    assert "another process of this run has ended" in errors
    assert "Traceback" not in errors


def test_processes_that_cannot_share_a_device_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from training_case import make_config

    from srcli.training.setup import make_accelerator

    for name, value in variables("slurm", 0, 2, 0, 2).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UsageError, match="2 processes cannot share `cuda:1`"):
        make_accelerator(make_config("pixel", tmp_path, tmp_path, device="cuda:1"))
