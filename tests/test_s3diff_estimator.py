"""The training of the degradation estimator: of two versions of a photo the worse one has to get the higher score."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import srcli
from parity_s3diff import Parity
from PIL import Image
from training_case import make_photos

from srcli.config.recipe_file import build_recipe
from srcli.config.training import TrainConfig
from srcli.families import load_trainee
from srcli.families.s3diff.estimator_trainee import EstimatorTrainee
from srcli.families.s3diff.grades import Grade, damaged, drawn_grades
from srcli.training.data.crops import Batch

DATA = Path(__file__).parent / "data" / "s3diff"


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Parity:
    return Parity(DATA, tmp_path_factory.mktemp("s3diff"))


def trainee_of(output: Path, **losses: float) -> EstimatorTrainee:
    recipe = build_recipe("s3diff", "estimator", [{"width": 4, "crop": 64, "losses": losses}])
    config = TrainConfig("s3diff", "estimator", ("x",), output, recipe)
    torch.manual_seed(0)
    trainee = load_trainee(config, output, torch.device("cpu"), torch.float32)
    assert isinstance(trainee, EstimatorTrainee)
    return trainee


def test_versions_are_damaged_by_degrees() -> None:
    ranges = build_recipe("s3diff", "estimator", []).degradation
    hq = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2

    def version(blur: float, noise: float) -> torch.Tensor:
        return damaged(hq, Grade(blur, noise), 4, ranges, 7, 3)

    def contrast(picture: torch.Tensor) -> float:
        return float(picture.diff(dim=2).abs().mean())

    assert version(0, 0).shape == (3, 16, 24)
    assert contrast(version(0, 0)) > contrast(version(0.3, 0)) > contrast(version(1, 0))
    clean = version(0.5, 0)
    strength = [float((version(0.5, noise) - clean).abs().mean()) for noise in (0.1, 0.5, 1)]
    assert strength == sorted(strength)
    assert torch.equal(version(0.5, 0.5), version(0.5, 0.5))
    first, blurred, noisy, best, worst = drawn_grades(7, 3)
    assert blurred.blur > first.blur
    assert noisy.noise > first.noise
    assert (blurred.noise, noisy.blur) == (first.noise, first.blur)
    assert (best, worst) == (Grade(0, 0), Grade(1, 1))
    assert drawn_grades(7, 4) != drawn_grades(7, 3)


def test_the_losses_are_a_margin_and_anchors(tmp_path: Path) -> None:
    trainee = trainee_of(tmp_path)
    batch = Batch(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 64, 64), [0], [""])
    scores = torch.tensor([[0.5, 0.4], [0.52, 0.9], [0.1, 0.5], [0.1, 0.3], [1.0, 0.8]])
    losses = trainee.losses(scores[None, :, :, None], batch)
    assert float(losses["ranking"]) == pytest.approx(0.05 - 0.02, abs=1e-6)
    assert float(losses["anchors"]) == pytest.approx((0.1**2 + 0.3**2 + 0.2**2) / 2, abs=1e-6)
    collapsed = trainee.losses(torch.full((1, 5, 2, 1), 0.5), batch)
    assert 0.01 * float(collapsed["ranking"]) == pytest.approx(2 * 5e-4, abs=1e-6)
    grades = torch.tensor([[(each.blur, each.noise) for each in drawn_grades(0, 0)]])[..., None]
    graded = trainee_of(tmp_path, grades=0.01)
    assert float(graded.losses(grades, batch)["grades"]) == 0
    assert float(graded.losses(grades + 0.1, batch)["grades"]) == pytest.approx(0.01)


def test_what_is_trained_estimates(parity: Parity, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 3, (96, 80))
    model = ["--models-file", parity.spec.origin, "--model", "parity", "--device", "cpu"]
    short = ["--width", 4, "--crop", 64, "--batch", 2, "--val-images", 1, "--workers", 0]
    done = srcli("train-estimator", "--data", photos, "-o", tmp_path / "run", *model, *short, "--steps", 2)
    assert done.returncode == 0, done.stderr
    assert f"--model parity --estimator {tmp_path / 'run'}" in " ".join(done.stderr.split())
    Image.new("RGB", (9, 8), "teal").save(tmp_path / "a.png")
    options = ["--estimator", tmp_path / "run", "--report", tmp_path / "r.jsonl"]
    done = srcli("upscale", tmp_path / "a.png", "-o", tmp_path / "b.png", *model, *options)
    assert done.returncode == 0, done.stderr
    assert '"found": {"blur": 0.' in (tmp_path / "r.jsonl").read_text()
    further = ["--start-from", tmp_path / "run", "--steps", 1]
    assert srcli("train-estimator", "--data", photos, "-o", tmp_path / "more", *model, *short, *further).returncode == 0


def test_what_has_no_effect_on_an_estimator_is_refused(parity: Parity, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 1)
    model = ["--data", photos, "-o", tmp_path / "run", "--models-file", parity.spec.origin, "--model", "parity"]
    (tmp_path / "r.toml").write_text("degradation.second.blur_probability = 0.1\n")
    for options, words in (
        (["--l2", 1], "the loss `l2` compares pictures, and an estimator makes none"),
        (["--recipe", tmp_path / "r.toml"], "of `degradation` only `degradation.first.sigma`"),
    ):
        done = srcli("train-estimator", *model, *options)
        assert done.returncode == 2
        assert words in " ".join(done.stderr.split())
