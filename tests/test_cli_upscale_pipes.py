"""`srcli upscale` at a shell: `-` as input and output, lists of files, signals, several runs at once, and kills."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import Done, srcli, start, upscale
from PIL import Image
from tiny_model import make_model

from srcli import disk
from srcli.cli.main import main
from srcli.console import CountProgress
from srcli.engine.restore import Engine


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """`a.png`, `sub/b.jpg`, and a name that would be two lines."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.jpg", "c\nd.png"):
        Image.new("RGB", (16, 12), (200, 100, 60)).save(folder / name)
    return folder


def noise(folder: Path, count: int, side: int = 64) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.effect_noise((side, side), 60).convert("RGB").save(folder / f"{index:03}.png")
    return folder


def options(models_file: Path) -> list[object]:
    return ["--models-file", models_file, "--model", "small", "--device", "cpu", "--dtype", "fp32"]


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def piped(content: bytes, *arguments: object, pipe: type[io.TextIOWrapper] = io.TextIOWrapper) -> tuple[int, bytes, str]:
    """The command in this process, with `content` on standard input: exit code, standard output and error."""
    out, err = io.BytesIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", pipe(io.BytesIO(content)))
        patch.setattr(sys, "stdout", pipe(out, write_through=True))
        patch.setattr(sys, "stderr", err)
        patch.setattr(sys, "argv", ["srcli", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), out.getvalue(), err.getvalue()


def files(folder: Path) -> list[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(path.as_posix() for path in found if path.parts[0] != ".srcli")


def told(done: Done) -> dict[str, Any]:
    return dict(json.loads(done.stdout))


# Pipes and lists -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "jpeg", None])
def test_a_picture_goes_through_pipes(models_file: Path, photos: Path, format: str | None) -> None:
    asked = ["--format", format] if format else []
    content = (photos / "a.png").read_bytes()
    code, out, err = piped(content, "upscale", "-", "-o", "-", *asked, *options(models_file))
    assert code == 0, err
    with Image.open(io.BytesIO(out)) as image:
        assert (image.format, image.size) == ((format or "png").upper(), (64, 48))
    assert "1 photo upscaled to standard output" in err


def test_a_real_pipe_gets_the_picture_and_nothing_else(models_file: Path, photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "srcli", "upscale", "-", "-o", "-", *map(str, options(models_file))]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    content = (photos / "a.png").read_bytes()
    done = subprocess.run(command, input=content, capture_output=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert piped(content, "upscale", "-", "-o", "-", *options(models_file))[1] == done.stdout
    assert not files(tmp_path / "temporary")


def test_standard_input_to_a_file_or_folder_and_a_file_to_standard_output(
    models_file: Path, photos: Path, tmp_path: Path
) -> None:
    content = (photos / "sub" / "b.jpg").read_bytes()
    for output in ("out", "x.webp"):
        assert piped(content, "upscale", "-", "-o", tmp_path / output, *options(models_file))[0] == 0
    assert files(tmp_path / "out") == ["stdin.jpg"]
    assert (tmp_path / "x.webp").exists()
    code, out, _ = piped(b"", "upscale", photos / "sub" / "b.jpg", "-o", "-", *options(models_file))
    assert (code, out) == (0, (tmp_path / "out" / "stdin.jpg").read_bytes())


def test_what_is_told_of_standard_input_is_told_once_and_by_that_name(models_file: Path, photos: Path, tmp_path: Path) -> None:
    content = (photos / "sub" / "b.jpg").read_bytes()[:-2]
    for output in ("-", tmp_path / "out"):
        code, _, err = piped(content, "upscale", "-", "-o", output, *options(models_file))
        assert code == 0
        assert err.count("warning: standard input: it has no end marker") == 1, err
        assert "srcli-" not in err


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_on_standard_input_fails_by_that_name(models_file: Path, tmp_path: Path, content: bytes) -> None:
    code, out, err = piped(content, "upscale", "-", "-o", "-", *options(models_file), "--report", tmp_path / "report")
    assert (code, out) == (1, b"")
    assert "error: standard input cannot be read" in err
    assert "srcli-" not in err + (tmp_path / "report").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-", "a.png", "-o", "out"], "stands alone"),
        (["a.png", "-o", "-", "--json"], "`--json` and `-o -` both write to standard output"),
        (["a.png", "b.png", "-o", "-"], "is or may be more than one"),
        ([".", "-o", "-"], "`.` is no file"),
        (["*.png", "-o", "-"], r"`*.png` is no file"),
        (["a.png", "-o", "-", "--suffix", "_x4"], "`--suffix` has no effect with `-o -`"),
        (["a.png", "-o", "out", "--files-from", "list"], "cannot be given together"),
        (["a.png", "-o", "out", "-0"], "`--null` says how the list"),
        (["-o", "out", "--files-from", "gone"], "the list `gone` cannot be read: No such file or directory"),
        (["-o", "out", "--files-from", "-"], "the list `-` names no file"),
        (["-o", "out"], "no input given"),
    ],
)
def test_pipes_and_lists_that_make_no_sense(here: Path, models_file: Path, arguments: list[str], words: str) -> None:
    Image.new("L", (16, 12)).save("a.png")
    code, _, err = piped(b"", "upscale", *arguments, *options(models_file))
    assert code == 2
    assert words in err


@pytest.mark.parametrize(
    ("source", "output", "words"),
    [("a.png", "-", "is not written to a terminal"), ("-", "out", "standard input is a terminal, not a picture")],
)
def test_a_terminal_is_no_pipe(here: Path, models_file: Path, source: str, output: str, words: str) -> None:
    Image.new("L", (16, 12)).save("a.png")
    code, out, err = piped(b"", "upscale", source, "-o", output, *options(models_file), pipe=_Terminal)
    assert (code, out) == (2, b"")
    assert words in err


@pytest.mark.parametrize("null", [True, False])
def test_a_list_keeps_the_tree_below_what_is_common(models_file: Path, photos: Path, tmp_path: Path, null: bool) -> None:
    names = [name for name in files(photos) if null or "\n" not in name]
    end = b"\0" if null else b"\r\n"
    content = b"".join(os.fsencode(photos / name) + end for name in [*names, "sub", "gone.png"])
    arguments = ["--files-from", "-", *(["-0"] if null else []), "-o", tmp_path / "out", "--json", *options(models_file)]
    for done, skipped in ((len(names), 0), (0, len(names))):
        code, out, err = piped(content, "upscale", *arguments)
        assert code == 1
        counts = json.loads(out)
        assert (counts["done"], counts["skipped"]) == (done, skipped)
        assert [each["input"] for each in counts["failed"]] == [str(photos / "gone.png")]
        assert counts["others"] == {"folder": 1}
        assert "gone.png` cannot be read: No such file or directory" in err
    assert files(tmp_path / "out") == names


def test_a_list_with_nuls_is_not_taken_for_lines(models_file: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"a.png\0b.png\0")
    done = upscale(models_file, "--files-from", tmp_path / "list", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "give `--null`" in done.stderr


# Signals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        ("SIGINT", 130, "interrupted"),
        ("SIGTERM", 143, "terminated"),
        pytest.param("SIGHUP", 129, "terminated", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_run_in_order(models_file: Path, tmp_path: Path, number: str, code: int, word: str) -> None:
    folder, report = noise(tmp_path / "in", 60), tmp_path / "report.jsonl"
    process = start("upscale", folder, "-o", tmp_path / "out", "--json", "--report", report, *options(models_file))
    deadline = time.monotonic() + 90
    while len(list((tmp_path / "out").glob("*.png"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert f"{word}: repeat the command to go on" in stderr
    assert "Traceback" not in stderr
    done = json.loads(stdout)["done"]
    assert 2 <= done < 60
    assert len(files(tmp_path / "out")) == done == len(report.read_text().splitlines())


@pytest.mark.parametrize("command", ["sweep", "eval"])
def test_a_signal_ends_other_long_commands_in_order(
    models_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    folder = noise(tmp_path / "in", 3)
    advance = CountProgress.advance

    def told_to_end(self: CountProgress, name: str, **more: Any) -> None:
        advance(self, name, **more)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(CountProgress, "advance", told_to_end)
    if command == "sweep":
        settings = ["--lambda-pixel", "0,1"]
        done = srcli("sweep", folder, "-o", tmp_path / "out", *settings, "--json", *options(models_file))
    else:
        done = srcli("eval", folder, "--hq", folder, "--metrics", "psnr", "--json", "--device", "cpu")
    assert done.returncode == 143, done.stderr
    assert "terminated: " in done.stderr
    assert json.loads(done.stdout)


@pytest.mark.slow
def test_a_second_signal_ends_at_once(models_file: Path, tmp_path: Path) -> None:
    folder = noise(tmp_path / "in", 4, 512)
    program = (
        "import sys, time; from srcli.engine import stream; from srcli.cli.main import main; encode = stream.encode;"
        "stream.encode = lambda *rest: (encode(*rest), print('written', file=sys.stderr, flush=True), time.sleep(60)); main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-c", program, "upscale", folder, "-o", tmp_path / "out", "-q", *options(models_file)]
    with subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "written\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None  # waits for the picture that is being written
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == -signal.SIGTERM


# Several runs, and kills ---------------------------------------------------------------------------------------------


def test_what_another_run_is_making_is_left_to_it(models_file: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert disk.claim(out / "a.png")
    done = upscale(models_file, photos, "-o", out, "--json")
    disk.let_go(out / "a.png")
    assert done.returncode == 0, done.stderr
    assert (told(done)["done"], told(done)["elsewhere"], told(done)["failed"]) == (2, 1, [])
    assert "1 left to another run" in done.stderr
    assert told(upscale(models_file, photos, "-o", out, "--json"))["done"] == 1
    assert files(out) == files(photos)


def test_what_another_run_has_done_meanwhile_is_skipped(
    models_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out, restore = noise(tmp_path / "in", 40, 16), tmp_path / "out", Engine.restore

    def beside_another(self: Engine, *rest: Any) -> Any:
        if not (out / "039.png").exists():  # once: while it is written, it is empty for a moment
            (out / "039.png").write_bytes(b"of another run")
        return restore(self, *rest)

    monkeypatch.setattr(Engine, "restore", beside_another)
    done = upscale(models_file, folder, "-o", out, "--json", "--batch", 1, "--report", tmp_path / "report")
    assert (told(done)["done"], told(done)["skipped"]) == (39, 1)
    assert json.loads((tmp_path / "report").read_text().splitlines()[-1])["status"] == "skipped"
    assert (out / "039.png").read_bytes() == b"of another run"


@pytest.mark.slow
def test_two_runs_share_the_work(models_file: Path, tmp_path: Path) -> None:
    folder = noise(tmp_path / "in", 120)
    runs = [start("upscale", folder, "-o", tmp_path / "out", "--json", *options(models_file)) for _ in range(2)]
    counts = [json.loads(run.communicate(timeout=300)[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum(each["done"] for each in counts) == 120
    assert files(tmp_path / "out") == files(folder)


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(models_file: Path, tmp_path: Path, kills: int) -> None:
    folder, out, chance = noise(tmp_path / "in", 12 * kills), tmp_path / "out", random.Random(kills)
    for _ in range(kills):
        before = len(list(out.glob("[0-9]*.png")))
        process = start("upscale", folder, "-o", out, *options(models_file))
        deadline = time.monotonic() + 90
        enough = before + chance.randint(0, 4)
        while len(list(out.glob("[0-9]*.png"))) < enough and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.random() * (0.05 if enough > before else 4))
        process.kill()
        process.communicate()
    survived = {path.name: path.read_bytes() for path in out.glob("[0-9]*.png")}
    done = upscale(models_file, folder, "-o", out, "--json")
    assert (told(done)["skipped"], told(done)["done"]) == (len(survived), 12 * kills - len(survived))
    upscale(models_file, folder, "-o", tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")
    assert {name: (out / name).read_bytes() for name in files(out)} == {
        name: (tmp_path / "whole" / name).read_bytes() for name in files(out)
    }
    assert {name: (out / name).read_bytes() for name in survived} == survived
