"""The training commands as a shell script and a scheduler see them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import another_run_in
from commands import srcli as run
from PIL import Image
from tiny_model import make_base
from training_case import make_photos

from srcli.networks.saved_adapters import load_adapter
from srcli.rows.lookup import find_model
from srcli.training import loop

ROOT = Path(__file__).resolve().parents[1]
SHORT = ["--batch", "2", "--crop", "32", "--rank", "2", "--alpha", "2", "--workers", "0", "--device", "cpu", "--dtype", "fp32"]
SHORT += ["--lr", "0.01", "--log-every", "2", "--val", "none", "--schedule", "constant", "--warmup", "0"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "OMP_NUM_THREADS": "1", "TERM": "dumb"}


def command(*words: object, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, "-m", *launcher, "srcli", *map(str, words)]


def in_a_process(*words: object, launcher: tuple[str, ...] = (), **more: str) -> subprocess.CompletedProcess[str]:
    line = command(*words, launcher=launcher)
    return subprocess.run(line, env={**environment(), **more}, capture_output=True, text=True, timeout=240, check=False)


def adapter(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_adapter(folder / stage / "adapter_model.safetensors", stage).tensors


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(found: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not found() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"))


def test_both_stages_from_a_shell_script_to_an_upscaled_photo(base: Path, photos: Path, tmp_path: Path) -> None:
    pixel, semantic = tmp_path / "pixel", tmp_path / "semantic"
    done = run("train-pixel", "--data", photos, "-o", pixel, "--base", base, "--steps", 4, "--licence", "CC0-1.0", *SHORT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "step 4 of 4" in done.stderr
    recipe = run("train-pixel", "--model", pixel, "--show-recipe").stdout
    assert "rank = 2 " in recipe, "a run goes on with the recipe of the run that it is of"
    assert find_model(str(pixel)).licence == "CC0-1.0"
    done = run(
        *("train-semantic", "--data", photos, "--pixel", pixel, "-o", semantic, "--base", base, "--steps", 4, *SHORT),
        *("--lpips", 0, "--features", 0, "--csd", 1, "--prompt", "positive", "--negative-prompt", "negative"),
    )
    assert done.returncode == 0, done.stderr
    assert f"--model {semantic}" in done.stderr
    Image.fromarray(np.full((24, 24, 3), 90, np.uint8)).save(tmp_path / "photo.png")

    def upscaled(name: str, *options: object) -> np.ndarray:
        output = tmp_path / f"{name}.png"
        done = run("upscale", tmp_path / "photo.png", "-o", output, "--device", "cpu", "--dtype", "fp32", *options)
        assert done.returncode == 0, done.stderr
        with Image.open(output) as picture:
            return np.asarray(picture)

    row = ["--models-file", semantic / "models.toml", "--model", "semantic"]
    by_row = upscaled("row", *row)
    one = upscaled("one", *row, "--lambda-semantic", 0)
    by_path = upscaled(
        "path", "--models-file", pixel / "models.toml", "--model", "pixel", "--pixel", pixel, "--semantic", semantic
    )
    assert np.array_equal(by_row, by_path)
    assert np.array_equal(by_row, upscaled("folder", "--model", semantic))
    assert not np.array_equal(by_row, one)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), pytest.param(signal.SIGHUP, 0, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_says_how_to_go_on(number: int, code: int, base: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    words = ["train-pixel", "--data", photos, "-o", output, "--base", base, "--steps", 100000, "--workers", 1, *SHORT[10:]]
    words += ["--batch", 1, "--crop", 32, "--rank", 2, "--alpha", 2]
    process = subprocess.Popen(
        command(*words), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = output / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.read_text().count("\n") > 1)
    os.killpg(process.pid, number)  # as schedulers and terminals do: the workers get it too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert f"resume with `srcli train-pixel --data {photos}" in errors
    assert "--resume`" in errors
    assert "Traceback" not in errors
    (checkpoint,) = (output / "checkpoints").iterdir()
    reached = int(checkpoint.name.split("-")[1])
    words[words.index("--steps") + 1] = reached + 2
    done = run(*words, "--resume")
    assert done.returncode == 0, done.stderr
    assert f"going on from step {reached}" in done.stderr


def test_a_killed_run_goes_on_from_its_last_checkpoint(base: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    words = ["train-pixel", "--data", photos, "-o", output, "--base", base, "--steps", 100000, "--save-every", 3, *SHORT]
    process = subprocess.Popen(command(*words), env=environment(), stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list((output / "checkpoints").glob("step-*"))) > 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = run(*words)
    assert done.returncode == 2
    assert "holds the checkpoints of a run" in done.stderr
    steps = max(int(path.name.split("-")[1]) for path in (output / "checkpoints").glob("step-*")) + 3
    words[words.index("--steps") + 1] = steps
    done = run(*words, "--resume")
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    lines = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert lines == sorted(set(lines))


@pytest.mark.parametrize("stage", [pytest.param("pixel", marks=pytest.mark.slow), "semantic"])
def test_two_processes_train_what_one_process_trains(stage: str, base: Path, photos: Path, tmp_path: Path) -> None:
    words: list[object] = [f"train-{stage}", "--data", photos, "--base", base, "--steps", 6, *SHORT, "--save-every", 3]
    if stage == "semantic":
        run("train-pixel", "--data", photos, "-o", tmp_path / "pixel", "--base", base, "--steps", 2, *SHORT)
        (tmp_path / "recipe.toml").write_text("losses = { l2 = 1, gan = 0.1, features = 0, lpips = 0 }\ngan.features = 4\n")
        words += ["--pixel", tmp_path / "pixel", "--recipe", tmp_path / "recipe.toml"]
    launch = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    launch += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port()), "-m")
    without_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    one, two = tmp_path / "one", tmp_path / "two"
    words[words.index("--batch") + 1] = "4"
    done = run(*words, "-o", one)
    assert done.returncode == 0, done.stderr
    words[words.index("--batch") + 1] = "2"
    words[words.index("--device") : words.index("--dtype")] = []  # that it is the CPU is found without being told
    done = in_a_process(*words, "-o", two, launcher=launch, **without_gpu)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "2 processes" in done.stderr
    assert done.stderr.count("step 6 of 6") == 1
    assert len(list((two / "checkpoints").iterdir())) == 2
    for key, value in adapter(one, stage).items():
        assert torch.allclose(value, adapter(two, stage)[key], atol=4e-3), key  # saved in float16
    losses = [[json.loads(line)["l2"] for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
def test_the_same_run_writes_the_same_bytes_in_another_process(base: Path, photos: Path, tmp_path: Path) -> None:
    """So that a semantic run goes on with a pixel adapter that was trained anew."""
    for name, seed in (("one", "1"), ("two", "2")):
        words = ["train-pixel", "--data", photos, "-o", tmp_path / name, "--base", base, "--steps", 2, *SHORT]
        assert in_a_process(*words, PYTHONHASHSEED=seed).returncode == 0
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        for folder in ("pixel", "checkpoints/step-00000002"):
            assert (tmp_path / "one" / folder / file).read_bytes() == (tmp_path / "two" / folder / file).read_bytes()


def test_a_limit_of_memory_is_told(base: Path, photos: Path, tmp_path: Path) -> None:
    words = ["train-pixel", "--data", photos, "-o", tmp_path / "run", "--base", base, "--steps", 1, *SHORT]
    line = f"ulimit -v 1000000; exec {shlex.join(command(*words))}"
    done = subprocess.run(["sh", "-c", line], env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "out of memory" in done.stderr
    assert "`ulimit -v`" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_under_a_falling_rate_says_how_to_train_on(base: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "a run"
    words: list[object] = ["train-pixel", "--data", photos, "--base", base, *SHORT, "--steps", 3, "--schedule", "cosine"]
    assert run(*words, "-o", output).returncode == 0
    words[words.index(3)] = 5
    (tmp_path / "a run-2").mkdir()
    done = run(*words, "-o", output, "--resume")
    assert done.returncode == 2
    assert "under a cosine schedule, a run that began with `--steps 3` cannot become longer" in " ".join(done.stderr.split())
    (command,) = re.findall(r"`srcli (train-pixel [^`]+)`", done.stderr)
    assert run(*shlex.split(command)).returncode == 0
    saved = load_adapter(tmp_path / "a run-3" / "pixel" / "adapter_model.safetensors", "pixel")
    assert saved.info.steps == 5


def test_show_recipe_prints_toml_that_recipe_takes(tmp_path: Path) -> None:
    done = run("train-semantic", "--show-recipe", "--csd", 0.5, "--step-range", 0.1, 0.4, "--rank", 7)
    assert done.returncode == 0, done.stderr
    assert "csd = 0.5" in done.stdout
    assert "step_range = [0.1, 0.4]" in done.stdout
    (tmp_path / "recipe.toml").write_text(done.stdout)
    again = run("train-semantic", "--show-recipe", "--recipe", tmp_path / "recipe.toml")
    assert again.stdout == done.stdout


def test_preview_writes_a_sheet_and_stops(photos: Path, tmp_path: Path) -> None:
    done = run("train-pixel", "--data", photos, "-o", tmp_path, "--preview", 3, "--crop", 32)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "preview.png") as sheet:
        assert sheet.size == (4 * 36 + 4, 22 + 2 * 36)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train-pixel", "-o", "x"], "no `--data` given"),
        (["train-pixel", "--data", "x"], "no `--output` given"),
        (["train-semantic", "--data", "x", "-o", "y"], "builds on the pixel adapter: give `--pixel`"),
        (["train-pixel", "--data", "nowhere", "-o", "y"], "`nowhere` does not exist"),
        (["train-pixel", "--data", "x", "-o", "y", "--rank", "0"], "`rank` = 0"),
        (["train-pixel", "--data", "x", "-o", "y", "--recipe", "none.toml"], "cannot read the recipe"),
        (["train-pixel", "--data", "x", "-o", "y", "--seed", "-1"], "`--seed -1` is not between 0 and"),
        (["train-pixel", "--data", "x", "-o", "y", "--preview", "-1"], "`--preview -1` is negative"),
        (["train-pixel", "--data", "", "-o", "y"], "the source `` names no path"),
    ],
)
def test_wrong_usage_is_exit_code_2(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "hint:" in done.stderr


def test_options_of_score_distillation_without_it_are_refused(photos: Path, tmp_path: Path) -> None:
    words = ["train-semantic", "--data", photos, "--pixel", tmp_path, "-o", tmp_path / "s", "--crop", 32]
    options = ["--captions", "sidecar", "--prompt", "", "--negative-prompt", "x", "--guidance-scale", 3]
    options += ["--step-range", 0.1, 0.4, "--null-prompt-ratio", 0.1]
    done = run(*words, *options)
    assert done.returncode == 2
    for option in (word for word in options if str(word).startswith("--")):
        assert f"`{option}`" in " ".join(done.stderr.split()), option
    done = run(*words, *options, "--csd", 1)
    assert "no pixel adapter" in done.stderr


def test_a_folder_that_is_written_into_takes_no_second_run(base: Path, photos: Path, tmp_path: Path) -> None:
    words = ["train-pixel", "--data", photos, "-o", tmp_path, "--base", base, "--steps", 1, *SHORT, "--resume"]
    with another_run_in(tmp_path, "lockf"):
        done = run(*words)
    assert done.returncode == 2
    assert "another run writes into" in done.stderr
    assert run(*words).returncode == 0


def test_an_output_that_cannot_be_written_into_is_refused_at_once(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for options in ([], ["--preview", 1, "--crop", 32]):
        for place, words in (("file", "is a file"), ("file/below", "cannot write into")):
            done = run("train-pixel", "--data", photos, "-o", tmp_path / place, *options)
            assert done.returncode == 2
            assert words in done.stderr


def test_several_processes_are_resumed_by_their_launcher(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "train", lambda *_: loop.Stopped(3, "SIGTERM", processes=2))
    done = run("train-pixel", "--data", photos, "-o", tmp_path)
    assert done.returncode == 0
    assert "stopped at step 3; resume with the same command and `--resume`" in " ".join(done.stderr.split())


def test_lpips_without_its_weights_tells_the_ways_out(base: Path, photos: Path, tmp_path: Path) -> None:
    run("train-pixel", "--data", photos, "-o", tmp_path / "pixel", "--base", base, "--steps", 1, *SHORT)
    words = ["train-semantic", "--data", photos, "--pixel", tmp_path / "pixel", "-o", tmp_path / "s", "--base", base, *SHORT]
    words += ["--lpips", 2]
    done = in_a_process(*words, TORCH_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "srcli models fetch lpips-vgg" in done.stderr
    assert "--lpips 0" in done.stderr
