"""DINO's ViT as a feature network: its answers, how its file is fetched, and training by it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import srcli
from hub import Hub, running_hub
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from torch import Tensor, nn
from training_case import make_photos

from srcli.config.recipe import Gan
from srcli.errors import ModelError
from srcli.networks.dino import VisionTransformer, dino
from srcli.training.losses.adversarial import discriminator_loss
from srcli.training.losses.critic import Critic
from srcli.training.losses.projected import augmented

CPU, WIDTH = torch.device("cpu"), 128
REPO, FILE = "facebook/dino-vitb16", "pytorch_model.bin"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random, of a narrow network, by the names in the published file."""
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.position_embeddings": (1, 197, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 16, 16),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
    }
    outer = dict.fromkeys((f"attention.attention.{name}" for name in ("query", "key", "value")), WIDTH)
    outer |= {"attention.output.dense": WIDTH, "intermediate.dense": 4 * WIDTH, "output.dense": WIDTH}
    for block in range(12):
        for layer, width in outer.items():
            inner = 4 * WIDTH if layer == "output.dense" else WIDTH
            shapes |= {f"encoder.layer.{block}.{layer}.weight": (width, inner), f"encoder.layer.{block}.{layer}.bias": (width,)}
    norms = [f"encoder.layer.{block}.layernorm_{side}" for block in range(12) for side in ("before", "after")]
    shapes |= {f"{norm}.{leaf}": (WIDTH,) for norm in (*norms, "layernorm") for leaf in ("weight", "bias")}
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(shape, generator=generator) * 0.08 for name, shape in shapes.items()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: dict[str, Tensor]) -> Iterator[Hub]:
    content = io.BytesIO()
    torch.save(weights, content)
    with running_hub(tmp_path / "hf", monkeypatch) as server:
        server.repos[REPO] = {FILE: content.getvalue(), "tf_model.h5": b"of no use"}
        yield server


@pytest.fixture
def network(hub: Hub) -> VisionTransformer:
    done = srcli("models", "fetch", "dino-vitb16")
    assert done.returncode == 0, done.stderr
    return dino(CPU, "this test")


def pictures(count: int = 2, height: int = 64, width: int = 48) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_its_answers_are_those_of_transformers(network: VisionTransformer, weights: dict[str, Tensor], tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    torch.save(weights, tmp_path / FILE)
    ViTConfig(hidden_size=WIDTH, num_attention_heads=2, intermediate_size=4 * WIDTH, layer_norm_eps=1e-6).save_pretrained(
        tmp_path
    )
    vit, told = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not any(told.values())  # the names are those that it knows
    picture = pictures()
    mean, deviation = (torch.tensor(each)[:, None, None] for each in ((0.48145466, 0.4578275, 0.40821073), (0.229, 0.224, 0.225)))
    seen = (nn.functional.interpolate(picture, (224, 224), mode="area") - mean) / deviation
    with torch.no_grad():
        tokens = vit.eval()(seen, output_hidden_states=True)
        maps = [vit.layernorm(tokens.hidden_states[after])[:, 1:].transpose(1, 2).unflatten(2, (14, 14)) for after in (5, 9)]
        answers = network.train()(picture)
    assert list(answers) == ["block4", "block8", "class"]
    for answer, expected in zip(answers.values(), [*maps, tokens.last_hidden_state[:, 0, :, None, None]], strict=True):
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


def test_heads_on_it_are_those_of_vision_aided_gans(network: VisionTransformer) -> None:
    alone = {"device": "cpu", "num_processes": 1, "gradient_accumulation_steps": 1, "sync_gradients": True}
    gan = Gan(network="dino-vitb16", features=16, target=0.8, learning_rate=5e-3)
    critic = Critic(gan, 0, SimpleNamespace(**alone, mixed_precision="no"), network)
    hq = pictures(4, 48, 48) * 2 - 1
    sr = hq.abs() - 1
    shapes = [tuple(logits.shape) for logits in critic.network(hq)]
    assert shapes == [(4, 1, 3, 3), (4, 1, 3, 3), (4, 1, 1, 1)]
    map_head = WIDTH * 9 * 16 + 16 + 16 + 1
    assert sum(each.numel() for each in critic.network.parameters()) == 2 * map_head + (WIDTH + 1) * 16 + 17
    critic.network.eval()
    shown = augmented(torch.cat([hq, sr]), 0, range(4))
    with torch.no_grad():
        halves = [logits.chunk(2) for logits in critic.network(shown)]
    expected = sum(discriminator_loss(real, fake, "vanilla", 0.8) for real, fake in halves)
    told = [float(critic.learn(sr, hq, range(4))["discriminator"])]
    assert told[0] == pytest.approx(float(expected), rel=1e-4)
    critic.network.train()
    told += [float(critic.learn(sr, hq, range(4))["discriminator"]) for _ in range(6)]
    assert told[-1] < 0.9 * told[0]
    leaf = sr.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(critic.judge(leaf, hq, range(4)), leaf)
    assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_it_is_fetched_once_and_trained_by(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, photos, run = tmp_path / "net.safetensors", make_photos(tmp_path / "photos"), tmp_path / "run"
    save_file(Compact(num_feat=8, num_conv=1, upscale=2).state_dict(), net)
    (tmp_path / "recipe.toml").write_text('features.network = "dino-vitb16"\ngan = { network = "dino-vitb16", features = 8 }\n')
    losses = ("--features", 1, "--gan", 1, "--l1", 0, "--recipe", tmp_path / "recipe.toml")
    short = ("--steps", 2, "--batch", 2, "--crop", 32, "--workers", 0, "--device", "cpu", "--dtype", "fp32", "--val", "none")
    train = ("train-pixel", "--model", net, "--data", photos, "-o", run, *short, *losses)
    done = srcli(*train)
    assert done.returncode == 2
    assert "`--features` needs the network `dino-vitb16`, which is not downloaded" in " ".join(done.stderr.split())
    assert "`srcli models fetch dino-vitb16`" in " ".join(done.stderr.split())
    done = srcli("models", "fetch", "dino-vitb16", "--dry-run")
    assert (done.returncode, done.stdout, "to download in 1 file" in done.stderr) == (0, "", True), done.stderr
    done = srcli("models", "fetch", "dino-vitb16")
    assert done.stdout.strip().endswith(f"/{FILE}")
    assert srcli(*train).returncode == 0
    assert len(hub.gets(FILE)) == 1
    assert {each.path.rpartition("/")[2] for each in hub.requests} == {FILE, "dino-vitb16"}


def test_no_hub_and_another_file_are_told_with_a_way_out(
    hub: Hub, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = hub.repos.pop(REPO)
    done = srcli("models", "fetch", "dino-vitb16")
    told = " ".join(done.stderr.split())
    assert (done.returncode, "cannot fetch" in told, "no such repository" in told) == (2, True, True), told
    assert "`HF_ENDPOINT`" in told
    assert "`efficientnet-lite0`" in told
    content = io.BytesIO()
    torch.save({**weights, "encoder.layer.7.output.dense.bias": torch.zeros(2)}, content)
    hub.repos[REPO] = {**right, FILE: content.getvalue()}
    assert srcli("models", "fetch", "dino-vitb16").returncode == 0
    with pytest.raises(ModelError, match=r"`encoder\.layer\.7\.output\.dense\.bias` is missing or of another shape"):
        dino(CPU, "this test")
