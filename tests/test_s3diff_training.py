"""The training of S3Diff's adapter: what is trained is what is used, and some samples learn what the negative prompt means."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Done, srcli
from parity_s3diff import Parity
from PIL import Image
from tiny_model import make_base
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from training_case import make_photos

from srcli.config.recipe_file import build_recipe
from srcli.config.training import TrainConfig
from srcli.families import load_trainee
from srcli.families.s3diff.grades import Grade, damaged
from srcli.families.s3diff.restorer import load
from srcli.families.s3diff.trainee import S3DiffTrainee
from srcli.images.canvas import Canvas
from srcli.networks.saved_adapters import load_adapter
from srcli.opening import complete
from srcli.protocol.restoring import LoadOptions
from srcli.rows.lookup import find_model
from srcli.store.adapter_files import replace_adapters
from srcli.store.weights import adapter_path
from srcli.training.data.crops import Batch
from srcli.training.memory_need import memory_need
from srcli.training.objective import Objective

DATA = Path(__file__).parent / "data" / "s3diff"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Parity:
    return Parity(DATA, tmp_path_factory.mktemp("s3diff"))


def trainee_of(parity: Parity, output: Path, row: Mapping[str, Any] | None = None, **recipe: Any) -> S3DiffTrainee:
    spec = parity.spec
    built = build_recipe(
        "s3diff", "semantic", [{"rank": 4, "vae_rank": 2, "crop": 64, "losses": {"lpips": 0, "gan": 0}, **recipe}]
    )
    told = {**spec.own, **complete(spec, {}), **(row or {})}
    adapters = {"estimator": adapter_path(spec, "estimator")}
    config = TrainConfig("s3diff", "semantic", ("x",), output, built, told, base_name="base", adapters=adapters, seed=3)
    torch.manual_seed(0)
    trainee = load_trainee(config, DATA / "base", CPU, torch.float32)
    assert isinstance(trainee, S3DiffTrainee)
    return trainee


def batch_of(count: int) -> Batch:
    lq = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(lq, torch.zeros(count, 3, 64, 64), list(range(count)), [""] * count)


def test_what_is_trained_is_what_is_used(parity: Parity, tmp_path: Path) -> None:
    """Each sample of a batch with weights of its own, beside the restorer with merged ones."""
    trainee = trainee_of(parity, tmp_path)
    with torch.no_grad():
        for parameter in trainee.parameters:
            parameter.add_(torch.randn_like(parameter) * 0.02)
    batch = batch_of(2)
    ours = trainee.views(batch)["sr"]
    scores = trainee._scores(batch).tolist()
    trainee.save(5, tmp_path / "saved")
    spec = replace_adapters(parity.spec, {"semantic": tmp_path / "saved"})
    assert load_adapter(tmp_path / "saved" / "adapter_model.safetensors", "semantic").info.steps == 5
    for index, (blur, noise) in enumerate(scores):
        settings = {"guidance_scale": 1.0, "blur": blur, "noise": noise}
        restorer = load(spec, LoadOptions(CPU, torch.float32, (settings,)))
        picture = trainee._enlarged(batch)[index : index + 1]
        with torch.no_grad():
            z_lq = picture
            for part in restorer.encoder((blur, noise)):
                z_lq = part.run(z_lq)
            z_sr = restorer.apply(z_lq, restorer.predict_pass(("positive", blur, noise), z_lq))
        assert torch.allclose(z_sr, ours[index : index + 1], atol=1e-3 * float(ours.abs().max()))
    assert (ours[0] - ours[1]).abs().max() > 0.1


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_training_enlarges_as_the_command_does(parity: Parity, tmp_path: Path, how: str) -> None:
    trainee = trainee_of(parity, tmp_path, {"enlargement": how})
    levels = np.random.default_rng(0).integers(70, 190, (16, 16, 3), dtype=np.uint8)  # the command cuts off what overshoots twice
    lq = torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 127.5 - 1
    ours = trainee._enlarged(Batch(lq, torch.zeros(1, 3, 64, 64), [0], [""]))[0]
    used = torch.from_numpy(Canvas(levels).framed(4, 0, how).crop(0, 0, 64, 64)).permute(2, 0, 1) * 2 - 1
    assert torch.allclose(ours, used, atol=1.5 / 127.5)


def test_some_samples_are_to_stay_as_bad_as_they_are(parity: Parity, tmp_path: Path) -> None:
    trainee = trainee_of(parity, tmp_path, negative_ratio=0.5)
    batch = batch_of(8)
    aimed, (picture, _, embedding) = trainee.aimed(batch), trainee.prepare(batch)
    assert aimed.judged is not None
    assert 0 < sum(aimed.judged) < 8
    for index, judged in enumerate(aimed.judged):
        assert torch.equal(aimed.hq[index], batch.hq[index] if judged else picture[index])
        assert torch.equal(embedding[index], trainee._embeddings[0 if judged else 1])


def test_drawn_scores_are_those_of_the_damage(parity: Parity, tmp_path: Path) -> None:
    trainee = trainee_of(parity, tmp_path, scores="drawn", negative_ratio=0.0)
    batch = batch_of(4)
    aimed = trainee.aimed(batch)
    picture, scores, _ = trainee.prepare(aimed)
    assert torch.equal(picture, trainee._enlarged(aimed))
    for hq, lq, (blur, noise), index in zip(batch.hq, aimed.lq, scores.tolist(), batch.indices, strict=True):
        again = damaged((hq + 1) / 2, Grade(blur, noise), 4, trainee.recipe.degradation, 3, index) * 2 - 1
        assert torch.allclose(lq, again, atol=1e-4)
    assert len({tuple(each) for each in scores.tolist()}) == 4
    assert not torch.equal(trainee._scores(aimed), scores)


def test_the_reference_starts_on_a_saddle_and_the_identity_does_not(parity: Parity, tmp_path: Path) -> None:
    """Both begin as the bare base, but the one's gradients are nothing beside the other's."""
    largest = {}
    for start in ("identity", "reference"):
        trainee = trainee_of(parity, tmp_path, start=start)
        z_sr = trainee.forward(trainee.prepare(batch_of(1)))
        z_sr.square().mean().backward()
        halves = {name: p for name, p in trainee.network.named_parameters() if ".lora_B." in name}
        largest[start] = (z_sr.detach(), max(float(p.grad.abs().max()) for p in halves.values() if p.grad is not None))
    assert torch.allclose(largest["identity"][0], largest["reference"][0], rtol=1e-4)
    assert largest["identity"][1] > 1e6 * largest["reference"][1] > 0


def train(models_file: Path, estimator: Path, photos: Path, output: Path, *options: object) -> Done:
    model = ["--models-file", models_file, "--model", "parity", "--estimator", estimator, "--device", "cpu", "--dtype", "fp32"]
    short = [
        "--batch",
        1,
        "--accumulate",
        2,
        "--crop",
        64,
        "--rank",
        4,
        "--vae-rank",
        2,
        "--lr",
        "1e-3",
        "--lpips",
        0,
        "--ema",
        0.5,
    ]
    short += [
        "--recipe",
        photos.parent / "gan.toml",
        "--workers",
        0,
        "--val",
        "none",
        "--save-every",
        1,
        "--gradient-checkpointing",
    ]
    return srcli("train-semantic", "--data", photos, "-o", output, *model, *short, *options)


def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(parity: Parity, tmp_path: Path) -> None:
    photos, file = make_photos(tmp_path / "photos", 2, (96, 80)), parity.spec.origin
    (tmp_path / "gan.toml").write_text("negative_ratio = 0.5\n[gan]\nnetwork = 'unet'\nfeatures = 4\n")
    estimator = adapter_path(parity.spec, "estimator")
    whole = train(file, estimator, photos, tmp_path / "whole", "--steps", 3)
    assert whole.returncode == 0, whole.stderr
    assert train(file, estimator, photos, tmp_path / "split", "--steps", 2).returncode == 0
    assert train(file, estimator, photos, tmp_path / "split", "--steps", 3, "--resume").returncode == 0
    first, second = (
        load_adapter(tmp_path / name / "semantic/adapter_model.safetensors", "semantic") for name in ("whole", "split")
    )
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(value, second.tensors[key]) for key, value in first.tensors.items())
    assert set(find_model(str(tmp_path / "whole")).adapters) == {"semantic", "estimator"}
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {"l2", "gan", "discriminator"} <= set(lines[-1])
    small = tmp_path / "photos" / "0.png"
    done = srcli("upscale", small, "-o", tmp_path / "b.png", "--model", tmp_path / "whole", "--device", "cpu", "--scale", 1)
    assert done.returncode == 0, done.stderr


class Live(TorchDispatchMode):
    """Bytes of the tensors that operations made and that are still there, and the most there were at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in (each for each in pytree.tree_leaves(made) if isinstance(each, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return made

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def test_the_memory_that_is_told_is_what_a_step_takes(parity: Parity, tmp_path: Path) -> None:
    """With gradient checkpointing: the encoder, which is computed again as a whole, needs less than decoder and losses did."""
    trainee = trainee_of(parity, tmp_path, crop=256, batch=1)
    trainee.network.unet.enable_gradient_checkpointing()
    trainee.network.recompute = True
    need = memory_need(trainee.config, trainee, [], lambda sr, hq: (sr - hq).square().mean())
    batch = Batch(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 256, 256), [0], [""])
    with Live() as live:
        z_sr = trainee.forward(trainee.prepare(batch))
        gradient, *_ = Objective(trainee.recipe, trainee, None, None, None, 1).gradient(z_sr, batch, 0)
        (z_sr * gradient).sum().backward()
    assert 0.9 < live.most / (need.network + need.decoder) < 1.2


def test_training_refuses_what_it_has_no_use_for(parity: Parity, tmp_path: Path) -> None:
    photos, file = make_photos(tmp_path / "photos", 1), parity.spec.origin
    model = ["--data", photos, "-o", tmp_path / "run", "--models-file", file, "--model", "parity"]
    estimator = ["--estimator", adapter_path(parity.spec, "estimator")]
    (tmp_path / "back.toml").write_text("degradation.resize_back = 'random'\n")
    (tmp_path / "drawn.toml").write_text("scores = 'drawn'\ndegradation.second.blur_probability = 0.1\n")
    for options, words in (
        ([], "it builds on the estimator adapter: give `--estimator`"),
        ([*estimator, "--pixel", "."], "has no `--pixel`"),
        ([*estimator, "--csd", 1], "has no `--csd`"),
        ([*estimator, "--recipe", tmp_path / "back.toml"], "`degradation.resize_back` has no effect"),
        ([*estimator, "--recipe", tmp_path / "drawn.toml"], "of `degradation` only `degradation.first.sigma`"),
        ([*estimator, "--lpips", 0, "--gan", 0, "--crop", 36], "the crop `36` is no multiple of 8"),
        ([*estimator, "--lpips", 0, "--gan", 0, "--crop", 64, "--targets", "x"], "fits no layer of the UNet"),
    ):
        done = srcli("train-semantic", *model, *options)
        assert done.returncode == 2
        assert words in " ".join(done.stderr.split()), done.stderr


def test_a_base_of_patches_is_trained_and_used_without_an_encoder(parity: Parity, tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    photos, file = make_photos(tmp_path / "photos", 2, (96, 80)), tmp_path / "models.toml"
    prompts = 'prompts = { positive = "positive", negative = "negative" }'
    file.write_text(f'[models.small]\nfamily = "s3diff"\nnative_scale = 4\nbase = {{ path = "base" }}\n{prompts}\n')
    model = ["--models-file", file, "--model", "small", "--estimator", adapter_path(parity.spec, "estimator"), "--device", "cpu"]
    short = ["--steps", 1, "--batch", 1, "--crop", 64, "--rank", 4, "--lpips", 0, "--gan", 0, "--workers", 0, "--val-images", 1]
    done = srcli("train-semantic", "--data", photos, "-o", tmp_path / "run", *model, *short)
    assert done.returncode == 0, done.stderr
    Image.new("RGB", (9, 8), "teal").save(tmp_path / "a.png")
    done = srcli("upscale", tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", tmp_path / "run", "--device", "cpu")
    assert done.returncode == 0, done.stderr
