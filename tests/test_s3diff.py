"""S3Diff: parity with its authors' code, scores that make weights, guidance, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Done, srcli
from hub import files_of, running_hub
from parity_s3diff import Parity, settings_of
from PIL import Image

from srcli.engine.restore import Engine, Limits
from srcli.families.s3diff.estimator import Estimator, estimate
from srcli.families.s3diff.restorer import S3DiffRestorer, dtype_for, pass_weights
from srcli.images.canvas import Canvas
from srcli.networks.remade import RemadeUNet
from srcli.protocol.restoring import LoadOptions
from srcli.rows.lookup import find_model
from srcli.store.weights import adapter_path

DATA = Path(__file__).parent / "data" / "s3diff"
PISA = Path(__file__).parent / "data" / "pisa"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "parity" / "open" / "s3diff"
CASES = [case["name"] for case in json.loads((DATA / "cases.json").read_text())["cases"]]
SCORES = {"blur": 0.3, "noise": 0.6}


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Parity:
    return Parity(DATA, tmp_path_factory.mktemp("s3diff"))


@pytest.fixture
def models_file(parity: Parity) -> Path:
    return parity.spec.origin


@pytest.mark.parametrize("name", [CASES[0], pytest.param(CASES[1], marks=pytest.mark.slow)])
def test_every_case_is_within_the_reference_tolerance(parity: Parity, name: str) -> None:
    case = next(case for case in parity.cases if case["name"] == name)
    errors = parity.measure(case)
    assert errors.within(case["tolerance"]), errors


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the complete parity data are not here")
def test_every_recorded_case_is_within_tolerance(tmp_path: Path) -> None:
    complete = Parity(SHARED, tmp_path)
    errors = {case["name"]: (case["tolerance"], complete.measure(case)) for case in complete.cases}
    assert len(errors) == 11
    assert not {name: found for name, (tolerance, found) in errors.items() if not found.within(tolerance)}


# --- scores ---


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (65, 33), (90, 74)])
def test_tiles_give_the_scores_of_the_whole_picture(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = Estimator((8, 12), (3, 2), 16).requires_grad_(False)
    levels = np.random.default_rng(1).integers(0, 255, (*size, 3), dtype=np.uint8)
    whole = network(torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 255)[0].tolist()
    assert estimate(network, Canvas(levels), torch.device("cpu"), tile=8) == pytest.approx(whole, abs=1e-6)


def test_only_scores_that_are_not_given_are_estimated(parity: Parity) -> None:
    restorer = parity.restorer({"guidance_scale": 1.0})
    picture = Canvas(np.full((12, 10, 3), 90, np.uint8), 4)
    both = restorer.mix({"guidance_scale": 1.0}, picture)
    assert both.encoding == pytest.approx((both.facts["blur"], both.facts["noise"]))
    one = restorer.mix({"guidance_scale": 1.0, "blur": 0.25}, picture)
    assert one.encoding == (0.25, both.facts["noise"])
    assert one.facts == {"noise": both.facts["noise"]}
    given = parity.restorer({"guidance_scale": 1.0, **SCORES})
    assert given._estimator is None
    assert given.mix({"guidance_scale": 1.0, **SCORES}, picture).facts == {}


# --- passes ---


def test_guidance_of_1_is_one_pass() -> None:
    assert pass_weights(1.0) == {"positive": 1.0}
    assert pass_weights(0.0) == {"negative": 1.0}
    assert pass_weights(1.5) == {"positive": 1.5, "negative": -0.5}


def _counted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[Any]:
    calls: list[Any] = []
    plain = getattr(owner, name)

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return calls


def test_weights_are_merged_once_a_picture_and_shared_by_its_tiles(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"guidance_scale": 1.07, **SCORES}
    restorer = parity.restorer(settings)
    made, passes = _counted(monkeypatch, RemadeUNet, "made"), _counted(monkeypatch, S3DiffRestorer, "predict_pass")
    engine = Engine(restorer, Limits(8, 2, 1, None), settings)
    pictures = [torch.rand(3, 96, 64) * 2 - 1 for _ in range(2)]
    mixtures = [restorer.mix({**settings, "blur": blur}, Canvas(np.zeros((24, 16, 3), np.uint8))) for blur in (0.1, 0.9)]
    together = engine.restore(pictures, mixtures)
    assert len(made) == 2
    assert len({key for key, _ in passes}) == 4
    assert len(passes) == 8
    alone = [engine.restore([picture], [mixture])[0] for picture, mixture in zip(pictures, mixtures, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(*(engine.restore(pictures[:1], [mixture])[0] for mixture in mixtures))


def test_half_precision_is_near_and_exact_calls_equal_float32(parity: Parity) -> None:
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    settings = {"guidance_scale": 1.0, **SCORES}
    key = ("positive", *SCORES.values())
    exact = parity.restorer(settings).predict_pass(key, latent)
    halved = parity.restorer(settings, torch.bfloat16)
    answers = [halved.predict_pass(key, latent, exact=flag) for flag in (False, True)]
    near, redone = ((answer - exact).abs().mean() / exact.abs().mean() for answer in answers)
    assert 0 < near < 0.05
    assert redone < 0.75 * near
    assert halved.predict_pass(key, latent).dtype == torch.float32


@pytest.mark.parametrize(
    ("device", "asked", "dtype"),
    [
        ("cuda", False, torch.float16),
        ("cpu", False, torch.float32),
        ("cuda", True, torch.bfloat16),
    ],
)
def test_bfloat16_only_where_it_is_asked_for(device: str, asked: bool, dtype: torch.dtype) -> None:
    assert dtype_for(LoadOptions(torch.device(device), torch.bfloat16, ({},), asked)) == dtype


# --- the command ---


def levels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def upscaled(models_file: Path, *arguments: object) -> Done:
    return srcli("upscale", *arguments, "--models-file", models_file, "--model", "parity", "--device", "cpu", "--dtype", "fp32")


def test_a_folder_gives_what_single_runs_give_and_tells_what_was_found(models_file: Path, here: Path, photo: np.ndarray) -> None:
    (here / "in").mkdir()
    Image.fromarray(photo[:20, :24]).save(here / "in" / "a.png")
    Image.fromarray(photo[20:37, 30:43] // 2).save(here / "in" / "b.png")
    done = upscaled(models_file, "in", "-o", "out", "--report", "report.jsonl", "--batch", 4)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["found"] for line in (here / "report.jsonl").read_text().splitlines()]
    assert [set(each) for each in found] == [{"blur", "noise"}] * 2
    assert found[0] != found[1]
    assert all(0 < score < 1 for each in found for score in each.values())
    assert f"blur {found[0]['blur']:.3f}" in done.stderr
    for name, scores in zip(("a", "b"), found, strict=True):
        given = [word for score, value in scores.items() for word in (f"--{score}", repr(value))]
        assert upscaled(models_file, f"in/{name}.png", "-o", f"{name}.png").returncode == 0
        assert upscaled(models_file, f"in/{name}.png", "-o", f"{name}-given.png", *given).returncode == 0
        alone, told = (levels_of(here / f) for f in (f"{name}.png", f"{name}-given.png"))
        assert np.array_equal(levels_of(here / "out" / f"{name}.png"), alone)
        assert np.array_equal(alone, told)


def test_the_smallest_pictures_are_taken(models_file: Path, here: Path) -> None:
    """The reference fails at sides of 8 pixels and less."""
    (here / "in").mkdir()
    sizes = {"a.png": (1, 1), "b.png": (8, 8), "c.png": (31, 2)}
    for name, size in sizes.items():
        Image.new("RGB", size, "teal").save(here / "in" / name)
    done = upscaled(models_file, "in", "-o", "out")
    assert done.returncode == 0, done.stderr
    for name, (width, height) in sizes.items():
        assert levels_of(here / "out" / name).shape == (4 * height, 4 * width, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--blur", "1.2"], "`--blur 1.2` is not between 0 and 1"),
        (["--noise", "-0.1"], "`--noise -0.1` is not between 0 and 1"),
        (["--guidance-scale", "-1"], "`--guidance-scale -1` is below 0"),
        (["--lambda-semantic", "1"], "(S3Diff) has no dial `--lambda-semantic`"),
        (["--pixel", "."], "(S3Diff) takes no pixel adapter"),
    ],
)
def test_what_cannot_be_is_refused(models_file: Path, here: Path, options: list[str], words: str) -> None:
    Image.new("RGB", (8, 8)).save(here / "a.png")
    done = upscaled(models_file, "a.png", "-o", "b.png", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in " ".join(done.stderr.split())


def _rows(models_file: Path, here: Path, *lines: str) -> Path:
    """The row again, with lines in the place of those that begin alike."""
    heads = [line.split("=")[0] for line in lines]
    kept = [line for line in models_file.read_text().splitlines() if not any(line.startswith(head) for head in heads)]
    (here / "models.toml").write_text("\n".join([*kept, *(line for line in lines if not line.endswith("= none"))]) + "\n")
    return here / "models.toml"


def test_without_an_estimator_both_scores_have_to_be_given(models_file: Path, here: Path) -> None:
    Image.new("RGB", (8, 8)).save(here / "a.png")
    rows = _rows(models_file, here, "adapters.estimator = none")
    done = upscaled(rows, "a.png", "-o", "b.png", "--blur", "0.5")
    assert done.returncode == 2
    assert "cannot tell how degraded a picture is" in done.stderr
    assert "give `--blur` and `--noise`" in " ".join(done.stderr.split())
    assert upscaled(rows, "a.png", "-o", "b.png", "--blur", "0.5", "--noise", "0").returncode == 0
    given = adapter_path(find_model("parity", models_file), "estimator")
    assert upscaled(rows, "a.png", "-o", "c.png", "--estimator", given).returncode == 0


def test_a_prompt_that_the_encoder_would_cut_is_refused(models_file: Path, here: Path) -> None:
    Image.new("RGB", (8, 8)).save(here / "a.png")
    rows = _rows(models_file, here, f'prompts.positive = "{"sharp " * 80}"')
    done = upscaled(rows, "a.png", "-o", "b.png")
    assert done.returncode == 2
    assert "tokens, and the text encoder takes 75" in " ".join(done.stderr.split())
    wrong = upscaled(_rows(models_file, here, 'enlargement = "nearest"'), "a.png", "-o", "b.png")
    assert "unknown `enlargement` `nearest`" in wrong.stderr


def test_the_enlargement_is_the_rows(models_file: Path, here: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo[:12, :10]).save(here / "a.png")
    for how in ("bilinear", "bicubic"):
        rows = _rows(models_file, here, f'enlargement = "{how}"')
        assert upscaled(rows, "a.png", "-o", f"{how}.png", "--color-fix", "none").returncode == 0
    assert not np.array_equal(*(levels_of(here / f"{how}.png") for how in ("bilinear", "bicubic")))


def test_the_step_begins_at_the_rows_timestep(models_file: Path, here: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo[:12, :10]).save(here / "a.png")
    for timestep in (0, 999):
        rows = _rows(models_file, here, f"timestep = {timestep}")
        assert upscaled(rows, "a.png", "-o", f"{timestep}.png", "--color-fix", "none").returncode == 0
    assert not np.array_equal(*(levels_of(here / f"{timestep}.png") for timestep in (0, 999)))
    for timestep, words in ((1000, "has no timestep `1000`: it ends with 999"), (-1, "`timestep` must be 0 or more, not -1")):
        done = upscaled(_rows(models_file, here, f"timestep = {timestep}"), "a.png", "-o", "b.png")
        assert done.returncode == 2
        assert words in " ".join(done.stderr.split())


# --- import and fetch ---


def imported(*arguments: object) -> Done:
    return srcli("models", "import", *arguments)


def test_import_makes_a_model_of_both_files(here: Path) -> None:
    done = imported("mine", DATA / "de_net.pth", DATA / "s3diff.pkl", "--base", DATA / "base", "--licence", "Apache-2.0")
    assert done.returncode == 0, done.stderr
    spec = find_model("mine")
    assert (spec.family, spec.licence, spec.color_fix) == ("s3diff", "Apache-2.0", "wavelet")
    assert set(spec.adapters) == {"semantic", "estimator"}
    Image.new("RGB", (8, 8), "teal").save(here / "a.png")
    assert srcli("upscale", "a.png", "-o", "b.png", "--model", "mine", "--device", "cpu").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pisa-sr", DATA / "s3diff.pkl"], "is not a PiSA-SR checkpoint"),
        (["s3diff", PISA / "pisa_sr.pkl", DATA / "de_net.pth"], "is not an S3Diff checkpoint"),
        (["s3diff", DATA / "s3diff.pkl"], "there is no adapter `estimator`"),
        (["s3diff", DATA / "s3diff.pkl", DATA / "s3diff.pkl"], "two files hold a semantic adapter"),
        (["s3diff", *[DATA / "s3diff.pkl"] * 3], "a checkpoint of S3Diff is 2 files, and 3 are given"),
        (["new", PISA / "pisa_sr.pkl", "--family", "s3diff"], "is not an S3Diff checkpoint"),
    ],
)
def test_checkpoints_of_another_method_and_half_ones_are_refused(
    arguments: list[Any], words: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = PISA / "base" if arguments[0] == "pisa-sr" else DATA / "base"
    monkeypatch.setattr("srcli.store.hub.fetch_config", lambda source, file, label: base / file)
    done = imported(*arguments, *(["--base", base] if arguments[0] == "new" else []))
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert find_model("s3diff").adapters["semantic"].sha256 == ""


def test_an_adapter_of_another_method_is_refused(models_file: Path, here: Path) -> None:
    from srcli.families.pisasr.reference import convert

    convert([PISA / "pisa_sr.pkl"], [PISA / "base/unet/config.json"], here / "pisa", "b", "l")
    Image.new("RGB", (8, 8)).save(here / "a.png")
    for option, words in (("--semantic", "is not S3Diff's"), ("--estimator", "the degradation estimator is none")):
        done = upscaled(models_file, "a.png", "-o", "b.png", option, here / "pisa/semantic")
        assert done.returncode == 2
        assert words in " ".join(done.stderr.split())


@pytest.fixture
def hub_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with running_hub(tmp_path / "hf", monkeypatch) as hub:
        hub.repos["stabilityai/sd-turbo"] = files_of(DATA / "base")
        hub.repos["zhangap/S3Diff"] = {name: (DATA / name).read_bytes() for name in ("s3diff.pkl", "de_net.pth")}
        hub.licences["zhangap/S3Diff"] = "apache-2.0"
        yield hub


def test_fetch_gets_base_and_checkpoint_and_imports_them(hub_of_both: Any, here: Path) -> None:
    planned = srcli("models", "fetch", "s3diff", "--dry-run")
    assert planned.returncode == 0
    assert "`de_net.pth` of `zhangap/S3Diff`" in " ".join(planned.stderr.split())
    done = srcli("models", "fetch", "s3diff")
    assert done.returncode == 0, done.stderr
    assert "licence of model `s3diff`: base: Stability AI Community License" in " ".join(done.stderr.split())
    assert "model `s3diff` is ready" in done.stderr
    Image.new("RGB", (8, 8), "teal").save(here / "a.png")
    shutil.rmtree(here / "hf" / "hub" / "models--zhangap--S3Diff")  # not needed any more
    assert srcli("upscale", "a.png", "-o", "b.png", "--model", "s3diff", "--device", "cpu").returncode == 0


def test_where_the_hub_lacks_a_file_the_other_way_is_told(hub_of_both: Any, here: Path) -> None:
    del hub_of_both.repos["zhangap/S3Diff"]["de_net.pth"]
    done = srcli("models", "fetch", "s3diff")
    assert done.returncode == 2
    told = " ".join(done.stderr.split())
    assert "cannot fetch `de_net.pth` - `zhangap/S3Diff`: lacks `de_net.pth`" in told
    assert "import them: `srcli models import s3diff s3diff.pkl de_net.pth`" in told


def test_cases_have_their_dials() -> None:
    case = json.loads((DATA / "cases.json").read_text())["cases"][0]
    assert settings_of(case) == {"guidance_scale": 1.07}


def test_a_sweep_marks_what_is_estimated(models_file: Path, here: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo[:6, :8]).save(here / "a.png")
    Image.fromarray(photo[:24, :32]).save(here / "hq.png")
    model = ["--models-file", models_file, "--model", "parity", "--device", "cpu", "--dtype", "fp32"]
    axes = ["--blur", "0,1", "--guidance-scale", "1,1.07"]
    done = srcli("sweep", "a.png", "-o", "swept", *model, *axes, "--hq", "hq.png", "--metrics", "psnr")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (here / "swept" / "cells.jsonl").read_text().splitlines()]
    assert len(records) == 4
    (found,) = {json.dumps(record["found"]) for record in records}
    upscaled(models_file, "a.png", "-o", "b.png", "--report", "r.jsonl")
    assert json.loads((here / "r.jsonl").read_text())["found"] == json.loads(found)
    sheet = levels_of(here / "swept" / "sheets" / "a.png")
    assert (sheet == [255, 190, 40]).all(2).any(), "the estimate's mark"
    if (plot := here / "swept" / "plots" / "psnr-blur.svg").exists():  # where matplotlib is installed
        assert "found for each photo" in plot.read_text()
