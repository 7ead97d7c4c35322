"""How the command speaks: help, errors, `--quiet` and `--debug`, and progress in a log file, at 80 columns."""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Done, srcli, upscale
from tiny_model import make_model

from srcli import console
from srcli.cli.main import app
from srcli.cli.summary import Summary
from srcli.console import ProgressLines, counted, format_megapixels, rough_duration
from srcli.training.tracking import Progress


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), semantic=True)


def small(models_file: Path) -> list[object]:
    return ["--models-file", models_file, "--model", "small", "--device", "cpu", "--dtype", "fp32"]


def command_names() -> list[tuple[str, ...]]:
    """Every command and group, the root among them."""

    def below(typer: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        yield from ((*path, each.name) for each in typer.registered_commands)
        for group in typer.registered_groups:
            yield from below(group.typer_instance, (*path, group.name))

    return list(below(app, ()))


# Help ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", command_names(), ids=" ".join)
def test_help_documents_at_80_columns_without_types_of_flags(names: tuple[str, ...]) -> None:
    done = srcli(*names, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not re.search(r"<\w+(\[\w+\])?> ", done.stdout)
    assert "completion" not in done.stdout
    if names and names != ("models",):
        assert "Example:" in done.stdout
        assert "--quiet" in done.stdout
        assert "--debug" in done.stdout


def test_the_commands_stand_in_panels() -> None:
    lines = srcli("--help").stdout.splitlines()
    panels = [line.split()[1] for line in lines if line.startswith("╭")]
    assert panels == ["Options", "Use", "Measure", "Train"]
    words = [line.split()[1] for line in lines if re.match(r"│ [a-z]", line)]
    assert words == ["upscale", "status", "models", "eval", "sweep", "train-pixel", "train-semantic", "train-estimator"]


def test_a_stage_of_several_methods_names_them_before_each_has_its_say() -> None:
    told = " ".join(srcli("train-pixel", "--help").stdout.split())
    parts = ("models of these kinds: PiSA-SR, super-resolution network.", "PiSA-SR's first stage", "The network stays as it is")
    found = [told.index(part) for part in parts]
    assert found == sorted(found)


def test_completion_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = srcli("--show-completion", "bash")
    assert done.returncode == 0
    assert "_SRCLI_COMPLETE" in done.stdout


@pytest.mark.parametrize("names", [name for name in command_names() if name and name != ("models",)], ids=" ".join)
def test_help_phrases_are_sentences(names: tuple[str, ...]) -> None:
    functions: dict[tuple[str, ...], Any] = {(each.name,): each.callback for each in app.registered_commands}
    for group in app.registered_groups:
        functions |= {(group.name, each.name): each.callback for each in group.typer_instance.registered_commands}
    for name, parameter in inspect.signature(functions[names]).parameters.items():
        (option,) = parameter.annotation.__metadata__
        assert re.match(r"[A-Z`0-9]", option.help), name
        assert option.help.endswith("."), name
        assert not option.help.startswith(("Of ", "As ", "Else ")), name


def test_the_version() -> None:
    assert srcli("--version").stdout.startswith("srcli 0.")


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["upscale", "-o", "x"], "no input given", "see `srcli upscale --help`"),
        (["upscale", "x"], "missing option `-o` / `--output`", "see `srcli upscale --help`"),
        (["upscale", "--outptu", "x"], "no such option: `--outptu`", "did you mean `--output`? Else see `srcli upscale --help`"),
        (["upscale", "x", "-o"], "option `-o` requires an argument", "see `srcli upscale --help`"),
        (["models", "list", "x", "y"], "more arguments than the command takes: `x y`", "see `srcli models list --help`"),
        (["models", "shwo"], "no such command `shwo`", "did you mean `show`? Else see `srcli models --help`"),
        (["nonsense"], "no such command `nonsense`", "see `srcli --help`"),
        (["-q"], "missing command", "see `srcli --help`"),
    ],
)
def test_what_the_parser_finds_is_told_in_our_words(words: list[str], message: str, hint: str) -> None:
    done = srcli(*words)
    assert done == Done(2, "", f"error: {message}\n\nhint: {hint}\n")


def test_a_value_of_the_wrong_kind_is_named() -> None:
    done = srcli("upscale", "x", "-o", "y", "--scale", "four")
    assert done.returncode == 2
    assert re.match(r"error: .*--scale.*four.*number|error: .*--scale.*`four`.*float", done.stderr)
    assert done.stderr.endswith("\n\nhint: see `srcli upscale --help`\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["upscale", "x"], "missing option `-o` / `--output`"),
        (["upscale", "nowhere", "-o", "out"], "nowhere"),
        (["eval"], "nothing to evaluate"),
        (["sweep", "nowhere", "-o", "out"], "nothing to sweep"),
        (["models", "show", "nothing"], "nothing"),
    ],
)
def test_programs_that_ask_for_json_get_errors_as_json(here: Path, words: list[str], message: str) -> None:
    done = srcli(*words, "--json")
    assert done.returncode == 2
    told = json.loads(done.stdout)
    assert set(told) == {"error"}
    assert set(told["error"]) == {"message", "hint"}
    assert message in told["error"]["message"]
    assert done.stderr.startswith("error: ")


def test_no_words_at_all_show_the_help() -> None:
    for words in ([], ["models"]):
        done = srcli(*words)
        assert "Usage: srcli" in done.stdout
        assert "error" not in done.stderr


def test_debug_shows_where_an_error_arose_and_keeps_its_exit_code(here: Path) -> None:
    for words in (["--debug", "upscale", "nowhere", "-o", "out"], ["upscale", "nowhere", "-o", "out", "--debug"]):
        done = srcli(*words)
        assert done.returncode == 2
        assert "Traceback" in done.stderr
        assert "\nerror: " in done.stderr
    assert "Traceback" not in srcli("upscale", "nowhere", "-o", "out").stderr


def test_an_interrupt_outside_of_the_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("srcli.cli.models.load_registry", interrupted)
    assert srcli("models", "list") == Done(130, "", "interrupted\n")


# Quiet and loud ------------------------------------------------------------------------------------------------------


def test_quiet_after_the_command_hides_messages_and_no_plan(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    assert upscale(models_file, photo_folder / "a.png", "-o", tmp_path / "out", "-q").stderr == ""
    plan = upscale(models_file, photo_folder, "-o", tmp_path / "new", "--dry-run", "--quiet").stderr
    assert "84x60 -> " in plan
    assert "3 to do (0.13 MP); about " in plan
    assert srcli("models", "list", "-q").stderr == ""
    assert "your own rows" in srcli("models", "list").stderr


def test_the_clock_is_told_with_debug_alone(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    words = [photo_folder / "a.png", "-o", tmp_path / "out", "--overwrite"]
    assert "waiting for input" not in upscale(models_file, *words).stderr
    assert "waiting for input" in upscale(models_file, *words, "--debug").stderr


# The end of a run ----------------------------------------------------------------------------------------------------


def test_skipped_and_failed_photos_are_counted_where_there_are_such(
    models_file: Path, photo_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    upscale(models_file, photo_folder / "a.png", "-o", out)
    (photo_folder / "bad.png").write_bytes(b"")
    last = upscale(models_file, photo_folder, "-o", out).stderr.splitlines()[-1]
    assert re.fullmatch(rf"2 photos upscaled to {out} \(0\.051 MP in [\d.]+ s\), 1 skipped \(done before\), 1 failed", last)
    last = upscale(models_file, photo_folder / "a.png", "-o", out).stderr.splitlines()[-1]
    assert last == "0 photos upscaled, 1 skipped (done before)"


@pytest.mark.parametrize(
    ("done", "megapixels", "words"),
    [
        (1, 0.02, "1 photo upscaled to out (0.02 MP in 4.0 s)"),
        (2, 4.9, "2 photos upscaled to out (4.9 MP in 4.0 s)"),
        (1, 48.0, "1 photo upscaled to out (48.0 MP in 4.0 s, 12.0 MP/s)"),
        (4, 0.4, "4 photos upscaled to out (0.4 MP in 4.0 s, 0.1 MP/s)"),
    ],
)
def test_a_speed_is_told_where_it_says_something(
    caplog: pytest.LogCaptureFixture, done: int, megapixels: float, words: str
) -> None:
    with caplog.at_level(logging.INFO, "srcli"):
        Summary(Path("out"), done=done, megapixels=megapixels, seconds=9, work_seconds=4).show()
    assert caplog.messages == [words]


def test_numbers_are_told_as_people_say_them() -> None:
    assert [counted(number, "photo") for number in (0, 1, 2)] == ["0 photos", "1 photo", "2 photos"]
    assert [format_megapixels(each) for each in (0.0213, 0.9, 1.06, 123.4)] == ["0.021 MP", "0.9 MP", "1.1 MP", "123 MP"]
    assert [rough_duration(each) for each in (0.2, 40, 1500, 7500)] == ["1 s", "40 s", "25 min", "2 h 05 min"]


# Progress without a terminal -----------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    lines = ProgressLines(300, "photo", 300.0, clock)
    with caplog.at_level(logging.INFO, "srcli"):
        for _ in range(12):
            clock.now += 5
            lines.advance(1.0)
        assert caplog.messages == ["12 of 300 photos done, about 24 min left"]
        for _ in range(288):
            clock.now += 5
            lines.advance(1.0)
    assert len(caplog.messages) == 24
    assert caplog.messages[-1] == "288 of 300 photos done, about 60 s left"


def test_work_of_an_earlier_run_says_nothing_of_the_pace(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    lines = ProgressLines(10, "picture", 10, clock)
    with caplog.at_level(logging.INFO, "srcli"):
        for _ in range(8):
            lines.advance(1, before=True)
        clock.now += 90
        lines.advance(1)
    assert caplog.messages == ["9 of 10 pictures done, about 2 min left"]


def test_training_tells_a_line_a_minute_however_rare_its_records(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO, "srcli"), Progress(100, 0, 50, shown=True, clock=clock) as progress:
        for step in range(1, 4):
            clock.now += 40
            progress.update(step, {"l2": 0.5})
    assert caplog.messages == ["step 2 of 100: l2 0.5; 40.00 s a step, about 65 min left"]


def test_each_command_that_takes_long_tells_its_progress(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out")
    assert re.search(r"^2 of 3 photos done, about \d+ s left$", done.stderr, re.MULTILINE)
    done = srcli("eval", tmp_path / "out", "--hq", hq_folder)
    assert re.search(r"^2 of 3 pictures done, about \d+ s left$", done.stderr, re.MULTILINE)
    done = srcli("sweep", photo_folder, "-o", tmp_path / "sweep", "--lambda-pixel", "0,1", *small(models_file))
    assert re.search(r"^5 of 6 pictures done, about \d+ s left$", done.stderr, re.MULTILINE)
    assert done.stdout == ""


# The table of a sweep ------------------------------------------------------------------------------------------------


def test_of_many_settings_the_best_are_shown(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srcli.cli.sweep.MOST_ROWS", 3)
    words = ["--lambda-pixel", "0:2:0.5", "--hq", hq_folder / "b.png", "--metrics", "psnr", *small(models_file)]
    done = srcli("sweep", photo_folder / "b.jpg", "-o", tmp_path / "out", *words)
    values = [float(row.split()[1].rstrip("*+")) for row in done.stdout.splitlines() if re.match(r" \d", row)]
    everything = [cell["psnr"] for cell in json.loads((tmp_path / "out" / "table.json").read_text())["cells"]]
    assert values == [round(value, 2) for value in sorted(everything, reverse=True)[:3]]
    assert f"the 3 best of 5 settings by PSNR; all are in `{tmp_path / 'out' / 'table.md'}`" in done.stderr
    assert srcli("sweep", photo_folder / "b.jpg", "-o", tmp_path / "out", *words, "-q") == Done(0, done.stdout, "")
