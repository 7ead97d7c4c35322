from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import in_process_of_its_own, srcli, upscale
from PIL import Image
from tiny_model import make_model

from srcli.images import codec
from srcli.images.codec import Picture, decode, encode


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def test_a_folder_is_upscaled_and_told_as_json(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out", "--json", "--report", tmp_path / "report.jsonl")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["done"], told["skipped"], told["failed"]) == (3, 0, [])
    assert told["megapixels"] == pytest.approx((60 * 84 + 31 * 50 + 50 * 33) * 16 / 1e6)
    assert told["seconds"] > 0
    for name in ("a.png", "b.jpg", "sub/c.png"):
        with Image.open(photo_folder / name) as source, Image.open(tmp_path / "out" / name) as result:
            assert result.size == (source.width * 4, source.height * 4)
            assert result.format == source.format
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["done"] * 3
    assert lines[0]["output_size"] == [336, 240]


def test_what_is_done_is_skipped_unless_overwritten(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    upscale(models_file, photo_folder, "-o", tmp_path / "out")
    (tmp_path / "out" / "b.jpg").unlink()
    before = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    told = json.loads(upscale(models_file, photo_folder, "-o", tmp_path / "out", "--json").stdout)
    assert (told["done"], told["skipped"]) == (1, 2)
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == before
    told = json.loads(upscale(models_file, photo_folder, "-o", tmp_path / "out", "--json", "--overwrite").stdout)
    assert (told["done"], told["skipped"]) == (3, 0)
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns > before


def test_the_same_command_gives_the_same_bytes(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        upscale(models_file, photo_folder, "-o", tmp_path / name, "--batch", 2)
    for file in ("a.png", "b.jpg", "sub/c.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_bad_file_is_named_and_the_exit_code_tells(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "bad.png").write_bytes(b"not a picture")
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["done"] == 3
    assert [Path(failure["input"]).name for failure in told["failed"]] == ["bad.png"]
    assert told["failed"][0]["reason"]
    assert "bad.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pipe_sees_no_progress_and_nothing_on_stdout(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    options = ["--models-file", models_file, "--model", "small"]
    done = in_process_of_its_own("upscale", photo_folder / "a.png", "-o", tmp_path / "x.png", *options)
    assert done.stdout == ""
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    assert re.fullmatch(rf"1 photo upscaled to {tmp_path / 'x.png'} \(0\.081 MP in [\d.]+ s\)", done.stderr.splitlines()[-1])
    assert decode(tmp_path / "x.png").rgb.shape == (240, 336, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scale", "9"], ["--scale 9"]),
        (["--scale", "2", "--width", "100"], ["both set the size"]),
        (
            ["--tile", "10", "--batch", "0", "--color-fix", "blue"],
            ["3 options are wrong", "--tile 10", "--batch 0", "blue"],
        ),
        (["--device", "tpu"], ["tpu"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--model", "smal"], ["smal", "small"]),
        (["--lambda-pixel", "nan"], ["nan"]),
        (["--overlap", "500"], ["overlap"]),
    ],
)
def test_wrong_options_are_told_all_at_once(
    models_file: Path, photo_folder: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    base = ["--models-file", models_file] + ([] if "--model" in options else ["--model", "small"])
    done = srcli("upscale", photo_folder, "-o", tmp_path / "out", *base, *options)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_missing_inputs_are_all_named(models_file: Path, tmp_path: Path) -> None:
    done = upscale(models_file, tmp_path / "nothing", tmp_path / "*.none", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "nothing" in done.stderr
    assert "*.none" in done.stderr


def test_a_dry_run_tells_sizes_and_time_and_writes_nothing(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out", "--dry-run", "--scale", "2.5")
    assert done.returncode == 0, done.stderr
    assert "84x60" in done.stderr
    assert "210x150" in done.stderr
    assert "3 to do" in done.stderr
    assert not (tmp_path / "out").exists()
    told = json.loads(upscale(models_file, photo_folder, "-o", tmp_path / "out", "--dry-run", "--json").stdout)
    assert len(told["planned"]) == 3
    assert told["estimated_seconds"] > told["loading_seconds"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lambda-semantic", "0.3"], "has no dial `--lambda-semantic`, since it has no semantic adapter"),
        (["--timestep", "1000"], "`--timestep 1000` is not between 0 and 999"),
        (["--lambda-pixel", "nan"], "`--lambda-pixel nan` is not a number"),
        (["--pixel", "nowhere"], "no pixel adapter in `nowhere`"),
        (["--device", "cuda:7"], "there is no `cuda:7`"),
    ],
)
def test_what_cannot_be_is_refused_also_where_everything_is_done(
    models_file: Path, photo_folder: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    (tmp_path / "a.png").write_bytes(b"a result")
    said = srcli("upscale", photo_folder / "a.png", "-o", tmp_path, "--models-file", models_file, "--model", "small", *options)
    assert said.returncode == 2
    assert words in said.stderr


def test_a_dial_far_outside_of_what_makes_sense_is_warned_of(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    for value, warned in (("5", True), ("2.5", False)):
        said = upscale(models_file, photo_folder / "b.jpg", "-o", tmp_path / value, "--lambda-pixel", value)
        assert said.returncode == 0
        assert ("`--lambda-pixel 5` is far outside of what makes sense, 0 to 2" in said.stderr) == warned


def test_files_that_all_fail_load_no_model(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in photo_folder.rglob("*.*"):
        path.write_bytes(b"no picture")

    def never(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("srcli.cli.upscale.open_stream", never)
    done = srcli("upscale", photo_folder, "-o", tmp_path / "out", "--json")
    assert done.returncode == 1
    assert len(json.loads(done.stdout)["failed"]) == 3


def test_each_header_is_read_once(models_file: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    probe = codec.probe
    for module in ("srcli.images.codec", "srcli.engine.stream"):
        monkeypatch.setattr(f"{module}.probe", lambda path: read.append(path) or probe(path))  # type: ignore[func-returns-value]
    assert upscale(models_file, photo_folder, "-o", tmp_path / "out").returncode == 0
    assert len(read) == len(set(read)) == 3


def test_the_dials_do_something(tmp_path: Path, photo_folder: Path) -> None:
    file = make_model(tmp_path / "model", semantic=True)
    results = []
    for index, options in enumerate(([], ["--lambda-pixel", "0"], ["--lambda-semantic", "0"], ["--lambda-semantic", "1"])):
        upscale(file, photo_folder / "a.png", "-o", tmp_path / f"{index}.png", "--color-fix", "none", *options)
        results.append(decode(tmp_path / f"{index}.png").rgb)
    assert np.array_equal(results[0], results[3])
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


@pytest.mark.parametrize("fix", ["adain", "wavelet"])
def test_colour_fixes_bring_the_input_colours_back(models_file: Path, photo_folder: Path, tmp_path: Path, fix: str) -> None:
    source = decode(photo_folder / "a.png").rgb.mean((0, 1))
    upscale(models_file, photo_folder / "a.png", "-o", tmp_path / "x.png", "--color-fix", fix)
    assert np.abs(decode(tmp_path / "x.png").rgb.mean((0, 1)) - source).max() < 0.02


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
def test_orientation_profile_and_exif_are_kept(models_file: Path, tmp_path: Path, format: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = 6
    Image.effect_noise((24, 16), 50).convert("RGB").save(tmp_path / "in.jpg", exif=exif, icc_profile=_profile())
    upscale(models_file, tmp_path / "in.jpg", "-o", tmp_path / "out", "--format", format)
    (path,) = (tmp_path / "out").glob("[!.]*")
    result = decode(path)
    assert (result.width, result.height) == (16 * 4, 24 * 4)
    assert result.icc_profile == _profile()
    with Image.open(path) as image:
        assert image.getexif()[0x010F] == "Maker"


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_16_bits_and_alpha_are_kept(models_file: Path, tmp_path: Path, format: str) -> None:
    rgb = np.linspace(0.2, 0.8, 20 * 24 * 3).reshape(20, 24, 3)
    alpha = np.tile(np.linspace(0, 1, 24)[:, None], (20, 1, 1))
    encode(Picture(np.rint(np.concatenate([rgb, alpha], axis=2) * 65535).astype(np.uint16)), tmp_path / "in.png", "png", 95)
    upscale(models_file, tmp_path / "in.png", "-o", tmp_path / "out", "--format", format)
    (path,) = (tmp_path / "out").glob("[!.]*")
    result = decode(path)
    assert result.bit_depth == 16
    assert len(np.unique(np.rint(result.rgb * 65535))) > 256
    assert result.alpha is not None
    assert np.abs(result.alpha[:, 40:50].mean() - 0.47).max() < 0.05


@functools.cache
def _profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_an_imported_checkpoint_upscales_as_the_reference_did(tmp_path: Path) -> None:
    pisa = Path(__file__).parent / "data" / "pisa"
    done = srcli("models", "import", "pisa", pisa / "pisa_sr.pkl", "--base", pisa / "base")
    assert done.returncode == 0, done.stderr
    options = ["--model", "pisa", "--tile", 512, "--overlap", 128, "--device", "cpu", "--dtype", "fp32"]
    done = srcli("upscale", pisa / "lq_c.png", "-o", tmp_path / "out.png", *options)
    assert done.returncode == 0, done.stderr
    ours = np.rint(decode(tmp_path / "out.png").rgb * 255)
    cases = {case["name"]: case for case in json.loads((pisa / "cases.json").read_text())["cases"]}
    for crop in cases["c_tile64-16_adain"]["output_png_crops"]:
        x0, y0, x1, y1 = crop["box_xyxy"]
        theirs = np.rint(decode(pisa / crop["file"]).rgb * 255)
        assert np.abs(ours[y0:y1, x0:x1] - theirs).max() <= 2


def test_an_output_folder_that_cannot_be_made_is_told(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = upscale(models_file, photo_folder, "-o", tmp_path / "file" / "out")
    assert done.returncode == 2
    assert "hint:" in done.stderr


def test_a_report_that_cannot_be_written_is_told(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    done = upscale(models_file, photo_folder, "-o", tmp_path / "out", "--report", tmp_path)
    assert done.returncode == 2
    assert "report" in done.stderr
